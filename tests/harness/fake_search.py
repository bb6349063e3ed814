"""`python -m harness.search` with the fake trainer and without reports: a real launcher process."""

import sys
from pathlib import Path

from harness import search, sweep
from harness.launching import job
from harness.searching.file import Search
from harness.study.spec import Sweep
from mixgrpo.cli import run as run_command

sys.path.insert(0, str(Path(__file__).parent))


def no_report(made: Search, runs: Path, reports: Path, storage: str | None) -> Path:
    return reports / made.report_name / "index.html"


def no_sweep_report(made: Sweep, runs: Path, reports: Path) -> Path:
    return reports / made.report_name / "index.html"


if __name__ == "__main__":
    job.TRAIN = "fake_curve:run"
    sweep.write_report = no_sweep_report
    if "--with-report" in sys.argv:
        sys.argv.remove("--with-report")
    else:
        search.write_report = no_report
    run_command(search.main)
