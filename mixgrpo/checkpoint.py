"""Checkpoints that are whole or absent, and what a run looked like when one was made.

A checkpoint is a folder `<iteration>` with tensors (safetensors) and a manifest that holds the
hash of every file. It is written beside its place, flushed to disk and renamed, so that a killed
process leaves either the whole of it or nothing under its name.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo.atomic import disk_error, flush
from mixgrpo.errors import ConfigError, RunError

FORMAT = 1
_MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_CORRUPT = (OSError, ValueError, LookupError, TypeError, SafetensorError)


def save(
    root: Path, iteration: int, tensors: dict[str, dict[str, Tensor]], made_on: dict[str, Any]
) -> None:
    """Write checkpoint `iteration` under `root`: groups of tensors, each by name.

    `made_on` says what the bytes of a result depend on beside its configuration, such as threads.

    Replaces one of the same iteration. OSError (a full disk) leaves the earlier ones untouched.
    """
    place = root / f"{iteration:06d}"
    partial = place.with_name(place.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        files = {}
        for group, members in tensors.items():
            file = partial / f"{group}.safetensors"
            _write(file, {k: v.detach().contiguous() for k, v in members.items()})
            files[file.name] = _digest(file)
        manifest = {"format": FORMAT, "iteration": iteration, "files": files, "made_on": made_on}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in partial.iterdir():
            flush(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    aside = place.with_name(f"{place.name}.old{_PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.rename(aside)  # a reader elsewhere may keep it from being removed
    partial.rename(place)
    flush(root)
    shutil.rmtree(aside, ignore_errors=True)


class Checkpoint(NamedTuple):
    """What `save` wrote."""

    iteration: int
    tensors: dict[str, dict[str, Tensor]]
    made_on: dict[str, Any]


def load_newest(root: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint under `root`, of at most so many iterations. None without one.

    A corrupt one is passed over with a warning that names it and what is wrong. RunError where
    one has the format of another version.
    """
    places = sorted(checkpoints(root), reverse=True)
    for place in places if at_most is None else [p for p in places if int(p.name) <= at_most]:
        try:
            return _load(place)
        except _CORRUPT as error:
            warnings.warn(
                f"{place}: corrupt checkpoint ({error}); falling back to the one before it, or to "
                "the beginning where there is none",
                stacklevel=2,
            )
    return None


def load_at(root: Path, iteration: int) -> Checkpoint:
    """Checkpoint `iteration` under `root`. ConfigError naming those there are, RunError for a
    corrupt one."""
    places = {int(place.name): place for place in sorted(checkpoints(root))}
    if iteration not in places:
        known = ", ".join(map(str, places)) or "none"
        raise ConfigError(
            f"{root}: no checkpoint of iteration {iteration}; it has: {known} "
            "(output.checkpoints_kept of the run says how many stay)"
        )
    try:
        return _load(places[iteration])
    except _CORRUPT as error:
        raise RunError(f"{places[iteration]}: corrupt checkpoint ({error})") from error


def prune(root: Path, keep: int, newest: int) -> None:
    """Remove all but the last `keep` checkpoints up to iteration `newest`.

    Later ones are corrupt and were passed over; what killed processes left half-written goes too.
    """
    places = sorted(checkpoints(root))
    good = [place for place in places if int(place.name) <= newest]
    for place in set(places) - set(good[-keep:]):
        shutil.rmtree(place, ignore_errors=True)
    for partial in root.glob(f"*{_PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """The folders under `root` that have a checkpoint's name."""
    return [p for p in root.glob("[0-9]*") if p.name.isdigit() and p.is_dir()]


def _load(place: Path) -> Checkpoint:
    manifest = json.loads((place / _MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{place}: a checkpoint of format {manifest['format']}, this version reads {FORMAT}; "
            "finish the run with the version that began it, or remove its folder"
        )
    if int(manifest["iteration"]) != int(place.name):
        raise ValueError(f"its manifest is of iteration {manifest['iteration']}")
    tensors = {}
    for name, digest in manifest["files"].items():
        file = place / name
        if _digest(file) != digest:
            raise ValueError(f"{name} is not what was written")
        tensors[file.stem] = load_file(file)
    return Checkpoint(int(manifest["iteration"]), tensors, manifest["made_on"])


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise disk_error(error, file) or error from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
