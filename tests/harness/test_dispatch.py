"""Executors: what every one must do, in this process and in local ones."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from harness import dispatch, environment
from harness.dispatch import Executor, Inline, Local, make_executor
from harness.spec import Run
from harness.store import read_attempts, read_result
from mixgrpo.errors import ConfigError

from .lab import HERE, Lab

TRAIN = "fake_train:run"


@pytest.fixture(params=["inline", "local"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in environment.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    return make_executor(request.param, None, lambda: False, TRAIN)


def start_and_wait(executor: Executor, folder: Path, run: Run) -> None:
    handle = executor.start(0, folder, run.config)
    begin = time.monotonic()
    while not handle.done():
        assert time.monotonic() - begin < 30
        time.sleep(0.02)


def test_a_job_runs_to_its_end_with_one_thread_and_can_be_done_twice(
    executor: Executor, lab: Lab
) -> None:
    run = lab.sweep.runs[0]
    start_and_wait(executor, lab.root / "run", run)
    assert read_result(lab.root / "run") is not None
    line = json.loads((lab.root / "run" / "metrics.jsonl").read_text().split("\n")[0])
    assert line["threads"] == "1"
    start_and_wait(executor, lab.root / "run", run)
    attempts = read_attempts(lab.root / "run")
    assert [a.reason for a in attempts] == ["finished", "finished"]
    assert {a.executor for a in attempts} == {type(executor).__name__.lower()}


def test_an_exception_ends_the_job_and_not_the_executor(
    executor: Executor, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAIN", json.dumps({"*": {"raise_at": 1}}))
    start_and_wait(executor, lab.root / "run", lab.sweep.runs[0])
    (attempt,) = read_attempts(lab.root / "run")
    assert attempt.reason == "exception"
    assert "told to raise" in (attempt.error or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_local_job_stops_at_a_signal_and_ignores_the_terminal(
    number: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("FAKE_TRAIN", json.dumps({"*": {"seconds": 0.1}}))
    handle = Local(1, TRAIN).start(0, lab.root / "run", lab.sweep.runs[0].config)
    begin = time.monotonic()
    while not (lab.root / "run" / "metrics.jsonl").exists():
        assert time.monotonic() - begin < 30
        time.sleep(0.02)
    (attempt,) = read_attempts(lab.root / "run")
    for ignored in (signal.SIGINT, signal.SIGHUP):
        os.kill(attempt.pid, ignored)
    os.kill(attempt.pid, number)
    while not handle.done():
        assert time.monotonic() - begin < 30
        time.sleep(0.02)
    assert [a.reason for a in read_attempts(lab.root / "run")] == ["stopped"]
    assert len((lab.root / "run" / "metrics.jsonl").read_text().splitlines()) < 6


def test_every_submission_has_a_fresh_folder(tmp_path: Path) -> None:
    assert [dispatch._fresh(tmp_path / "log").name for _ in range(3)] == ["001", "002", "003"]


def test_slots_follow_gpus_then_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert (Local(None).slots, Local(None).gpus) == (3, ["2", "5", "7"])
    assert Local(6).slots == 6
    assert Inline(lambda: False).gpu == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Local(None).slots == environment.cores()
    assert Local(None).gpus == []
    with pytest.raises(ConfigError, match="one job at a time"):
        make_executor("inline", 2, lambda: False, TRAIN)
