"""Stands in for mixgrpo.train: writes the same files, learns nothing, and misbehaves on demand.

The environment variable FAKE_TRAIN holds JSON: behaviour by run name (`interval=1-seed0`), or "*".
Behaviours: seconds (per iteration), raise_at, repeatable_at, wrapped_at, no_space_at, fill_at (the
disk, in truth), config_error, warn (in every iteration), kill_at (once), always_kill_at, show (a
variable of the environment, in the metrics), score.
"""

import errno
import json
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.files import manifest
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import measured, sealed
from mixgrpo.runs.folder import claim
from mixgrpo.settings.config import SCHEMA_VERSION, RunConfig
from mixgrpo.settings.identity import config_hash

log = logging.getLogger("mixgrpo.fake_train")


def run(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> Literal["finished", "stopped"]:
    claim(config, folder)
    if (folder / "result.json").exists():
        return "finished"
    behaviours: dict[str, Any] = json.loads(os.environ.get("FAKE_TRAIN", "{}"))
    behaviour = behaviours.get("*", {}) | behaviours.get(folder.name.rpartition("-")[0], {})
    if behaviour.get("config_error"):
        raise ConfigError("the rollout has more prompts than there are")
    (folder / "checkpoints").mkdir(exist_ok=True)
    made = [p.name for p in (folder / "checkpoints").iterdir()]
    done = max((int(name) for name in made if name.isdigit()), default=0)
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        kept = metrics.read_text().splitlines()[:done]
        metrics.write_text("".join(line + "\n" for line in kept))
    value = behaviour.get("score", 0.5 + 0.01 * config.window.interval + 0.001 * config.seed)
    if done == 0:
        (folder / "eval.jsonl").unlink(missing_ok=True)
        _evaluate(config, folder, 0, 0.5)
    judged = (
        done > 0 and f'"iteration": {config.iterations},' in (folder / "eval.jsonl").read_text()
    )
    while done < config.iterations:
        if should_stop():
            _checkpoint(folder, done)
            return "stopped"
        time.sleep(behaviour.get("seconds", 0.01))
        should_stop()  # as the trainer does: raises where the folder is gone
        if done == behaviour.get("raise_at"):
            raise ValueError("the fake trainer was told to raise")
        if done == behaviour.get("repeatable_at"):
            raise RepeatableError("the reward clip raised")
        if done == behaviour.get("wrapped_at"):
            try:
                raise ValueError("the fake trainer was told to raise")
            except ValueError as cause:
                raise RunError("reward clip: failed") from cause
        if done == behaviour.get("fill_at"):
            with (folder.parent / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        if "warn" in behaviour:
            warnings.warn(behaviour["warn"], stacklevel=1)
        if done == behaviour.get("no_space_at"):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(metrics))
            raise RunError(f"{metrics}: no space left; free some and run again") from full
        if done == behaviour.get("kill_at") and not (folder / "killed_once").exists():
            (folder / "killed_once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if done == behaviour.get("always_kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        line = {
            "iteration": done,
            "pid": os.getpid(),
            "window_start": config.make_window().start_at(done),
            "window_size": config.window.size,
            "evaluations_computed": 100,
            "backward_computed": 10,
            "nfe_rollout": 8,
            "nfe_train": 2,
            "reward_composition_mean": value,
            "seconds_total": behaviour.get("seconds", 0.01),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        log.info("%d of %d iterations", done + 1, config.iterations)
        if "show" in behaviour:
            line[behaviour["show"]] = os.environ.get(behaviour["show"])
        with metrics.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        done += 1
        usual = done % config.output.checkpoint_every == 0 or done == config.iterations
        if usual or done in config.output.keep:
            _checkpoint(folder, done)
    if not judged:
        _evaluate(config, folder, done, value)
    if config.output.export:
        (folder / "weights").mkdir(exist_ok=True)
    # As the lines say, which may come from the run that this one began as.
    lines = [json.loads(text) for text in (folder / "eval.jsonl").read_text().splitlines()]
    before, after = ({"composition": lines[k]["reward_composition_mean"]} for k in (0, -1))
    result = {
        "schema": SCHEMA_VERSION,
        "hash": config_hash(config),
        "seed": config.seed,
        "iterations": done,
        "before": before,
        "after": after,
        "seconds_total": 0.01 * done,
        "evaluations_computed": 100 * done,
        "backward_computed": 10 * done,
        "nfe_rollout": 8.0,
        "nfe_train": 2.0,
        # It evaluates before and after alone, whatever the configuration says.
        "digests": {
            name: measured((folder / name).read_bytes()).model_dump()
            for name in ("eval.jsonl", "metrics.jsonl")
        },
    }
    write_json(folder / "result.json", sealed(result))
    return "finished"


def _checkpoint(folder: Path, done: int) -> None:
    """One without tensors, whole or absent."""
    place = folder / "checkpoints" / f"{done:06d}"
    partial = place.with_name(f"{place.name}.partial")
    if not place.exists():
        partial.mkdir(exist_ok=True)
        said = {"format": manifest.FORMAT, "iteration": done, "files": {}, "made_on": {}}
        (partial / manifest.NAME).write_text(json.dumps(said))
        partial.rename(place)


def _evaluate(config: RunConfig, folder: Path, iteration: int, value: float) -> None:
    line = {
        "iteration": iteration,
        "reward_composition_mean": value,
        "reward_composition_std": 0.1,
        "prompts": 16,
        "images": 16,
        "seconds_total": 0.001,
    }
    with (folder / "eval.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
