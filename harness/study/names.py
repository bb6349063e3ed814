"""Names of folders that no file system refuses: long ones are shortened, the rest is said ahead."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mixgrpo.errors import ConfigError, Place

MOST_BYTES = 255
"""Of one name, on every usual file system."""
_SHORT = 120
"""Bytes that a name which would be too long is shortened to."""
_INSIDE = 200
"""Bytes of the longest path inside a run's folder, temporary names included."""
_MOST_OF_A_PATH = 4095
_OF_ALL_REPORTS = {"figures", "readme.md", "index.html", "tables.tex"}
_OF_WINDOWS = {"con", "prn", "aux", "nul"}
_OF_WINDOWS |= {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}


def shorten(text: str, most: int) -> str:
    """`text`, or where it has more than `most` bytes its beginning and 8 digits of a digest."""
    raw = text.encode()
    if len(raw) <= most:
        return text
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return f"{raw[: most - 9].decode(errors='ignore')}-{digest}"


def run_folder(arm: str, seed: int | str, identity: str) -> str:
    """The name of a run's folder: `ARM-seedSEED-HASH`, the arm's name shortened where that is
    longer than a name may be."""
    name = f"{arm}-seed{seed}-{identity}"
    if len(name.encode()) <= MOST_BYTES:
        return name
    return f"{shorten(arm, _SHORT)}-seed{seed}-{identity}"


def stem_of(run: str) -> str:
    """What the folder of a run of this name, `ARM-seedSEED`, has before its hash."""
    arm, _, seed = run.rpartition("-seed")
    return run_folder(arm, seed, "0" * 8).rpartition("-")[0] if arm else run


def check_name(name: str, place: Place) -> None:
    """ConfigError for a study's name that cannot name folders of its own everywhere."""
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
    """ConfigError where the file system that `folders` come to lie on has no room for a name of
    theirs, or for a path below one of them; `option` is what the user may change."""
    place = max(folders, key=lambda folder: len(os.fsencode(folder))).absolute()
    length = len(os.fsencode(place))
    if length + _INSIDE > _MOST_OF_A_PATH:
        raise ConfigError(
            f"{option}: the path of a run's folder has {length} bytes, and with the files in it "
            f"more than the {_MOST_OF_A_PATH} that a path may have; name a shorter folder"
        )
    most = _most_bytes(place)
    for part in place.parts:
        if len(os.fsencode(part)) > most:
            raise ConfigError(
                f"{option}: the name {part[:40]}... has {len(os.fsencode(part))} bytes, and the "
                f"file system there allows {most}; name a folder elsewhere, or one with a shorter "
                "name"
            )


def _most_bytes(place: Path) -> int:
    """The bytes that a name may have on the file system that `place` is on, or comes to lie on."""
    for folder in (place, *place.parents):
        try:
            return os.pathconf(folder, "PC_NAME_MAX")
        except (OSError, ValueError):
            continue
    return MOST_BYTES
