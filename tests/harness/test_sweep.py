"""Sweeps through real launcher and job processes, with a trainer that learns nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import sweep as sweeps
from harness.launching.dispatch import Local, Start
from harness.launching.launcher import Launcher, SweepWork
from harness.launching.screen import Progress
from harness.launching.status import as_data, as_text
from harness.launching.sweep_lease import LAUNCHER
from harness.slurm.scheduler import Scheduler
from harness.study.spec import Sweep
from mixgrpo.errors import RunError
from mixgrpo.files.lease import Lease, is_held

from .lab import SEARCHED, SMALL, SWEEP, Lab

SLOW = {"*": {"seconds": 0.3}}


def test_two_arms_by_two_seeds_end_to_end_and_once_more(lab: Lab) -> None:
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert "4 of 4 runs finished" in output
    assert "report: " in output
    states = lab.states()
    assert {s.state for s in states.values()} == {"finished"}
    assert all(lab.iterations(name) == list(range(6)) for name in states)
    line = json.loads(
        (states["interval=1-seed0"].folder / "metrics.jsonl").read_text().split("\n")[0]
    )
    assert line["threads"] == "1"

    code, output = lab.finish("--jobs", "2")
    assert code == 0
    assert "started" not in output
    assert lab.attempts() == {name: ["finished"] for name in states}

    # A new arm and a new seed are added; what is no longer in the file is only told.
    lab.write(SWEEP.replace("[1, 3]", "[3, 2]").replace("seeds: 2", "seeds: 1"))
    gone = [state.folder for state in states.values() if state.run.arm == "interval=1"]
    code, output = lab.finish("--jobs", "2")
    assert code == 0
    assert re.findall(r"(\S+): started", output) == ["interval=2-seed0"]
    assert "3 run(s) are no longer in" in output
    assert all(str(folder) in output for folder in gone)
    assert all(folder.exists() for folder in gone)
    code, output = lab.finish("--prune", "--yes")
    assert code == 0
    assert not any(folder.exists() for folder in gone)
    assert {s.state for s in lab.states().values()} == {"finished"}


def test_a_killed_job_is_noticed_at_once_and_continues(lab: Lab) -> None:
    lab.write(SMALL)
    begin = time.monotonic()
    code, output = lab.finish("--jobs", "2", fake={"interval=3-seed0": {"kill_at": 3}})
    assert code == 0, output
    assert "interval=3-seed0: lost after 3/6 iterations: its process was killed" in output
    assert "interval=3-seed0: started again (2)" in output
    assert lab.attempts()["interval=3-seed0"] == ["killed", "finished"]
    assert lab.iterations("interval=3-seed0") == list(range(6))
    assert time.monotonic() - begin < 15  # submitit alone would take 17 s to notice


def test_after_a_kill_of_launcher_and_job_the_same_command_finishes(lab: Lab) -> None:
    lab.write(SMALL)
    launcher = lab.launch("--jobs", "1", fake=SLOW)
    state = lab.wait_for(lambda s: s["interval=1-seed0"].iteration >= 3)["interval=1-seed0"]
    launcher.kill()
    launcher.wait()
    os.kill(state.attempts[-1].pid, signal.SIGKILL)
    assert lab.wait_for(lambda s: s["interval=1-seed0"].state == "lost")
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["killed", "finished"]
    assert lab.iterations("interval=1-seed0") == list(range(6))


def test_jobs_outlive_their_launcher_and_are_picked_up(lab: Lab) -> None:
    lab.write(SMALL)
    launcher = lab.launch("--jobs", "2", fake=SLOW)
    lab.wait_for(lambda s: sum(x.state == "running" for x in s.values()) == 2)
    launcher.kill()
    launcher.wait()
    os.killpg(launcher.pid, signal.SIGHUP)  # the terminal closes
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())


def test_ctrl_c_leaves_everything_resumable(lab: Lab) -> None:
    launcher = lab.launch("--jobs", "2", fake=SLOW)
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 2)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, output
    assert "stopped; everything is resumable: the same command continues" in output
    assert "Traceback" not in output
    states = lab.states()
    assert [s.state for s in states.values()] == ["stopped", "stopped", "waiting", "waiting"]
    reached = {name: s.iteration for name, s in states.items()}
    assert all(0 < reached[name] < 6 for name in ("interval=1-seed0", "interval=3-seed0"))

    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["stopped", "finished"]
    assert all(lab.iterations(name) == list(range(6)) for name in states)


def test_sigterm_during_an_inline_run_leaves_it_resumable(lab: Lab) -> None:
    launcher = lab.launch("--executor", "inline", fake=SLOW)
    lab.wait_for(lambda s: s["interval=1-seed0"].iteration >= 1)
    launcher.terminate()
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 143, output
    assert lab.states()["interval=1-seed0"].state == "stopped"
    code, output = lab.finish("--executor", "inline")
    assert code == 0, output
    assert {s.state for s in lab.states().values()} == {"finished"}


def test_a_failure_hides_nothing_and_runs_again_only_when_asked(lab: Lab) -> None:
    broken = {"interval=1-seed0": {"raise_at": 2}, "interval=1-seed1": {"config_error": True}}
    code, output = lab.finish("--jobs", "4", fake=broken)
    assert code == 1
    assert "2 of 4 runs finished" in output
    assert "interval=1-seed0: failed: ValueError: the fake trainer was told to raise" in output
    assert "interval=1-seed1: failed: the rollout has more prompts than there are" in output
    assert "report: " in output
    failed = lab.states()["interval=1-seed0"]
    assert "Traceback" in (failed.attempts[-1].error or "")

    code, output = lab.finish("--jobs", "2")
    assert code == 1
    assert "started" not in output
    assert lab.attempts()["interval=1-seed0"] == ["exception"]

    code, output = lab.finish("--jobs", "2", "--retry", "failed")
    assert code == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["exception", "finished"]


def test_a_full_disk_stops_the_sweep_with_all_runs_resumable(lab: Lab) -> None:
    inline = ("--executor", "inline")
    code, output = lab.finish(*inline, fake={"interval=1-seed0": {"no_space_at": 2}})
    assert code == 1
    assert "no space left; free some and run again" in output
    states = [s.state for s in lab.states().values()]
    assert states == ["lost", "waiting", "waiting", "waiting"]
    code, output = lab.finish(*inline)
    assert code == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["no-space", "finished"]


def test_a_disk_that_fills_up_ends_the_sweep_with_one_error(small_disk: Path, lab: Lab) -> None:
    fake = {"interval=1-seed0": {"fill_at": 2}, "*": {"seconds": 0.3}}
    code, output = lab.finish("--jobs", "2", fake=fake)
    assert code == 1, output
    assert "Traceback" not in output
    assert "No space left on device" in output
    assert not any(s.state in ("running", "failed") for s in lab.states().values())
    (small_disk / "toy" / "filler").unlink()
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert all(lab.iterations(name) == list(range(6)) for name in lab.states())


def test_a_disk_that_is_full_before_a_job_starts_stops_the_others(
    small_disk: Path, lab: Lab
) -> None:
    launcher = lab.launch("--jobs", "2", fake={"*": {"seconds": 0.2}})
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 2)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output
    assert "Traceback" not in output
    filler.unlink()
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert all(lab.iterations(name) == list(range(6)) for name in lab.states())


def test_a_place_where_jobs_cannot_start_is_one_error_and_stops_the_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    monkeypatch.setenv("FAKE_TRAIN", json.dumps({"*": {"seconds": 0.3}}))
    executor = Local(2, "fake_train:run")
    (lab.runs / "toy").mkdir(parents=True)
    scheduler = Scheduler(lab.runs / "toy")
    launcher = Launcher(
        SweepWork(lab.sweep),
        lab.runs,
        Progress("composition", False),
        lambda _: executor,
        scheduler,
    )
    start = executor.start

    def full_after_one(starts: Sequence[Start]) -> list[str]:
        if executor._active:
            lab.wait_for(lambda s: s["interval=1-seed0"].iteration >= 1)
            raise OSError(28, "No space left on device")  # as submitit's own write: no file named
        return start(starts)

    monkeypatch.setattr(executor, "start", full_after_one)
    with pytest.raises(RunError, match=r"no space .* under .*runs: No space left.*make room"):
        launcher.go()
    states = [s.state for s in lab.states().values()]
    assert states == ["stopped", "waiting", "waiting", "waiting"]


def test_the_log_of_a_healthy_run_has_its_iterations(lab: Lab) -> None:
    lab.write(SMALL)
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    log = lab.states()["interval=1-seed0"].folder / "log" / "1.log"
    assert [line for line in log.read_text().splitlines() if "iterations" in line] == [
        f"{n} of 6 iterations" for n in range(1, 7)
    ]


def test_what_a_job_warns_of_is_said_once_and_kept(lab: Lab) -> None:
    lab.write(SMALL)
    text = "the clip range lies below the noise floor"
    fake = {"interval=3-seed0": {"warn": text}}
    for executor in ("local", "inline"):
        code, output = lab.finish("--executor", executor, fake=fake)
        assert code == 0, output
        assert output.count(f"interval=3-seed0: warning: {text}") == 1
        assert f"interval=3-seed0: warning: {text}" in as_text(lab.observe())
        warned = {run["arm"]: run["warnings"] for run in as_data(lab.observe())["runs"]}
        assert warned == {"interval=1": [], "interval=3": [text]}
        code, output = lab.finish("--executor", executor)
        assert (code, "warning" in output) == (0, False)  # said when it happened
        shutil.rmtree(lab.runs)


def test_two_launchers_at_once_run_nothing_twice(lab: Lab) -> None:
    lab.write(SMALL)
    first = lab.launch("--jobs", "2", fake=SLOW)
    second = lab.launch("--jobs", "2", fake=SLOW)
    outputs = [launcher.communicate(timeout=60)[0] for launcher in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())
    holder, follower = sorted((first, second), key=lambda p: "following" in outputs[p is second])
    output = outputs[follower is second]
    assert f"process {holder.pid} on" in output
    assert "runs this sweep: following it" in output


def test_never_more_than_the_slots_at_once(lab: Lab) -> None:
    lab.write(SWEEP.replace("[1, 3]", "[1, 2, 3, 4]").replace("seeds: 2", "seeds: 1"))
    launcher = lab.launch("--jobs", "2", fake={"*": {"seconds": 0.1}})
    most = 0
    while launcher.poll() is None:
        most = max(most, sum(s.state == "running" for s in lab.states().values()))
        time.sleep(0.02)
    assert launcher.returncode == 0
    assert most == 2
    spans = [(a.started, a.ended) for s in lab.states().values() for a in s.attempts]
    assert len(spans) == 4
    for start, _ in spans:
        assert sum(s <= start < (e or 0.0) for s, e in spans) <= 2


def test_detach_returns_and_the_same_command_picks_up(lab: Lab) -> None:
    lab.write(SMALL)
    code, output = lab.finish("--detach", "--jobs", "2", fake={"*": {"seconds": 0.6}})
    assert code == 0, output
    background = int(re.findall(r"process (\d+) runs toy in the background", output)[0])
    try:
        code, output = lab.finish("--detach")
        assert code == 1
        assert f"process {background} on" in output
        code, output = lab.finish()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(background, signal.SIGTERM)
    assert code == 0, output
    assert f"process {background} on" in output
    assert "started" not in output
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())
    assert "interval=1-seed0: started" in (lab.runs / "toy" / "launcher.log").read_text()


def test_what_goes_to_the_background_takes_the_lease_along(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that returns does not give back what its child owns by then."""
    taken: list[Lease] = []

    def to_background(sweep: Sweep, runs: Path, held: Lease, *_: object) -> bool:
        taken.append(held)
        return False

    monkeypatch.setattr(sweeps, "go_to_background", to_background)
    lab.write(SMALL)
    assert sweeps.main(lab.file, runs=lab.runs, reports=lab.root / "reports", detach=True) == 0
    assert is_held(lab.runs / "toy" / LAUNCHER)
    taken[0].release()
    assert not is_held(lab.runs / "toy" / LAUNCHER)


def test_a_profile_for_another_machine_is_in_nobodys_way(lab: Lab) -> None:
    """Its prompts are not here, so that nobody can say which folders are its own."""
    away = "\nprofiles:\n  here: {}\n  away: {set: {prompts.train: /nowhere/prompts.txt}}\n"
    lab.write(SMALL + away)
    code, output = lab.finish()
    assert code == 0, output
    lab.write(SMALL.replace("[1, 3]", "[3]") + away)
    before = sorted(lab.runs.glob("toy/*-seed*"))
    assert len(before) == 2
    code, output = lab.finish()
    assert code == 0, output
    assert "no longer in" not in output
    code, output = lab.finish("--prune")
    assert code == 2, output
    assert "prompts.train: /nowhere/prompts.txt" in output
    assert "nothing was moved" in output
    assert sorted(lab.runs.glob("toy/*-seed*")) == before
    command = [sys.executable, "-m", "harness.status", str(lab.file), "--runs", str(lab.runs)]
    status = subprocess.run(command, capture_output=True, text=True)
    assert (status.returncode, status.stderr) == (0, "")


@pytest.mark.parametrize("name", ["tau", "smoke"])
def test_what_ships_is_planned_where_nothing_else_is(name: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "harness.sweep", str(root / "sweeps" / f"{name}.yaml"), "--plan"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{name} (" in done.stdout or f"{name}: " in done.stdout


def test_prune_stops_a_live_run_before_it_removes_it(lab: Lab) -> None:
    launcher = lab.launch("--jobs", "2", fake={"*": {"seconds": 0.5}})
    states = lab.wait_for(lambda s: sum(len(x.attempts) for x in s.values()) == 2)
    launcher.kill()
    launcher.wait()
    lab.write(SWEEP.replace("[1, 3]", "[1]").replace("seeds: 2", "seeds: 1"))
    gone = states["interval=3-seed0"]
    code, output = lab.finish("--prune", "--yes")
    assert code == 0, output
    assert f"moved {gone.folder} to " in output
    assert not gone.folder.exists()
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", f"{gone.attempts[-1].pid}"], capture_output=True
    )
    assert status.stdout.strip() in (b"", b"Z")


def test_only_and_plan(lab: Lab) -> None:
    code, output = lab.finish("--plan")
    assert code == 0
    assert not lab.runs.exists()
    assert "toy: 2 arms x 2 seeds = 4 runs; reference interval=1" in output
    assert "window       steps 0-3 to 5-8: start 0-5, 1 iteration each" in output
    assert "window       steps 0-3 to 1-4: start 0-1, 3 iterations each" in output
    assert "unknown: no run of this configuration has finished in one go" in output
    code, output = lab.finish("--only", "interval=3", "--executor", "inline")
    assert code == 0, output
    assert [s.state for s in lab.states().values()] == ["waiting", "finished"] * 2
    code, output = lab.finish("--plan")
    assert re.search(r"interval=3.*?2 finished.*?about \d+ s per run", output, re.DOTALL)
    assert "2 of 4 runs to do" in output


def test_plan_names_arms_that_are_the_same_schedule(lab: Lab) -> None:
    lab.write(SWEEP.replace("[1, 3]", "[1, 6, 7, 8]"))
    code, output = lab.finish("--plan")
    assert code == 0
    assert output.count("same schedule:") == 1
    assert "same schedule: interval=6, interval=7 and interval=8" in output


def test_a_run_folder_of_another_version_is_one_clear_error(lab: Lab) -> None:
    assert lab.finish("--only", "interval=1", "--executor", "inline")[0] == 0
    folder = lab.states()["interval=1-seed0"].folder
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"schema": 99}))
    code, output = lab.finish()
    assert code == 1
    assert output.startswith(f"error: {folder}: was written by another version (schema 99")
    assert output.count("\n") == 1
    (folder / "result.json").write_text(json.dumps(result))
