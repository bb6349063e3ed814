"""Folders that are renamed, removed or replaced under whoever works in them: none is made again.

Real launcher and job processes with the trainer that learns nothing.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.launching.job import Job, make_job
from mixgrpo.files import lease
from tests.harness.lab import SMALL, SWEEP, Lab

SLOW = {"*": {"seconds": 0.3}}
GONE = "was renamed, removed or replaced while this command worked in it"


def processes_end(lab: Lab, pids: set[int]) -> None:
    """Wait until none of these processes is left."""
    end = time.monotonic() + lab.patience_s / 2
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < end, "jobs go on without their folder"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    stat = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return stat.stdout.strip() != "" and not stat.stdout.startswith("Z")


def running_pids(lab: Lab, at_least: int = 1) -> set[int]:
    states = lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) >= at_least)
    return {s.attempts[-1].pid for s in states.values() if s.attempts}


@pytest.mark.parametrize(
    ("renamed", "executor"),
    [("runs", ("--jobs", "2")), ("runs/toy", ("--jobs", "2")), ("runs", ("--executor", "inline"))],
)
def test_a_launcher_whose_folder_was_renamed_stops_and_makes_nothing_in_its_place(
    lab: Lab, renamed: str, executor: tuple[str, ...]
) -> None:
    lab.write(SMALL)
    launcher = lab.launch(*executor, fake=SLOW)
    pids = running_pids(lab)
    there, away = lab.root / renamed, lab.root / "away"
    there.rename(away)
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 1, output
    assert f"error: {lab.runs / 'toy'}: {GONE}" in output
    assert "put the folder back and run the same command again to continue" in output
    assert "Traceback" not in output
    processes_end(lab, pids)
    assert not there.exists()

    away.rename(there)
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert all(reasons[-1] == "finished" for reasons in lab.attempts().values())
    assert lab.attempts()["interval=1-seed0"] == ["killed", "finished"]
    assert all(lab.iterations(name) == list(range(6)) for name in lab.states())


def test_a_launcher_whose_folder_was_replaced_by_a_copy_leaves_the_copy_alone(lab: Lab) -> None:
    lab.write(SMALL)
    launcher = lab.launch("--jobs", "2", fake=SLOW)
    pids = running_pids(lab, 2)
    copy = lab.root / "copy"
    with contextlib.suppress(shutil.Error):  # files that are replaced at this moment
        shutil.copytree(lab.runs / "toy", copy)
    (lab.runs / "toy").rename(lab.root / "away")
    copy.rename(lab.runs / "toy")

    def content() -> dict[str, bytes]:
        files = [p for p in (lab.runs / "toy").rglob("*") if p.is_file()]
        return {str(p): p.read_bytes() for p in files if "log" not in p.parts}

    before = content()
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 1, output
    assert GONE in output
    processes_end(lab, pids)
    assert content() == before


def test_two_jobs_never_write_one_record(lab: Lab) -> None:
    """A folder renamed under a job, another run begun in its place, and the first put back."""
    lab.write(SMALL)
    slow = {"*": {"seconds": 0.5}}
    first = lab.launch("--jobs", "1", fake=slow)
    pids = running_pids(lab)
    lab.runs.rename(lab.root / "away")
    first.communicate(timeout=30)
    second = lab.launch("--jobs", "1", fake=slow)
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) >= 1)
    shutil.rmtree(lab.runs, ignore_errors=True)
    if lab.runs.exists():
        shutil.rmtree(lab.runs)
    (lab.root / "away").rename(lab.runs)
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 1, output
    processes_end(lab, pids)
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["killed", "finished"]


def test_who_follows_a_launcher_does_not_make_its_folder_again(lab: Lab) -> None:
    lab.write(SMALL)
    first = lab.launch("--jobs", "2", fake=SLOW)
    running_pids(lab)
    second = lab.launch("--jobs", "2", fake=SLOW)
    assert second.stdout is not None
    assert "following it" in second.stdout.readline()
    lab.runs.rename(lab.root / "away")
    for launcher in (first, second):
        output, _ = launcher.communicate(timeout=30)
        assert launcher.returncode == 1, output
        assert "was renamed, removed or replaced" in output
        assert "Traceback" not in output
    assert not lab.runs.exists()


def test_a_run_whose_folder_was_removed_is_named_and_not_begun_again(lab: Lab) -> None:
    lab.write(SMALL)
    launcher = lab.launch("--jobs", "2", fake=SLOW)
    states = lab.wait_for(lambda s: all(x.iteration >= 1 for x in s.values()))
    folder = states["interval=1-seed0"].folder
    folder.rename(lab.root / "away")
    output, _ = launcher.communicate(timeout=40)
    assert launcher.returncode == 1, output
    assert "interval=1-seed0: its folder was renamed or removed while this command ran" in output
    assert "1 of 2 runs finished" in output
    assert not folder.exists()
    assert output.count("interval=1-seed0: started") == 1
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    # What was renamed was the link. The run itself is in the store, and goes on.
    assert lab.attempts()["interval=1-seed0"] == ["killed", "finished"]


def job(folder: Path, lab: Lab) -> Job:
    return make_job(folder, lab.sweep.runs[0].config, train="tests.harness.fake_train:run")


def test_a_job_without_its_folder_begins_nothing(lab: Lab) -> None:
    assert job(lab.runs / "toy" / "moved", lab).run(lambda: False) == "gone"
    assert not lab.runs.exists()


def test_a_job_whose_folder_is_moved_writes_nothing_in_its_place(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lab.root / "run"
    folder.mkdir()

    def moves() -> bool:
        if (folder / "metrics.jsonl").exists():
            folder.rename(lab.root / "away")
            folder.mkdir()  # something else under the same name
            (folder / "attempts").mkdir()
        return False

    assert job(folder, lab).run(moves) == "gone"
    assert [str(p.relative_to(folder)) for p in folder.rglob("*")] == ["attempts"]
    assert not lease.is_held(lab.root / "away" / "owner")  # given back all the same


@pytest.mark.parametrize(
    "command",
    [
        ["harness.status", "FILE"],
        ["harness.report", "FILE"],
        ["harness.sweep", "FILE", "--plan"],
        ["harness.sweep", "FILE", "--cancel"],
        ["harness.probe", "FILE"],
        ["harness.logs", "interval=1-seed0"],
    ],
)
def test_no_command_that_looks_makes_the_folder(lab: Lab, command: list[str]) -> None:
    lab.write(SWEEP)
    words = [str(lab.file) if word == "FILE" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--runs", str(lab.runs)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert not lab.runs.exists()
