"""Stands in for mixgrpo.train in searches: its reward is a known function of the settings.

The environment variable FAKE_CURVE holds JSON: seconds (per iteration), raise_arm (a part of the
arm's name: its runs raise), lose_run (a part of a run's name: it fails by what is around it).
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mixgrpo.errors import RunError
from mixgrpo.files.atomic import write_json
from mixgrpo.runs.folder import claim
from mixgrpo.settings.config import SCHEMA_VERSION, RunConfig
from mixgrpo.settings.identity import config_hash


def reward(config: RunConfig) -> float:
    """What a run ends with: best at interval 7, more with each seed, the size does nothing."""
    return 0.6 - 0.01 * abs(config.window.interval - 7) + 0.001 * config.seed


def run(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> Literal["finished", "stopped"]:
    claim(config, folder)
    if (folder / "result.json").exists():
        return "finished"
    told: dict[str, Any] = json.loads(os.environ.get("FAKE_CURVE", "{}"))
    (folder / "checkpoints").mkdir(exist_ok=True)
    done = max((int(p.name) for p in (folder / "checkpoints").iterdir()), default=0)
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
        kept = [line for line in lines if json.loads(line)["iteration"] < done]
        (folder / name).write_text("".join(line + "\n" for line in kept))
    end = reward(config)
    while done < config.iterations:
        if done % config.evaluation.every == 0:
            _evaluate(folder, done, 0.4 + (end - 0.4) * done / config.iterations)
        if should_stop():
            (folder / "checkpoints" / f"{done:06d}").mkdir(exist_ok=True)
            return "stopped"
        if "raise_arm" in told and told["raise_arm"] in folder.name:
            raise ValueError("the fake trainer was told to raise")
        if "lose_run" in told and told["lose_run"] in folder.name:
            raise RunError("the fake memory is full: lower the batch")
        time.sleep(told.get("seconds", 0.0))
        line = {"iteration": done, "pid": os.getpid(), "seconds_total": 0.5}
        line |= {"window_start": 0, "window_size": config.window.size, "backward_computed": 10}
        line |= {"nfe_rollout": 8, "nfe_train": 2}
        line |= {"evaluations_computed": 100 * config.window.size}
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        done += 1
        (folder / "checkpoints" / f"{done:06d}").mkdir(exist_ok=True)
    _evaluate(folder, done, end)
    (folder / "weights").mkdir(exist_ok=True)
    rewards = {"composition": 0.4}
    write_json(
        folder / "result.json",
        {
            "schema": SCHEMA_VERSION,
            "hash": config_hash(config),
            "seed": config.seed,
            "iterations": done,
            "before": rewards,
            "after": rewards | {"composition": end},
            "seconds_total": 0.5 * done,
            "evaluations_computed": 100 * done * config.window.size,
            "backward_computed": 10 * done,
            "nfe_rollout": 8.0,
            "nfe_train": 2.0,
        },
    )
    return "finished"


def _evaluate(folder: Path, iteration: int, value: float) -> None:
    line = {"iteration": iteration, "reward_composition_mean": value, "seconds_total": 0.001}
    with (folder / "eval.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
