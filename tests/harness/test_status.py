"""The status: counts, cost, why runs failed, and that it writes nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launching.launcher import Launcher, SweepWork
from harness.launching.screen import Progress
from harness.launching.status import Observer, as_data, as_text
from harness.runs.progress import cells, seconds_left, summary, time_left
from harness.runs.records import Attempt
from harness.runs.state import RunState
from harness.slurm.scheduler import Scheduler
from mixgrpo.cli import say
from mixgrpo.compute import phase
from mixgrpo.compute.phase import PhaseFile
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from mixgrpo.text.words import duration

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


def warned_states(lab: Lab, texts: list[str]) -> list[RunState]:
    """The sweep's runs, each with an attempt that warned of one of the texts."""
    states = []
    for run, text in zip(lab.sweep.runs, texts, strict=True):
        tried = Attempt(
            number=1, pid=1, started=0.0, ended=1.0, reason="finished", warnings=(text,)
        )
        states.append(RunState(run, lab.root, "running", (tried,)))
    return states


def test_a_warning_of_many_runs_is_one_line_with_a_count(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"iteration {n}: drift {n}.5e-0{n} has grown; lower sampler.eta" for n in range(1, 5)]
    states = warned_states(lab, texts)
    with Progress("composition", False) as progress:
        progress.warnings([])
        progress.warnings(states)
    said = f"4 of 4 runs ({states[0].run.name} and others): warning: {texts[0]}"
    assert capsys.readouterr().out.splitlines() == [said]
    # One after the other: said with the first, counted at the end.
    with Progress("composition", False) as progress:
        progress.warnings([])
        for count in range(1, 5):
            progress.warnings(states[:count])
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{states[0].run.name}: warning: {texts[0]}"
    assert last == f"4 runs in all warned: {texts[0]}"
    seen = lab.observe()
    seen.states = states
    assert as_text(seen).count("warning") == 1
    assert said in as_text(seen)


def test_results_and_gains_of_runs_and_arms(mixed: Lab) -> None:
    text, data = as_text(mixed.observe()), as_data(mixed.observe())
    # The fake trainer begins at 0.5 and ends at 0.5 + 0.01 interval + 0.001 seed.
    assert "interval=1: composition 0.510, gain +0.011 (2 finished runs)" in text
    arm = data["arms"]["interval=1"]
    assert (arm["finished"], data["measure"]) == (2, "composition")
    assert arm["gain"] == pytest.approx(0.0105)
    gains = {(run["arm"], run["seed"]): run["gain"] for run in data["runs"]}
    assert gains["interval=1", 1] == pytest.approx(0.011)
    assert gains["interval=3", 0] == 0.0  # failed after its first evaluation
    assert data["arms"]["interval=3"]["score"] is None


def test_a_running_run_shows_its_phase(lab: Lab) -> None:
    folder = lab.runs / "toy" / lab.sweep.runs[0].folder_name
    (folder / "attempts").mkdir(parents=True)
    said = PhaseFile(folder)

    def shown(pid: int) -> str:
        record = {"number": 1, "pid": pid, "started": 1.0}
        (folder / "attempts" / "1.json").write_text(json.dumps(record))
        state = lab.states()[lab.sweep.runs[0].name]
        assert state.state == "running"
        return cells(state, "composition")[4]

    owner = lease.acquire(folder / OWNER)
    assert owner is not None
    try:
        assert shown(os.getpid()) == "starting"
        said.enter("loading")
        assert shown(os.getpid()) == "loading"
        said.enter("evaluating", 0.4)
        assert shown(os.getpid()) == "evaluating 40 %"
        assert shown(os.getpid() + 1) == "starting"  # a killed process wrote it
        assert as_data(lab.observe())["runs"][0]["phase"] is None
        wrong = '{"phase": "x", "part": "y", "pid": 1}'
        for broken in ("", "[1]", '{"phase": 1}', wrong, "[" * 9999):
            (folder / phase.FILE).write_text(broken)
            assert shown(os.getpid()) == "starting"
    finally:
        owner.release()
    said.close()
    assert not list(folder.glob("*phase*"))


def test_a_job_that_has_not_come_to_its_lease_is_under_way(lab: Lab) -> None:
    class Slow:
        slots, outlive = 2, False

        def over(self, state: RunState) -> bool:
            return False

    progress = Progress("composition", False)
    (lab.runs / "toy").mkdir(parents=True)
    executor = Slow()
    launcher = Launcher(
        SweepWork(lab.sweep),
        lab.runs,
        progress,
        lambda _: executor,  # type: ignore[arg-type,return-value]
        Scheduler(lab.runs / "toy"),
    )
    launcher.active = {run.folder_name for run in lab.sweep.runs[:2]}
    assert summary(launcher._shown(), None) == "4 runs: 2 running, 2 waiting"
    executor.outlive = True
    assert summary(launcher._shown(), None) == "4 runs: 2 queued, 2 waiting"


def test_no_text_of_a_run_moves_the_cursor(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J \u202e at https://me:secret@host/ :smile: [red]x[/red]"
    states = warned_states(lab, [evil] * 4)
    failed = Attempt(number=1, pid=1, started=0.0, ended=1.0, reason="exception", error=evil)
    with Progress("composition", True) as progress:
        progress.say(evil)
    states.append(RunState(lab.sweep.runs[0], lab.root, "failed", (failed,)))
    say(as_text(Observer(lab.sweep, lab.runs, Scheduler(lab.runs / "toy"), states=states)))
    out = capsys.readouterr().out
    shown = r"\x1b]0;owned\x07\x1b[2J \u202e at https://...@host/ :smile: [red]x[/red]"
    assert out.count(shown) == 3  # said, the failure's error, the warnings
    assert "secret" not in out
    assert "\x1b]0" not in out
