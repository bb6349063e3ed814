"""Copies what another run has computed into a run's folder, so that a kill leaves nothing wrong.

`adopt`: the first iterations of a run that is the same so far, in the job that goes on from them.
`adopt_finished`: the whole of a finished run of another sweep, which is the same altogether.

Pictures and lines come first: without a checkpoint the trainer makes them again. The checkpoint
comes last, under its name all at once, and the result of a whole run after everything else.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from harness.runs.codechange import FILE as ACCEPTED
from harness.runs.codechange import AcceptedCode
from harness.runs.folder import checkpoints_of, origin, read_attempts, trained_by
from harness.runs.store import read_result
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import jsonlines, manifest
from mixgrpo.files.atomic import flush, write_bytes, write_json
from mixgrpo.files.records import (
    ORIGIN,
    RESULT,
    DamagedFileError,
    check_lines,
    loads,
    parse_result,
    sealed,
)
from mixgrpo.runs.folder import CHECKPOINTS, Measured, claim, claimed, set_aside
from mixgrpo.settings.config import HealthConfig, RunConfig
from mixgrpo.settings.configfile import load_config
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.shared_prefix import common_iterations

_LINES = ("metrics.jsonl", "eval.jsonl")
_ENVIRONMENT = "env.json"
_EXPORT = "weights"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast: of thousands of runs

_BROKEN = (OSError, ValueError, LookupError, TypeError, RunError, ConfigError)

MadeOn = dict[str, Any]
"""What a run's bytes depend on beside its settings (`harness.runs.environment.decisive`)."""


class UnfitError(Exception):
    """Why a run cannot start from another one's checkpoint."""


def adopt(folder: Path, config: RunConfig, source: Path, iterations: int, made_on: MadeOn) -> None:
    """Take over the first `iterations` of the run in `source`, which are the same run's.

    To be called by the owner of `folder`, a run without a checkpoint, on whose machine it goes on:
    another one, another thread or line of code may round otherwise. UnfitError where it is not to
    be had to the byte; OSError for a disk that is full.
    """
    (folder / ORIGIN).unlink(missing_ok=True)
    place = manifest.place_of(source / CHECKPOINTS, iterations)
    try:
        said = manifest.read(place)
        theirs = load_config(source / "config.yaml")
        processes = said["made_on"].get("processes", 1)
        makers = makers_of(source)
    except _BROKEN as error:
        raise UnfitError(f"{place}: {error}") from error
    if common_iterations(config, theirs) < iterations:
        raise UnfitError(f"{source}: is another run before it has done {iterations} iterations")
    if processes != made_on["processes"]:
        raise UnfitError(f"{place}: was made by another number of processes")
    _check_same(source, makers, iterations, made_on)
    if claimed(source) != config_hash(theirs):
        raise UnfitError(f"{source}: its code, weights or prompts are not those of now")
    lines = _lines(source, config, iterations)
    if said["digests"] and said["digests"] != Measured(theirs, source).digests(iterations):
        raise UnfitError(f"{source}: metrics.jsonl or eval.jsonl are not as they were written")
    claim(config, folder)
    try:
        _copy_lines(lines, source, folder, iterations, [(0, made_on)])
        _copy_checkpoint(place, folder, said)
    except BaseException:
        (folder / ORIGIN).unlink(missing_ok=True)
        raise


def adopt_finished(
    folder: Path, config: RunConfig, source: Path, accepted: AcceptedCode | None = None
) -> None:
    """Take over the finished run in `source`, whose hash is the same. UnfitError, OSError likewise.

    To be called by the owner of `folder`, a run without a checkpoint. `accepted`: other code made
    the source, which is noted.
    """
    (folder / ORIGIN).unlink(missing_ok=True)
    if lacking := _lacks(source, config):
        raise UnfitError(f"{source}: {lacking}")
    root = source / CHECKPOINTS
    try:
        result = (source / RESULT).read_bytes()
        lines = _lines(source, config, config.iterations)
        present = checkpoints_of(source)
        places = [manifest.place_of(root, m) for m in {*config.output.keep, *present[-1:]}]
        said = {place: manifest.read(place) for place in sorted(places)}
        makers = makers_of(source)
    except _BROKEN as error:
        raise UnfitError(f"{source}: {error}") from error
    claim(config, folder)
    if (folder / RESULT).exists():  # a damaged one, or the run would not take over another's
        set_aside(folder / RESULT)
    try:
        _copy_lines(lines, source, folder, config.iterations, makers)
        every = config.evaluation.every
        check_lines(folder, parse_result(source / RESULT, result), every, thorough=True)
        if config.output.export:
            shutil.rmtree(folder / _EXPORT, ignore_errors=True)
            _copy_tree(source / _EXPORT, folder / _EXPORT, _link)
        if (source / _ENVIRONMENT).exists():
            write_bytes(folder / _ENVIRONMENT, (source / _ENVIRONMENT).read_bytes())
        for place, about in said.items():
            _copy_checkpoint(place, folder, about)
    except BaseException as error:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / ORIGIN).unlink(missing_ok=True)
        if isinstance(error, DamagedFileError):
            raise UnfitError(str(error)) from error
        raise
    if accepted is None:
        write_bytes(folder / RESULT, result)
        return
    write_json(folder / ACCEPTED, accepted.model_dump())
    write_json(folder / RESULT, sealed({**loads(result), "hash": claimed(folder)}))


def fits_whole(source: Path, config: RunConfig, identity: str) -> bool:
    """Whether a finished run of the same hash lies in `source`, and all that is asked for."""
    try:
        result = read_result(source, config.evaluation.every)
    except RunError:
        return False
    return result is not None and result.hash == identity and not _lacks(source, config)


def makers_of(folder: Path) -> list[tuple[int, MadeOn]]:
    """What computed a run, part by part: from which iteration on, and on what. Nothing where one
    of its records does not say."""
    copied = origin(folder)
    parts: list[tuple[int, MadeOn]] = []
    if copied is not None:
        parts += copied["made_on"] or [(0, {})]
    parts += [(attempt.began_at, attempt.made_on or {}) for attempt in read_attempts(folder)]
    return parts if all(maker for _, maker in parts) else []


def _check_same(
    source: Path, makers: list[tuple[int, MadeOn]], iterations: int, made_on: MadeOn
) -> None:
    """UnfitError where what is around the source's first iterations was not the same."""
    if all(began_at > 0 for began_at, _ in makers):
        raise UnfitError(f"{source}: does not say on what its first iterations ran")
    for maker in (maker for began_at, maker in makers if began_at < iterations):
        for key, value in made_on.items():
            if maker.get(key) != value:
                raise UnfitError(f"{source}: was made with another {key}")


def _lines(
    source: Path, config: RunConfig, iterations: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of metrics.jsonl and eval.jsonl that the first iterations of a run have.

    An evaluation after the last of them may be missing: it is made.
    """
    metrics = [m for m in jsonlines.whole_lines(source / _LINES[0]) if m["iteration"] < iterations]
    numbers = [line["iteration"] for line in metrics]
    if len(numbers) < iterations or numbers != list(range(iterations)):
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
    makers: list[tuple[int, MadeOn]],
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
            _copy_tree(pictures, copied / pictures.name, shutil.copyfile)
    for name, own in zip(_LINES, lines, strict=True):
        jsonlines.replace(folder / name, own)
    seconds = sum(line.get("seconds_total", 0.0) for line in lines[0])
    write_json(
        folder / ORIGIN,
        {
            "run": f"{source.parent.name}/{source.name}",
            "iterations": iterations,
            "seconds": seconds,
            "trained_by": trained_by(source, iterations),
            "made_on": makers,
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
            manifest.check_inside(place / name, place)
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


def _copy_tree(source: Path, target: Path, copy: Callable[[Path, Path], Any]) -> None:
    """The files of a folder; what fails is raised as it is, unlike in shutil's. UnfitError for a
    link that leads out of the folder."""
    target.mkdir(exist_ok=True)
    for file in sorted(source.rglob("*")):
        try:
            manifest.check_inside(file, source)
        except ValueError as error:
            raise UnfitError(str(error)) from error
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        else:
            copy(file, place)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk has none."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _lacks(source: Path, config: RunConfig) -> str | None:
    """What a finished run of the same hash has not, or otherwise, that is asked for. None for
    nothing."""
    try:
        said = yaml.load((source / "config.yaml").read_text(), _LOADER)
        health = HealthConfig.model_validate(said["health"])
        samples = said["output"]["samples"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return "its settings cannot be read"
    if health != config.health:
        return "was measured with other settings of health"
    if samples != config.output.samples:
        return "has another number of pictures (output.samples)"
    if config.output.export and not (source / _EXPORT).is_dir():
        return "has no exported weights (output.export)"
    if missing := sorted(set(config.output.keep) - set(checkpoints_of(source))):
        return f"has no checkpoint {missing[0]} (output.keep)"
    return None
