"""The evaluation before training, made once for all runs that begin with the same weights.

It depends on the weights, the prompts, the rewards, the evaluation's sampler and the seed, and not
on how training is done: the arms of a sweep share it. It is cached beside the stored runs
(`harness.runs.store`), under a digest of everything that it depends on.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from harness.launching.adopt import MadeOn, UnfitError, copy_pictures, copy_scores
from mixgrpo.errors import ConfigError
from mixgrpo.files import jsonlines
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    SCORES,
    DamagedFileError,
    is_line,
    loads,
)
from mixgrpo.runs.folder import claim
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_digest

FOLDER = "evaluations"
"""In the store."""
_LINE, _SAMPLES = "evaluation.json", "samples"
_OF_TRAINING = ("iterations", "window", "optimizer", "objective", "rollout", "sampler")
"""Settings that do not change the untrained weights or their evaluation."""


def take(store: Path, folder: Path, config: RunConfig, made_on: MadeOn) -> bool:
    """Copy the evaluation before training into a run that has no measurements yet, if it is cached.
    Whether it was. For the holder of the run's lease; OSError for a full disk."""
    kept = _kept(store, config, made_on)
    if any((folder / name).exists() for name in (METRICS, EVALUATIONS)):
        return False
    line = _read(kept)
    if line is None:
        if kept.is_dir():  # a damaged one: the next run's takes its place
            shutil.rmtree(kept, ignore_errors=True)
        return False
    claim(config, folder)
    # Pictures and scores before the line: an evaluation that has its line is not made again.
    try:
        copy_pictures(kept / _SAMPLES, folder / _SAMPLES, 0)
        copy_scores(kept, folder, line)
    except UnfitError:
        return False
    jsonlines.replace(folder / EVALUATIONS, [line])
    return True


def keep(store: Path, folder: Path, config: RunConfig, made_on: MadeOn) -> None:
    """Cache the evaluation before training that this run made. A failure costs the other runs only
    time."""
    partial = None
    with contextlib.suppress(OSError, ConfigError, DamagedFileError, UnfitError):
        kept = _kept(store, config, made_on)
        lines = [x for x in jsonlines.whole_lines(folder / EVALUATIONS) if x["iteration"] == 0]
        if kept.is_dir() or not lines or not is_line(EVALUATIONS, lines[0]):
            return
        partial = kept.with_name(f"{kept.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        copy_pictures(folder / _SAMPLES, partial / _SAMPLES, 0)
        copy_scores(folder, partial, lines[0])
        write_json(partial / _LINE, _signed(lines[0], partial / _SAMPLES))
        partial.rename(kept)
    if partial is not None:
        shutil.rmtree(partial, ignore_errors=True)


def _signed(line: dict[str, Any], samples: Path) -> dict[str, Any]:
    """A line of eval.jsonl with the digests of itself and of its pictures."""
    files = [samples / "prompts.json", *sorted((samples / "000000").glob("*"))]
    digests = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }
    text = json.dumps([line, digests], sort_keys=True)
    return {
        "line": line,
        "pictures": digests,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _read(kept: Path) -> dict[str, Any] | None:
    """The line that is cached in a folder; None without one, and where anything was changed."""
    try:
        record = loads((kept / _LINE).read_bytes())
        line: dict[str, Any] = record["line"]
        valid = is_line(EVALUATIONS, line) and line["iteration"] == 0
        return line if valid and record == _signed(line, kept / _SAMPLES) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _kept(store: Path, config: RunConfig, made_on: MadeOn) -> Path:
    untrained = RunConfig()
    same: dict[str, Any] = {name: getattr(untrained, name) for name in _OF_TRAINING}
    same["evaluation"] = config.evaluation.model_copy(update={"final_images_per_prompt": None})
    # Earlier versions kept no scores beside it.
    parts = [config_digest(config.model_copy(update=same)), config.output.samples, made_on, SCORES]
    text = json.dumps(parts, sort_keys=True)
    return store / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
