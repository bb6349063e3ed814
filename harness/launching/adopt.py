"""Copies what another run has computed into a run's folder. A kill leaves a valid folder.

`adopt` copies the first iterations of a shorter or longer run of the same settings, in the job that
continues from them. `adopt_accepted` copies a finished run of other code that the user accepts.

Pictures, scores and lines are copied first: without a checkpoint the trainer makes them again. The
checkpoint follows, atomically, and the result of a whole run comes last.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from harness.runs.codechange import FILE as ACCEPTED
from harness.runs.codechange import AcceptedCode, read_accepted
from harness.runs.folder import checkpoints_of, origin, read_attempts, trained_by
from harness.runs.store import what_lacks
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import jsonlines, manifest
from mixgrpo.files.atomic import flush, write_bytes, write_json
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    ORIGIN,
    RESULT,
    SCORES,
    SCORES_DIGEST,
    DamagedFileError,
    check_lines,
    loads,
    measured,
    parse_result,
    read_result,
    scores_bytes,
    sealed,
)
from mixgrpo.files.scores import write_scores
from mixgrpo.runs.folder import CHECKPOINTS, CONFIG, Measured, claim, claimed
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_config
from mixgrpo.settings.continuation import common_iterations
from mixgrpo.settings.identity import config_hash

_BROKEN = (OSError, ValueError, LookupError, TypeError, RunError, ConfigError)
_ENVIRONMENT, _EXPORT = "env.json", "weights"

MadeOn = dict[str, Any]
"""What a run's bytes depend on beside its settings (`harness.runs.environment.decisive`)."""


class UnfitError(Exception):
    """Why a run cannot use what another one has computed."""


def adopt(folder: Path, config: RunConfig, source: Path, iterations: int, made_on: MadeOn) -> None:
    """Copy the first `iterations` of the run in `source`, which are the same for both runs.

    For the holder of the lease of `folder`, a run without a checkpoint. `made_on` describes the
    machine on which it continues: other machines, threads or code may round differently. UnfitError
    where the copy would not be the same to the byte; OSError for a full disk.
    """
    forget(folder)
    checkpoint = manifest.place_of(source / CHECKPOINTS, iterations)
    try:
        content = manifest.read(checkpoint)
        theirs = load_config(source / CONFIG)
        processes = content["made_on"].get("processes", 1)
        makers = makers_of(source)
        accepted = read_accepted(source, read_result(source))
    except _BROKEN as error:
        raise UnfitError(f"{checkpoint}: {error}") from error
    if common_iterations(config, theirs) < iterations:
        raise UnfitError(f"{source}: is another run before it has done {iterations} iterations")
    if processes != made_on["processes"]:
        raise UnfitError(f"{checkpoint}: was made by another number of processes")
    _check_same(source, makers, iterations, made_on)
    if claimed(source) != config_hash(theirs):
        raise UnfitError(f"{source}: its code, weights or prompts are not those of now")
    lines = _lines(source, config, iterations)
    if content["digests"] and content["digests"] != Measured(theirs, source).digests(iterations):
        raise UnfitError(f"{source}: {METRICS} or {EVALUATIONS} are not as they were written")
    claim(config, folder)
    try:
        if accepted is not None:
            write_json(folder / ACCEPTED, accepted.continued(iterations).model_dump())
        _copy_lines(lines, source, folder, made_on)
        _copy_checkpoint(checkpoint, folder, content)
    except BaseException:
        forget(folder)
        raise


def forget(folder: Path) -> None:
    """Remove what a run without a checkpoint says of the run that it was copied from."""
    for name in (ORIGIN, ACCEPTED):
        (folder / name).unlink(missing_ok=True)


def adopt_accepted(folder: Path, config: RunConfig, source: Path, accepted: AcceptedCode) -> None:
    """Copy the finished run in `source`, which differs only in its code, to the new `folder`.

    UnfitError where it is damaged or lacks what is asked for; OSError for a full disk.
    """
    if lacking := what_lacks(source, config):
        raise UnfitError(f"{source}: {lacking}")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        text = (source / RESULT).read_bytes()
        result = parse_result(source / RESULT, text)
        check_lines(source, result, config.evaluation.every, thorough=True)
        metrics, evaluations = _lines(source, config, config.iterations)
        kept = {*config.output.keep, *checkpoints_of(source)[-1:]}
        checkpoints = [manifest.place_of(source / CHECKPOINTS, m) for m in sorted(kept)]
        partial.mkdir(parents=True)
        claim(config, partial)
        for line in evaluations:
            copy_pictures(source / "samples", partial / "samples", line["iteration"])
            copy_scores(source, partial, line)
        for name in (METRICS, EVALUATIONS, _ENVIRONMENT):
            if (source / name).exists():
                write_bytes(partial / name, (source / name).read_bytes())
        if config.output.export:
            _copy_tree(source / _EXPORT, partial / _EXPORT)
        for checkpoint in checkpoints:
            _copy_checkpoint(checkpoint, partial, manifest.read(checkpoint))
        _write_origin(partial, source, metrics, makers_of(source))
        write_json(partial / ACCEPTED, accepted.model_dump())
        of_copy = {
            "hash": claimed(partial),
            "accepted": measured((partial / ACCEPTED).read_bytes()).sha256,
        }
        write_json(partial / RESULT, sealed({**loads(text), **of_copy}))
        partial.rename(folder)
        flush(folder.parent)
    except (DamagedFileError, FileNotFoundError, ValueError, LookupError, TypeError) as error:
        raise UnfitError(f"{source}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def makers_of(folder: Path) -> list[tuple[int, MadeOn]]:
    """What computed each part of a run: the part's first iteration, and what its bytes depend on.
    Empty where a record does not say."""
    copied = origin(folder)
    parts: list[tuple[int, MadeOn]] = []
    if copied is not None:
        parts += copied["made_on"] or [(0, {})]
    parts += [(attempt.began_at, attempt.made_on or {}) for attempt in read_attempts(folder)]
    return parts if all(maker for _, maker in parts) else []


def _check_same(
    source: Path, makers: list[tuple[int, MadeOn]], iterations: int, made_on: MadeOn
) -> None:
    """UnfitError where the source's first iterations were computed on something else."""
    if all(began_at > 0 for began_at, _ in makers):
        raise UnfitError(f"{source}: does not say on what its first iterations ran")
    for maker in (maker for began_at, maker in makers if began_at < iterations):
        for key, value in made_on.items():
            if maker.get(key) != value:
                raise UnfitError(f"{source}: was made with another {key}")


def _lines(
    source: Path, config: RunConfig, iterations: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of metrics.jsonl and eval.jsonl of a run's first iterations.

    The evaluation after the last of them may be missing, or not belong to this run: the trainer
    makes it.
    """
    metrics = [m for m in jsonlines.whole_lines(source / METRICS) if m["iteration"] < iterations]
    numbers = [line["iteration"] for line in metrics]
    if len(numbers) < iterations or numbers != list(range(iterations)):
        raise UnfitError(f"{source}: {METRICS} lacks lines")
    measured = Measured(config, source)
    evals = [
        line
        for line in jsonlines.whole_lines(source / EVALUATIONS)
        if line["iteration"] <= iterations and measured.belongs(line)
    ]
    judged = {line["iteration"] for line in evals}
    if any(measured.due(m) and m not in judged for m in range(iterations)):
        raise UnfitError(f"{source}: {EVALUATIONS} lacks lines, or {SCORES} lacks theirs")
    return metrics, evals


def _copy_lines(
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    source: Path,
    folder: Path,
    made_on: MadeOn,
) -> None:
    """Copy lines, and the pictures and scores of the evaluations; record where they come from."""
    metrics, evaluations = lines
    # Pictures and scores first: an evaluation that has a line is not made again.
    for line in evaluations:
        copy_pictures(source / "samples", folder / "samples", line["iteration"])
        copy_scores(source, folder, line)
    jsonlines.replace(folder / METRICS, metrics)
    jsonlines.replace(folder / EVALUATIONS, evaluations)
    _write_origin(folder, source, metrics, [(0, made_on)])


def _write_origin(
    folder: Path, source: Path, metrics: list[dict[str, Any]], makers: list[tuple[int, MadeOn]]
) -> None:
    """Record from which run these iterations were copied, and what that ran on."""
    origin = {
        "run": f"{source.parent.name}/{source.name}",
        "iterations": len(metrics),
        "seconds": sum(line.get("seconds_total", 0.0) for line in metrics),
        "trained_by": trained_by(source, len(metrics)),
        "made_on": makers,
    }
    write_json(folder / ORIGIN, origin)


def copy_pictures(samples: Path, target: Path, iteration: int) -> None:
    """Copy the pictures of one evaluation, and the list of their prompts, between samples/ folders.

    UnfitError for a link that leads out of the folder.
    """
    target.mkdir(exist_ok=True)
    if (samples / "prompts.json").exists():
        write_bytes(target / "prompts.json", (samples / "prompts.json").read_bytes())
    pictures = samples / f"{iteration:06d}"
    if pictures.is_dir():
        _copy_tree(pictures, target / pictures.name, linked=False)


def copy_scores(source: Path, folder: Path, line: dict[str, Any]) -> None:
    """Copy the scores of the evaluation with this line; those of earlier versions have none.

    UnfitError where they are damaged.
    """
    digest = line.get(SCORES_DIGEST)
    if digest is None:
        return
    try:
        content = scores_bytes(source, line["iteration"], digest)
    except DamagedFileError as damaged:
        raise UnfitError(str(damaged)) from None
    write_scores(folder, line["iteration"], content)


def _copy_checkpoint(checkpoint: Path, folder: Path, content: dict[str, Any]) -> None:
    """Copy a checkpoint, by hard links where the disk has them: its files never change.

    UnfitError for a damaged one.
    """
    root = folder / CHECKPOINTS
    root.mkdir(exist_ok=True)
    partial = root / f"{checkpoint.name}{manifest.PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name in (*content["files"], manifest.NAME):
            manifest.check_inside(checkpoint / name, checkpoint)
            _link(checkpoint / name, partial / name)
        for name, digest in content["files"].items():
            manifest.check(partial / name, digest)
        for file in partial.iterdir():
            flush(file)
        flush(partial)
        final = root / checkpoint.name
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        flush(root)
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UnfitError(f"{checkpoint}: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_tree(source: Path, target: Path, linked: bool = True) -> None:
    """Copy the files of a folder; unlike shutil's function it raises the original error. UnfitError
    for a link that leads out of the folder."""
    target.mkdir(exist_ok=True)
    for file in sorted(source.rglob("*")):
        try:
            manifest.check_inside(file, source)
        except ValueError as error:
            raise UnfitError(str(error)) from error
        copy = target / file.relative_to(source)
        if file.is_dir():
            copy.mkdir(exist_ok=True)
        elif linked:
            _link(file, copy)
        else:
            shutil.copyfile(file, copy)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the disk has no hard links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
