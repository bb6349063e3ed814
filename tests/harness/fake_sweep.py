"""`python -m harness.sweep` with the fake trainer and without a report: a real launcher process."""

import sys
from pathlib import Path

from harness import sweep
from harness.launching import job
from harness.study.spec import Sweep
from mixgrpo.cli import run as run_command

sys.path.insert(0, str(Path(__file__).parent))


def no_report(made: Sweep, runs: Path, reports: Path) -> Path:
    return reports / made.name / "index.html"


if __name__ == "__main__":
    job.TRAIN = "fake_train:run"
    sweep.write_report = no_report
    run_command(sweep.main)
