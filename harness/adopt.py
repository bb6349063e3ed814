"""Copies what another run has computed into a run's folder, so that a kill leaves nothing wrong.

`adopt`: the first iterations of a run that is the same so far, in the job that goes on from them.
`adopt_finished`: the whole of a finished run of another sweep, which is the same altogether.

Pictures and lines come first: without a checkpoint the trainer makes them again. The checkpoint
comes last, under its name all at once, and the result of a whole run after everything else.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.store import newest_checkpoint, read_attempts, read_result
from mixgrpo import jsonlines, manifest
from mixgrpo.atomic import flush, write_bytes, write_json
from mixgrpo.config import HealthConfig, RunConfig
from mixgrpo.errors import RunError
from mixgrpo.folder import RESULT, Measured, claim

ORIGIN = "origin.json"
"""Says in a run's folder which run its first iterations were copied from."""
CHECKPOINTS = "checkpoints"
_LINES = ("metrics.jsonl", "eval.jsonl")
_ENVIRONMENT = "env.json"
_EXPORT = "weights"
_HEALTH = re.compile(r"^health:\n((?: .*\n)+)", re.MULTILINE)

_BROKEN = (OSError, ValueError, LookupError, TypeError, RunError)


class UnfitError(Exception):
    """Why a run cannot start from another one's checkpoint."""


def adopt(
    folder: Path,
    config: RunConfig,
    source: Path,
    iterations: int,
    environment: Mapping[str, Any],
    processes: int = 1,
) -> None:
    """Take over the first `iterations` of the run in `source`, which are the same run's.

    To be called by the owner of `folder`, a run without a checkpoint. `environment` (env.json) and
    `processes` are the owner's: another machine, thread or line of code may round otherwise.
    UnfitError where it is not to be had to the byte; OSError for a disk that is full.
    """
    (folder / ORIGIN).unlink(missing_ok=True)
    place = manifest.place_of(source / CHECKPOINTS, iterations)
    try:
        said = manifest.read(place)
    except _BROKEN as error:
        raise UnfitError(f"{place}: {error}") from error
    _check_same(source, iterations, environment)
    if said.get("made_on", {}).get("processes", 1) != processes:
        raise UnfitError(f"{place}: was made by another number of processes")
    lines = _lines(source, config, iterations)
    claim(config, folder)
    try:
        _copy_lines(lines, source, folder, iterations)
        _copy_checkpoint(place, folder, said)
    except BaseException:
        (folder / ORIGIN).unlink(missing_ok=True)
        raise


def adopt_finished(folder: Path, config: RunConfig, source: Path) -> None:
    """Take over the finished run in `source`, whose hash is the same. UnfitError, OSError likewise.

    To be called by the owner of `folder`.
    """
    (folder / ORIGIN).unlink(missing_ok=True)
    if _health(source) != config.health:
        raise UnfitError(f"{source}: was measured with other settings of health")
    try:
        result = (source / RESULT).read_bytes()
        lines = _lines(source, config, config.iterations)
        newest = newest_checkpoint(source)
        place = manifest.place_of(source / CHECKPOINTS, newest)
        said = manifest.read(place) if newest else None
    except _BROKEN as error:
        raise UnfitError(f"{source}: {error}") from error
    claim(config, folder)
    _copy_lines(lines, source, folder, config.iterations)
    if said is not None:
        _copy_checkpoint(place, folder, said)
    if config.output.export and (source / _EXPORT).is_dir():
        shutil.rmtree(folder / _EXPORT, ignore_errors=True)
        shutil.copytree(source / _EXPORT, folder / _EXPORT, copy_function=_link)
    if (source / _ENVIRONMENT).exists():
        write_bytes(folder / _ENVIRONMENT, (source / _ENVIRONMENT).read_bytes())
    write_bytes(folder / RESULT, result)


def fits_whole(source: Path, config: RunConfig, identity: str) -> bool:
    """Whether a finished run of the same hash lies in `source`, measured in the same way."""
    try:
        result = read_result(source)
    except RunError:
        return False
    return (
        result is not None and result.get("hash") == identity and _health(source) == config.health
    )


def origin(folder: Path) -> dict[str, Any] | None:
    """What was copied into a run's folder: `run`, `iterations` and their `seconds`. None if
    nothing was."""
    try:
        found = json.loads((folder / ORIGIN).read_bytes())
        return {**found, "iterations": int(found["iterations"]), "seconds": float(found["seconds"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_same(source: Path, iterations: int, environment: Mapping[str, Any]) -> None:
    """UnfitError where what is around the source's first iterations was not the same."""
    try:
        theirs = json.loads((source / _ENVIRONMENT).read_bytes())
        keys = ["commit", "dirty", "python", "versions", "system", "threads", "device"]
        if environment["device"] == "cpu":
            keys.append("cpu")
        other = [key for key in keys if theirs.get(key) != environment.get(key)]
    except _BROKEN as error:
        raise UnfitError(f"{source}: {error}") from error
    if other:
        raise UnfitError(f"{source}: was made with another {other[0]}")
    for attempt in read_attempts(source):
        code = (attempt.commit, attempt.dirty)
        mine = (environment.get("commit"), environment.get("dirty"))
        if attempt.began_at < iterations and code != mine:
            raise UnfitError(f"{source}: an attempt at it had another commit")


def _lines(
    source: Path, config: RunConfig, iterations: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of metrics.jsonl and eval.jsonl that the first iterations of a run have.

    An evaluation after the last of them may be missing: it is made.
    """
    metrics = [m for m in jsonlines.whole_lines(source / _LINES[0]) if m["iteration"] < iterations]
    if [line["iteration"] for line in metrics] != list(range(iterations)):
        raise UnfitError(f"{source}: metrics.jsonl lacks lines")
    due = Measured(config, source).due
    evals = [
        line
        for line in jsonlines.whole_lines(source / _LINES[1])
        if line["iteration"] <= iterations and due(line["iteration"])
    ]
    judged = {line["iteration"] for line in evals}
    if any(due(m) and m not in judged for m in range(iterations)):
        raise UnfitError(f"{source}: eval.jsonl lacks lines")
    return metrics, evals


def _copy_lines(
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    source: Path,
    folder: Path,
    iterations: int,
) -> None:
    """Lines, the pictures of the evaluations among them, and where all that comes from."""
    # Pictures before their lines: an evaluation that has its line is not made again.
    samples, copied = source / "samples", folder / "samples"
    copied.mkdir(exist_ok=True)
    if (samples / "prompts.json").exists():
        write_bytes(copied / "prompts.json", (samples / "prompts.json").read_bytes())
    for line in lines[1]:
        pictures = samples / f"{line['iteration']:06d}"
        if pictures.is_dir():
            shutil.copytree(pictures, copied / pictures.name, dirs_exist_ok=True)
    for name, own in zip(_LINES, lines, strict=True):
        jsonlines.replace(folder / name, own)
    seconds = sum(line.get("seconds_total", 0.0) for line in lines[0])
    write_json(
        folder / ORIGIN,
        {
            "run": f"{source.parent.name}/{source.name}",
            "iterations": iterations,
            "seconds": seconds,
        },
    )


def _copy_checkpoint(place: Path, folder: Path, said: dict[str, Any]) -> None:
    """The checkpoint in `place`, as links where the disk has them: its files never change.

    UnfitError for a damaged one.
    """
    root = folder / CHECKPOINTS
    root.mkdir(exist_ok=True)
    partial = root / f"{place.name}{manifest.PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name in (*said["files"], manifest.NAME):
            _link(place / name, partial / name)
        for name, digest in said["files"].items():
            manifest.check(partial / name, digest)
        for file in partial.iterdir():
            flush(file)
        flush(partial)
        final = root / place.name
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        flush(root)
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UnfitError(f"{place}: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name; a copy where the disk has none."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _health(folder: Path) -> HealthConfig | None:
    """What a run measured beside its training; None where its file does not say."""
    try:
        # Only that part: the whole file of thousands of runs takes its time.
        part = _HEALTH.search((folder / "config.yaml").read_text())
        return HealthConfig.model_validate(yaml.safe_load(part[1])) if part else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
