"""A run that computes nothing: what is left of its time is the harness's own.

    python -m benchmarks.trivial FILE [options of harness.sweep]

is `python -m harness.sweep` with it as the training function, and without a report. Every run
leaves in its folder how many seconds it took itself.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from benchmarks.finished import REWARDS, write_finished_files
from harness import sweep as command
from harness.launching import job
from harness.study.spec import Sweep
from mixgrpo.cli import run as run_command
from mixgrpo.errors import RunError
from mixgrpo.files.atomic import write_json
from mixgrpo.runs.folder import claim
from mixgrpo.settings.config import RunConfig

OWN_SECONDS = "own_seconds.json"

MEASURED = {
    "window_start": 0,
    "window_size": 4,
    "seconds_total": 0.985,
    "evaluations_computed": 2192,
    "backward_computed": 320,
    "nfe_rollout": 25.0,
    "nfe_train": 4.0,
}
SCORES = {f"reward_{name}_mean": 0.5 for name in REWARDS}


def train(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> Literal["finished", "stopped"]:
    begin = time.perf_counter()
    claim(config, folder)
    metrics = "".join(
        json.dumps({"iteration": m} | MEASURED) + "\n" for m in range(config.iterations)
    )
    total, every = config.iterations, config.evaluation.every
    evals = [
        {"iteration": m, "seconds_total": 0.0} | SCORES for m in (*range(0, total, every), total)
    ]
    write_finished_files(folder, config, metrics.encode(), evals)
    write_json(folder / OWN_SECONDS, time.perf_counter() - begin)
    return "finished"


def no_report(sweep: Sweep, runs: Path, reports: Path) -> Path | RunError:
    return reports / sweep.name / "index.html"


if __name__ == "__main__":
    job.TRAIN = "benchmarks.trivial:train"
    command.write_report = no_report
    run_command(command.main)
