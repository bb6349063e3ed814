"""What every executor must do: one suite for this process, for local processes and for Slurm."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.launching import dispatch
from harness.launching.cluster import Cluster as SlurmExecutor
from harness.launching.dispatch import Executor, Inline, Local, Start
from harness.launching.resources import Slurm
from harness.runs import environment
from harness.runs.folder import STOP, read_attempts
from harness.runs.result import read_result
from harness.runs.state import RunState, look
from harness.slurm.commands import check_path
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER

from ..harness.lab import HERE, SEARCHED, SWEEP
from .cluster import Cluster

TRAIN = "fake_train:run"
SMALL = Slurm(gpus=0, cpus=1, time=5, poll_s=1)


class Bench:
    """A sweep's folder, an executor on it, and what is to be seen of the runs."""

    def __init__(self, folder: Path, name: str) -> None:
        (folder / "toy.yaml").write_text(SWEEP)
        self.sweep = load_sweep(folder / "toy.yaml")
        self.runs, self.place = folder / "runs", folder / "runs" / "toy"
        self.place.mkdir(parents=True)
        self.scheduler = Scheduler(self.place, poll_s=1)
        self.name = name

    def make(self, slots: int = 2) -> Executor:
        if self.name == "inline":
            return Inline(lambda: False, TRAIN)
        if self.name == "local":
            return Local(slots, TRAIN)
        asked = SMALL.model_copy(update={"at_once": slots})
        wishes = {arm.name: asked for arm in self.sweep.arms}
        return SlurmExecutor("toy", self.place, wishes, print, TRAIN)

    def start(self, index: int) -> Start:
        run = self.sweep.runs[index]
        folder = self.place / run.folder_name
        folder.mkdir(exist_ok=True)
        return Start(run, folder)

    def look(self, start: Start) -> RunState:
        return look(self.sweep, start.run, self.runs, self.scheduler.job_states())

    def wait(self, executor: Executor, *starts: Start) -> list[RunState]:
        """Until the jobs of all of these are over."""
        until(lambda: all(executor.over(self.look(start)) for start in starts))
        return [self.look(start) for start in starts]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)


@pytest.fixture(params=["inline", "local", "slurm"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in environment.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    return Bench(tmp_path, request.param)


def behave(monkeypatch: pytest.MonkeyPatch, **by_run: dict[str, object]) -> None:
    monkeypatch.setenv("FAKE_TRAIN", json.dumps(by_run))


def test_a_job_runs_to_its_end_with_its_threads_and_can_be_done_twice(bench: Bench) -> None:
    executor, start = bench.make(), bench.start(0)
    assert executor.start([start]) == [start.name]
    (state,) = bench.wait(executor, start)
    assert state.state == "finished"
    assert read_result(start.folder) is not None
    line = json.loads((start.folder / "metrics.jsonl").read_text().split("\n")[0])
    assert line["threads"] == "1"
    # A run has its result a moment before its job has written how it ended.
    until(lambda: read_attempts(start.folder)[0].reason == "finished")
    (attempt,) = read_attempts(start.folder)
    assert (attempt.executor, attempt.began_at) == (bench.name, 0)
    assert (attempt.commit, attempt.dirty) == environment.commit()
    if attempt.log is not None:
        assert (start.folder / attempt.log).exists()
    executor.start([start])
    bench.wait(executor, start)
    until(lambda: len(read_attempts(start.folder)) == 2)
    until(lambda: read_attempts(start.folder)[-1].reason == "finished")


def test_an_exception_ends_its_job_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, **{"interval=1-seed0": {"raise_at": 1}})
    executor, starts = bench.make(), [bench.start(0), bench.start(1)]
    for start in starts:
        executor.start([start])
    failed, other = bench.wait(executor, *starts)
    assert (failed.state, other.state) == ("failed", "finished")
    (attempt,) = failed.attempts
    assert attempt.reason == "exception"
    assert "told to raise" in (attempt.error or "")
    if attempt.log is not None:
        assert "told to raise" in (failed.folder / attempt.log).read_text()


def test_a_run_that_another_process_owns_is_left_alone(bench: Bench) -> None:
    executor, start = bench.make(), bench.start(0)
    held = lease.acquire(start.folder / OWNER)
    assert held is not None
    executor.start([start])
    time.sleep(4 if bench.name != "inline" else 0)
    assert read_attempts(start.folder) == ()
    assert not (start.folder / "metrics.jsonl").exists()
    held.release()


def test_a_stop_file_ends_a_job_with_a_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bench.name == "inline":
        # An inline job asks its launcher instead.
        executor: Executor = Inline(lambda: True, TRAIN)
        start = bench.start(0)
        executor.start([start])
    else:
        behave(monkeypatch, **{"*": {"seconds": 0.2}})
        executor, start = bench.make(), bench.start(0)
        executor.start([start])
        until(lambda: (start.folder / "metrics.jsonl").exists())
        (start.folder / STOP).touch()
    (state,) = bench.wait(executor, start)
    assert (state.state, state.reason) == ("stopped", "stopped")
    (start.folder / STOP).unlink(missing_ok=True)


@pytest.mark.parametrize("bench", ["local", "slurm"], indirect=True)
def test_never_more_than_the_slots_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, **{"*": {"seconds": 0.1}})
    executor, left = bench.make(2), [bench.start(i) for i in range(4)]
    starts, begin = list(left), time.monotonic()
    while left:
        assert time.monotonic() - begin < 60
        for start in starts:
            executor.over(bench.look(start))
        taken = executor.start(left)
        left = [start for start in left if start.name not in taken]
        time.sleep(0.05)
    bench.wait(executor, *starts)
    spans = [(a.started, a.ended or 0.0) for s in starts for a in read_attempts(s.folder)]
    assert len(spans) == 4
    for begin, _ in spans:
        assert sum(b <= begin < e for b, e in spans) <= 2


@pytest.mark.parametrize("bench", ["local", "slurm"], indirect=True)
def test_a_killed_job_is_over_and_lost_and_continues(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, **{"interval=1-seed0": {"kill_at": 3}})
    executor, start = bench.make(), bench.start(0)
    executor.start([start])
    (state,) = bench.wait(executor, start)
    assert (state.state, state.iteration) == ("lost", 3)
    executor.start([start])
    (state,) = bench.wait(executor, start)
    assert state.state == "finished"
    assert [a.reason for a in state.attempts] == ["killed", "finished"]
    assert [a.began_at for a in state.attempts] == [0, 2]
    lines = (start.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(6))


@pytest.mark.parametrize("bench", ["local"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_local_job_stops_at_a_signal_and_ignores_the_terminal(
    number: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, **{"*": {"seconds": 0.1}})
    executor, start = bench.make(), bench.start(0)
    executor.start([start])
    until(lambda: (start.folder / "metrics.jsonl").exists())
    (attempt,) = read_attempts(start.folder)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        os.kill(attempt.pid, ignored)
    os.kill(attempt.pid, number)
    (state,) = bench.wait(executor, start)
    assert (state.state, state.reason) == ("stopped", "stopped")
    assert state.iteration < 6


@pytest.mark.parametrize("bench", ["local"], indirect=True)
def test_local_slots_have_cores_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if environment.cores() < 2:
        pytest.skip("needs two cores")
    behave(monkeypatch, **{"*": {"seconds": 0.3}})
    executor, starts = bench.make(2), [bench.start(0), bench.start(1)]
    executor.start(starts)
    until(lambda: all((s.folder / "metrics.jsonl").exists() for s in starts))
    pids = [read_attempts(start.folder)[0].pid for start in starts]
    cores = [os.sched_getaffinity(pid) for pid in pids]
    assert [len(own) for own in cores] == [1, 1]
    assert not cores[0] & cores[1]
    bench.wait(executor, *starts)


def test_every_start_has_a_fresh_folder(tmp_path: Path) -> None:
    names = [dispatch._fresh(tmp_path / "log").name for _ in range(3)]
    assert names == ["start001", "start002", "start003"]


def test_slots_follow_gpus_then_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert (Local(None).slots, Local(None).gpus) == (3, ["2", "5", "7"])
    assert Local(6).slots == 6
    assert Inline(lambda: False).gpu == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Local(None).slots == environment.cores()
    assert Local(None).gpus == []


@pytest.mark.parametrize("bench", ["local", "slurm"], indirect=True)
def test_a_snapshot_is_what_runs_whatever_becomes_of_the_code(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.launching import snapshot

    checkout = tmp_path / "checkout"
    root = Path(snapshot.__file__).parents[2]
    subprocess.run(["git", "clone", "-q", str(root), str(checkout)], check=True)
    for package in ("harness", "mixgrpo"):  # the code as it is now, committed or not
        subprocess.run(["cp", "-r", str(root / package), str(checkout)], check=True)
    subprocess.run(["git", "-C", str(checkout), "add", "-A"], check=True)
    marker = checkout / "harness" / "marker.py"
    marker.write_text("WORD = 'as submitted'\n")
    trainer = checkout / "harness" / "marked.py"
    trainer.write_text(
        "import time\nfrom pathlib import Path\n\n\n"
        "def run(config, folder, should_stop):\n"
        "    while not (folder / 'go').exists():\n        time.sleep(0.05)\n"
        "    from harness.marker import WORD\n"
        "    (folder / 'word').write_text(WORD)\n    return 'stopped'\n"
    )
    subprocess.run(["git", "-C", str(checkout), "add", "-A"], check=True)
    monkeypatch.setattr(
        snapshot, "__file__", str(checkout / "harness" / "launching" / "snapshot.py")
    )
    copy = snapshot.take(bench.place)
    assert snapshot.take(bench.place) == copy
    wishes = {arm.name: SMALL for arm in bench.sweep.arms}
    executor: Executor = (
        Local(1, "harness.marked:run", copy)
        if bench.name == "local"
        else SlurmExecutor("toy", bench.place, wishes, print, "harness.marked:run", copy)
    )
    start = bench.start(0)
    executor.start([start])
    until(lambda: read_attempts(start.folder))
    marker.write_text("WORD = 'changed since'\n")
    (start.folder / "go").touch()
    bench.wait(executor, start)
    assert (start.folder / "word").read_text() == "as submitted"
    (attempt,) = read_attempts(start.folder)
    assert attempt.commit is not None
    assert attempt.commit == environment.commit()[0]
    assert attempt.dirty is not None


def test_folders_of_hard_names_reach_a_job_and_its_log(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `harness.slurm.commands.check_path` lets pass; what it refuses was seen to lose its
    log."""
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    started = []
    for name in ("a b", "a'b", 'a"b', "a$HOMEb", "~a", "a #b", "\u00fc;b"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, "slurm")
        check_path(bench.place)
        start = bench.start(0)
        assert bench.make().start([start]) == [start.name]
        started.append(start)
    for start in started:
        until(lambda folder=start.folder: read_result(folder) is not None)
        (attempt,) = read_attempts(start.folder)
        assert (start.folder / str(attempt.log)).is_file()
