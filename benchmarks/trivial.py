"""A run that computes nothing: what is left of its time is the harness's own.

    python -m benchmarks.trivial FILE [options of harness.sweep]

is `python -m harness.sweep` with it as the training function, and without a report. Every run
leaves in its folder how many seconds it took itself.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from harness import sweep as command
from harness.spec import Sweep
from mixgrpo.atomic import write_json
from mixgrpo.cli import run as run_command
from mixgrpo.config import SCHEMA_VERSION, RunConfig
from mixgrpo.errors import RunError
from mixgrpo.folder import claim
from mixgrpo.identity import config_hash

OWN_SECONDS = "own_seconds.json"


def train(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> Literal["finished", "stopped"]:
    begin = time.perf_counter()
    claim(config, folder)
    rewards = {"composition": 0.5, "palette": 0.9, "strict": 0.3}
    write_json(
        folder / "result.json",
        {
            "schema": SCHEMA_VERSION,
            "hash": config_hash(config),
            "seed": config.seed,
            "iterations": config.iterations,
            "before": rewards,
            "after": rewards,
            "seconds_total": 0.0,
            "evaluations_computed": 0,
            "backward_computed": 0,
            "nfe_rollout": 0.0,
            "nfe_train": 0.0,
        },
    )
    write_json(folder / OWN_SECONDS, time.perf_counter() - begin)
    return "finished"


def no_report(sweep: Sweep, runs: Path, reports: Path) -> Path | RunError:
    return reports / sweep.name / "index.html"


if __name__ == "__main__":
    command.TRAIN = "benchmarks.trivial:train"  # type: ignore[attr-defined]
    command.write_report = no_report
    run_command(command.main)
