"""The status: counts, cost, why runs failed, and that it writes nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.progress import duration, seconds_left, summary, time_left
from harness.status import as_data, as_text
from harness.store import RunState

from .lab import Lab


@pytest.fixture
def mixed(lab: Lab) -> Lab:
    """One finished, one failed, one stopped and one waiting run."""
    broken = {"interval=3-seed0": {"raise_at": 2}}
    lab.finish("--executor", "inline", "--only", "interval=1", fake=broken)
    lab.finish("--executor", "inline", "--only", "interval=3", fake=broken)
    states = lab.states()
    record = states["interval=3-seed1"].folder / "attempts" / "1.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps(data | {"ended": data["started"] + 10, "reason": "stopped"}))
    (record.parents[1] / "result.json").unlink()
    return lab


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_status_says_what_failed_and_why_and_writes_nothing(mixed: Lab) -> None:
    before = contents(mixed.root)
    text = as_text(mixed.observe())
    assert "toy: 4 runs: 2 finished, 1 stopped, 1 failed" in text
    assert (
        "interval=3-seed0: failed at 2/6 iterations, 1 attempt; log: python -m harness.logs" in text
    )
    assert "    ValueError: the fake trainer was told to raise" in text
    assert "stopped, the sweep's command continues them: interval=3-seed1" in text
    assert "cost: " in text

    options = [str(mixed.file), "--runs", str(mixed.runs), "--json"]
    command = [sys.executable, "-m", "harness.status", *options]
    data = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert data["counts"] == {"finished": 2, "stopped": 1, "failed": 1}
    assert data["launcher"] is None
    failed = next(run for run in data["runs"] if run["state"] == "failed")
    assert (failed["arm"], failed["iteration"], failed["reason"]) == ("interval=3", 2, "exception")
    assert "Traceback" in failed["error"]
    assert contents(mixed.root) == before


def test_status_of_a_sweep_that_never_ran(lab: Lab) -> None:
    assert as_text(lab.observe()) == "toy: 4 runs: 4 waiting"
    assert as_data(lab.observe())["counts"] == {"waiting": 4}
    assert not lab.runs.exists()


def test_watch_ends_quietly_at_ctrl_c(lab: Lab) -> None:
    command = [sys.executable, "-m", "harness.status", str(lab.file), "--watch"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert "4 waiting" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=10)
    assert (watch.returncode, said) == (130, "")


def test_time_left_counts_iterations_and_evaluations_over_the_slots(lab: Lab) -> None:
    def state(index: int, name: str, iteration: int, pace: float | None) -> RunState:
        run = lab.sweep.runs[index]
        return RunState(
            run,
            lab.root,
            name,  # type: ignore[arg-type]
            iteration=iteration,
            seconds_per_iteration=pace,
            seconds_per_evaluation=None if pace is None else 3.0,
        )

    running = state(0, "running", 2, 1.0)
    waiting = state(1, "waiting", 0, None)
    assert seconds_left(running) == 4 * 1.0 + 3.0
    assert seconds_left(waiting) is None
    assert time_left([waiting], 2) is None
    # The waiting run is taken to be like the other: 6 iterations and the last evaluation.
    assert time_left([running, waiting], 1) == 7.0 + 9.0
    assert time_left([running, waiting], 2) == 9.0
    assert time_left([state(0, "finished", 6, 1.0)], 2) == 0.0
    assert summary([running, waiting], 1) == "2 runs: 1 running, 1 waiting, about 16 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
