"""Checkpoints that are whole or absent, and what a run looked like when one was made.

A checkpoint is a folder `<iteration>` with tensors (safetensors) and a manifest that holds the
hash of every file. It is written beside its place, flushed to disk and renamed, so that a killed
process leaves either the whole of it or nothing under its name.
"""

import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo.errors import ConfigError, CorruptCheckpointError, RunError
from mixgrpo.files import manifest
from mixgrpo.files.atomic import disk_error, flush
from mixgrpo.files.manifest import checkpoints

_TRIES, _PAUSE_S = 4, 0.1
"""So often a checkpoint is read again, and after what pause, before it counts as corrupt."""

_CORRUPT = (OSError, ValueError, LookupError, TypeError, SafetensorError)


def save(
    root: Path,
    iteration: int,
    tensors: dict[str, dict[str, Tensor]],
    made_on: dict[str, Any],
    digests: dict[str, str] | None = None,
) -> None:
    """Write checkpoint `iteration` under `root`: groups of tensors, each by name.

    `made_on` says what the bytes of a result depend on beside its configuration, such as threads;
    `digests` are of the lines that had been written before.

    Replaces one of the same iteration. OSError (a full disk) leaves the earlier ones untouched.
    """
    place = manifest.place_of(root, iteration)
    partial = place.with_name(place.name + manifest.PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        root.mkdir(exist_ok=True)
        partial.mkdir()
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
            "digests": digests,
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
    digests: dict[str, str] | None
    """Of the lines that had been written before; earlier versions did not say."""


def load_newest(root: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint under `root`, of at most that many iterations. None without one.

    A corrupt one is passed over with a warning that names it and what is wrong. RunError where
    one has the format of another version.
    """
    for place in reversed(checkpoints(root)):
        if at_most is not None and int(place.name) > at_most:
            continue
        try:
            return _load(place)
        except _CORRUPT as error:
            warnings.warn(
                f"{place}: corrupt checkpoint ({_in_words(error)}); falling back to the one before "
                "it, or to the beginning where there is none",
                stacklevel=2,
            )
    return None


def _corrupt(place: Path, reason: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{place}: corrupt checkpoint ({_in_words(reason)})",
        _newest_whole(place.parent, but=int(place.name)),
    )


def read_newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that may be training now; None where there is none.

    CorruptCheckpointError where that one is not whole: an older one would be another model. What a
    running trainer removes while it is read is not corrupt: then a newer one is there.
    """
    tries: Counter[Path] = Counter()
    while True:
        places = checkpoints(root)
        if not places:
            return None
        place = places[-1]
        try:
            return _load(place)
        except _CORRUPT as error:
            tries[place] += 1
            if tries[place] == _TRIES:
                raise _corrupt(place, error) from error
        time.sleep(_PAUSE_S)


def load_at(root: Path, iteration: int) -> Checkpoint:
    """Checkpoint `iteration` under `root`. ConfigError naming those there are,
    CorruptCheckpointError where it is not whole."""
    place = _place_at(root, iteration)
    try:
        return _load(place)
    except _CORRUPT as error:
        raise _corrupt(place, error) from error


def check_at(root: Path, iteration: int) -> None:
    """Raise what `load_at` would, without loading anything."""
    place = _place_at(root, iteration)
    try:
        _check(place)
    except _CORRUPT as error:
        raise _corrupt(place, error) from error


def _place_at(root: Path, iteration: int) -> Path:
    places = {int(place.name): place for place in checkpoints(root)}
    if iteration not in places:
        known = ", ".join(map(str, places)) or "none"
        raise ConfigError(
            f"{root}: no checkpoint of iteration {iteration}; it has: {known} "
            "(output.checkpoints_kept of the run says how many stay)"
        )
    return places[iteration]


def _newest_whole(root: Path, but: int) -> str:
    """Which checkpoint can be asked for instead of `but`, in words."""
    for place in reversed(checkpoints(root)):
        if int(place.name) == but:
            continue
        try:
            _check(place)
        except (*_CORRUPT, RunError):
            continue
        return f"--checkpoint {int(place.name)} takes the newest one that is whole"
    return "no other one is whole; --checkpoint 0 takes the model that training starts from"


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
    places = checkpoints(root)
    good = [place for place in places if int(place.name) <= newest]
    counted = [place for place in good if int(place.name) not in uncounted]
    stay = {*counted[-keep:], *(place for place in good if int(place.name) in always)}
    for place in set(places) - stay:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    for partial in root.glob(f"*{manifest.PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def _load(place: Path) -> Checkpoint:
    said = _check(place)
    tensors = {Path(name).stem: load_file(place / name) for name in said["files"]}
    return Checkpoint(int(said["iteration"]), tensors, said["made_on"], said["digests"])


def _check(place: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `place`; one of `_CORRUPT` where it is not whole."""
    said = manifest.read(place)
    for name, digest in said["files"].items():
        manifest.check(place / name, digest)
    return said


def _in_words(error: Exception) -> str:
    """One line of an error; pydantic's have several."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"{manifest.NAME}: {key + ': ' if key else ''}{first['msg']}"
    return str(error)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise disk_error(error, file) or error from error
