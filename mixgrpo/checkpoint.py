"""Checkpoints that are whole or absent, and what a run looked like when one was made.

A checkpoint is a folder `<iteration>` with tensors (safetensors) and a manifest that holds the
hash of every file. It is written beside its place, flushed to disk and renamed, so that a killed
process leaves either the whole of it or nothing under its name.
"""

import json
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo import manifest
from mixgrpo.atomic import disk_error, flush
from mixgrpo.errors import ConfigError, RunError

_CORRUPT = (OSError, ValueError, LookupError, TypeError, SafetensorError)


def save(
    root: Path, iteration: int, tensors: dict[str, dict[str, Tensor]], made_on: dict[str, Any]
) -> None:
    """Write checkpoint `iteration` under `root`: groups of tensors, each by name.

    `made_on` says what the bytes of a result depend on beside its configuration, such as threads.

    Replaces one of the same iteration. OSError (a full disk) leaves the earlier ones untouched.
    """
    place = manifest.place_of(root, iteration)
    partial = place.with_name(place.name + manifest.PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        files = {}
        for group, members in tensors.items():
            file = partial / f"{group}.safetensors"
            _write(file, {k: v.detach().contiguous() for k, v in members.items()})
            files[file.name] = manifest.digest_of(file)
        said = {
            "format": manifest.FORMAT,
            "iteration": iteration,
            "files": files,
            "made_on": made_on,
        }
        (partial / manifest.NAME).write_text(json.dumps(said, indent=1))
        for file in partial.iterdir():
            flush(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    aside = place.with_name(f"{place.name}.old{manifest.PARTIAL}")
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


def prune(
    root: Path,
    keep: int,
    newest: int,
    always: Collection[int] = (),
    uncounted: Collection[int] = (),
) -> None:
    """Remove all but the last `keep` checkpoints up to iteration `newest`, and those of `always`.

    Of the latter, `uncounted` are not among the last ones: they push no other one out.

    Later ones are corrupt and were passed over; what killed processes left half-written goes too.
    """
    places = sorted(checkpoints(root))
    good = [place for place in places if int(place.name) <= newest]
    counted = [place for place in good if int(place.name) not in uncounted]
    stay = {*counted[-keep:], *(place for place in good if int(place.name) in always)}
    for place in set(places) - stay:
        shutil.rmtree(place, ignore_errors=True)
    for partial in root.glob(f"*{manifest.PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """The folders under `root` that have a checkpoint's name."""
    return [p for p in root.glob("[0-9]*") if p.name.isdigit() and p.is_dir()]


def _load(place: Path) -> Checkpoint:
    said = manifest.read(place)
    tensors = {}
    for name, digest in said["files"].items():
        file = place / name
        manifest.check(file, digest)
        tensors[file.stem] = load_file(file)
    return Checkpoint(int(said["iteration"]), tensors, said["made_on"])


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise disk_error(error, file) or error from error
