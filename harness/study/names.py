"""Folder names that every file system accepts: long ones are shortened, others refused early."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mixgrpo.errors import ConfigError, Place

MOST_BYTES = 255
"""The longest name, in bytes, on all common file systems."""
_SHORT = 120
"""The bytes to which a name that is too long is shortened."""
_INSIDE = 200
"""The longest path inside a run's folder, in bytes, temporary names included."""
_MOST_OF_A_PATH = 4095
_OF_ALL_REPORTS = {"figures", "readme.md", "index.html", "tables.tex"}
_OF_WINDOWS = {"con", "prn", "aux", "nul"}
_OF_WINDOWS |= {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}


def shorten(text: str, most: int) -> str:
    """`text`, or if it has more than `most` bytes, its beginning and 8 digits of a digest."""
    raw = text.encode()
    if len(raw) <= most:
        return text
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return f"{raw[: most - 9].decode(errors='ignore')}-{digest}"


def run_folder(arm: str, seed: int | str, identity: str) -> str:
    """The name of a run's folder: `ARM-seedSEED-HASH`, with the arm's name shortened if it would be
    too long."""
    name = f"{arm}-seed{seed}-{identity}"
    if len(name.encode()) <= MOST_BYTES:
        return name
    return f"{shorten(arm, _SHORT)}-seed{seed}-{identity}"


def stem_of(run: str) -> str:
    """The name of a run's folder without its hash, from the run's name `ARM-seedSEED`."""
    arm, _, seed = run.rpartition("-seed")
    return run_folder(arm, seed, "0" * 8).rpartition("-")[0] if arm else run


def check_name(name: str, place: Place) -> None:
    """ConfigError for a study's name that cannot be a folder's name on every system."""
    if name.casefold() in _OF_ALL_REPORTS:
        raise ConfigError(
            f"{place}: name: reports/{name} belongs to the report over all studies; take another "
            "name"
        )
    if name.partition(".")[0].casefold() in _OF_WINDOWS or name.endswith("."):
        raise ConfigError(
            f"{place}: name: Windows has no folder of the name {name}, so that nobody there could "
            "check the report out; take another name"
        )


def check_paths(folders: Iterable[Path], option: str) -> None:
    """ConfigError where a name in these paths, or a path below them, is too long for their file
    system. `option`: the command's option that the user may change."""
    longest = max(folders, key=lambda folder: len(os.fsencode(folder))).absolute()
    length = len(os.fsencode(longest))
    if length + _INSIDE > _MOST_OF_A_PATH:
        raise ConfigError(
            f"{option}: the path of a run's folder has {length} bytes, and with the files in it "
            f"more than the {_MOST_OF_A_PATH} that a path may have; name a shorter folder"
        )
    most = _most_bytes(longest)
    for part in longest.parts:
        if len(os.fsencode(part)) > most:
            raise ConfigError(
                f"{option}: the name {part[:40]}... has {len(os.fsencode(part))} bytes, and the "
                f"file system there allows {most}; name a folder elsewhere, or one with a shorter "
                "name"
            )


def _most_bytes(path: Path) -> int:
    """The longest name, in bytes, on the file system of `path`, which need not exist."""
    for folder in (path, *path.parents):
        try:
            return os.pathconf(folder, "PC_NAME_MAX")
        except (OSError, ValueError):
            continue
    return MOST_BYTES
