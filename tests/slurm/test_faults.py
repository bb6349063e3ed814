"""Sweeps on a real Slurm, whose parts are killed: nothing is lost, nothing runs twice."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest

from harness.launching.status import as_data, as_text
from harness.runs.ledger import START_UP, ledger
from harness.slurm import submissions

from ..harness.lab import SMALL, SWEEP, Lab
from .cluster import Cluster

ONE = SWEEP.replace("[1, 3]", "[1]").replace("seeds: 2", "seeds: 1")
NAME = "interval=1-seed0"


def slow(seconds: float = 0.3) -> dict[str, dict[str, float]]:
    return {"*": {"seconds": seconds}}


def complete(lab: Lab) -> bool:
    """Whether every run is finished, with each iteration once."""
    states = lab.states()
    assert {state.state for state in states.values()} == {"finished"}
    assert all(lab.iterations(name) == list(range(s.total)) for name, s in states.items())
    return True


def wasted(lab: Lab) -> set[str]:
    seen = lab.observe()
    return set(ledger(seen.states, seen.folder).wasted) - {START_UP}


def test_a_sweep_goes_through_arrays_and_once_more_does_nothing(lab: Lab, slurm: Cluster) -> None:
    code, output = lab.finish("--slurm", "max_array=3")
    assert code == 0, output
    assert "4 of 4 runs finished" in output
    assert complete(lab)
    made = submissions.read(lab.runs / "toy")
    assert [len(s.tasks) for s in made] == [3, 1]
    ids = {a.job_id for state in lab.states().values() for a in state.attempts}
    assert ids == {made[0].task_id(i) for i in range(3)} | {made[1].job}
    assert {a.host for s in lab.states().values() for a in s.attempts} <= set(slurm.nodes)
    code, output = lab.finish()
    assert (code, "started" in output) == (0, False)
    assert len(submissions.read(lab.runs / "toy")) == 2


def test_jobs_outlive_a_killed_launcher_and_the_next_one_follows_them(lab: Lab) -> None:
    launcher = lab.launch(fake=slow())
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 4)
    launcher.kill()
    launcher.wait()
    code, output = lab.finish()
    assert code == 0, output
    assert "started" not in output
    assert complete(lab)
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())


def test_ctrl_c_leaves_the_jobs_to_slurm_and_cancel_ends_them(lab: Lab, slurm: Cluster) -> None:
    launcher = lab.launch("--slurm", "at_once=2", fake=slow())
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 2)
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, output
    assert "4 run(s) go on in Slurm without this command" in output
    code, output = lab.finish("--cancel")
    assert code == 0, output
    assert "2 queued run(s) cancelled; 2 running one(s) stop after their iteration" in output
    slurm.wait_idle()
    seen = lab.observe()
    seen.scheduler.poll_s = 0.5
    slurm.wait(lambda: seen.look() or {s.state for s in seen.states} == {"stopped"}, "all stopped")
    reasons = sorted(s.reason or "" for s in seen.states)
    assert reasons == ["cancelled"] * 2 + ["stopped"] * 2
    code, output = lab.finish()
    assert code == 0, output
    assert complete(lab)


def test_a_launcher_killed_right_after_sbatch_loses_no_job_and_starts_none_twice(
    lab: Lab, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = shutil.which("sbatch"), os.environ["PATH"]
    fatal = tmp_path / "bin" / "sbatch"
    fatal.parent.mkdir()
    fatal.write_text(f'#!/bin/sh\n{real} "$@"\nkill -9 $PPID\n')
    fatal.chmod(fatal.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{fatal.parent}:{path}")
    launcher = lab.launch()
    launcher.communicate(timeout=30)
    assert launcher.returncode == -signal.SIGKILL
    (record,) = submissions.read(lab.runs / "toy")
    assert record.job is None
    monkeypatch.setenv("PATH", path)
    slurm.wait(lambda: slurm.jobs(), "the orphans are in the queue")
    code, output = lab.finish()
    assert code == 0, output
    assert complete(lab)
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())
    (second,) = submissions.read(lab.runs / "toy")
    assert second.job is not None
    assert second.token != record.token


def test_a_cancelled_job_stays_stopped_until_the_next_command(lab: Lab, slurm: Cluster) -> None:
    lab.write(SMALL)
    first = lab.launch(fake={NAME: {"seconds": 2.0}})
    state = lab.wait_for(lambda s: s[NAME].iteration >= 1)[NAME]
    first.kill()
    first.wait()
    launcher = lab.launch()  # also for one that only follows
    assert launcher.stdout is not None
    slurm.wait(lambda: lab.observe().launcher, "it follows")
    time.sleep(2)
    slurm.run("scancel", str(state.attempts[-1].job_id))
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output
    assert f"{NAME}: stopped" in output
    assert f"{NAME}: started" not in output
    assert "1 of 2 runs finished" in output
    code, output = lab.finish()
    assert code == 0, output
    assert complete(lab)


def test_a_killed_process_is_started_again_at_once(lab: Lab) -> None:
    lab.write(ONE)
    code, output = lab.finish(fake={NAME: {"kill_at": 3}})
    assert code == 0, output
    assert f"{NAME}: started again (2)" in output
    assert lab.attempts()[NAME] == ["killed", "finished"]
    assert complete(lab)


def test_a_run_that_never_gets_anywhere_is_given_up_in_the_end(lab: Lab) -> None:
    lab.write(ONE)
    code, output = lab.finish(fake={NAME: {"always_kill_at": 1}})
    assert code == 1, output
    assert lab.attempts()[NAME] == ["killed", "killed", None]
    assert "0 of 1 runs finished" in output
    assert f"{NAME}: lost" in output


@pytest.mark.parametrize("user_signal", [True, False])
def test_a_preempted_run_continues_with_and_without_a_signal(
    lab: Lab, slurm: Cluster, user_signal: bool
) -> None:
    slurm.preempt_with_signal(user_signal)
    lab.write(ONE)
    launcher = lab.launch("--slurm", "sbatch={nodelist: n1}", fake=slow(1.5))
    lab.wait_for(lambda s: s[NAME].iteration >= 3)
    slurm.run(
        "sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert complete(lab)
    # One submission: it is Slurm or the job itself that put it back into the queue.
    assert len(submissions.read(lab.runs / "toy")) == 1
    first, *_, last = lab.states()[NAME].attempts
    assert (first.reason, last.reason) == ("yielded", "finished")
    assert (first.restarts, last.restarts) == (0, 1)
    assert last.began_at > first.began_at


def test_a_node_that_dies_gives_its_run_to_another(lab: Lab, slurm: Cluster) -> None:
    lab.write(ONE)
    launcher = lab.launch(fake=slow(0.5))
    state = lab.wait_for(lambda s: s[NAME].iteration >= 3)[NAME]
    node = str(state.attempts[-1].host)
    slurm.power_off(node)
    output, _ = launcher.communicate(timeout=90)
    assert launcher.returncode == 0, output
    assert complete(lab)
    attempts = lab.states()[NAME].attempts
    assert [a.reason for a in attempts] == ["killed", "finished"]
    assert attempts[1].host != node
    assert attempts[1].began_at == 2
    lab.finish()
    assert wasted(lab) <= {"node-failure", "killed", "requeued"}


@pytest.mark.long
def test_a_controller_that_is_gone_for_a_while_changes_nothing(lab: Lab, slurm: Cluster) -> None:
    launcher = lab.launch(fake=slow(3.0))
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 4)
    slurm.kill_controller()
    time.sleep(4)
    assert launcher.poll() is None
    slurm.start_controller()
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert "started again" not in output
    assert complete(lab)
    assert all(reasons == ["finished"] for reasons in lab.attempts().values())


def test_a_controller_that_lost_its_memory_runs_nothing_twice(lab: Lab, slurm: Cluster) -> None:
    launcher = lab.launch(fake=slow(0.5))
    lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 4)
    slurm.kill_controller(saved=False)
    slurm.start_controller()
    output, _ = launcher.communicate(timeout=90)
    if launcher.returncode:
        assert lab.finish()[0] == 0, output
    assert complete(lab)
    for state in lab.states().values():
        spans = [(a.started, a.ended or 0.0) for a in state.attempts]
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.long
def test_a_real_time_limit_is_survived(lab: Lab) -> None:
    lab.patience_s = 200
    lab.write(ONE.replace("iterations: 6", "iterations: 75"))
    code, output = lab.finish("--slurm", "time=1", "--slurm", "signal_s=20", fake=slow(1.0))
    assert code == 0, output
    assert complete(lab)
    reasons = lab.attempts()[NAME]
    assert reasons == ["yielded"] * (len(reasons) - 1) + ["finished"]
    assert len(reasons) > 1
    assert len(submissions.read(lab.runs / "toy")) == 1


def test_packed_runs_share_a_job_and_nothing_else(lab: Lab, slurm: Cluster) -> None:
    fake = {"interval=1-seed0": {"raise_at": 2}, "*": {"seconds": 0.3}}
    launcher = lab.launch("--slurm", "pack=2", fake=fake)
    states = lab.wait_for(lambda s: sum(x.iteration >= 1 for x in s.values()) == 4)
    assert len({s.attempts[-1].job_id for s in states.values()}) == 2
    other = states["interval=3-seed0"].attempts[-1]
    assert other.job_id == states["interval=1-seed0"].attempts[-1].job_id
    os.kill(other.pid, signal.SIGKILL)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output
    assert lab.attempts() == {
        "interval=1-seed0": ["exception"],
        "interval=3-seed0": ["killed", "finished"],
        "interval=1-seed1": ["finished"],
        "interval=3-seed1": ["finished"],
    }
    (made, again) = submissions.read(lab.runs / "toy")
    assert [len(pack) for pack in made.tasks] == [2, 2]
    assert [len(pack) for pack in again.tasks] == [1]
    logs = [state.folder / str(state.attempts[-1].log) for state in lab.states().values()]
    assert all(log.exists() for log in logs)
    assert "told to raise" in logs[0].read_text()


def test_a_preempted_pack_is_queued_again_and_finishes_what_is_left(
    lab: Lab, slurm: Cluster
) -> None:
    lab.write(SMALL)
    fake = {"interval=1-seed0": {"seconds": 0.1}, "interval=3-seed0": {"seconds": 1.5}}
    options = ("--slurm", "pack=2", "--slurm", "sbatch={nodelist: n1}")
    launcher = lab.launch(*options, fake=fake)
    lab.wait_for(lambda s: s["interval=3-seed0"].iteration >= 3)
    slurm.run(
        "sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert complete(lab)
    assert lab.attempts()["interval=3-seed0"] == ["yielded", "finished"]
    assert lab.attempts()["interval=1-seed0"][0] == "finished"
    assert len(submissions.read(lab.runs / "toy")) == 1


def test_an_exception_in_a_pack_is_not_run_again_for_the_sake_of_the_others(
    lab: Lab, slurm: Cluster
) -> None:
    lab.write(SMALL)
    fake = {"interval=1-seed0": {"raise_at": 1}, "interval=3-seed0": {"seconds": 1.5}}
    launcher = lab.launch("--slurm", "pack=2", "--slurm", "sbatch={nodelist: n1}", fake=fake)
    lab.wait_for(lambda s: s["interval=3-seed0"].iteration >= 3)
    slurm.run(
        "sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output
    assert lab.attempts() == {
        "interval=1-seed0": ["exception"],
        "interval=3-seed0": ["yielded", "finished"],
    }


@pytest.mark.long
def test_a_run_that_slurm_itself_starts_again_and_again_is_given_up(
    lab: Lab, slurm: Cluster
) -> None:
    """A node that goes down with every attempt, before the first checkpoint."""
    lab.write(ONE)
    launcher = lab.launch(fake=slow(60.0))
    for number in range(1, 4):
        state = lab.wait_for(lambda s, n=number: len(s[NAME].attempts) == n)[NAME]  # type: ignore[misc]
        slurm.run("scontrol", "requeue", str(state.attempts[-1].job_id))
        slurm.wait(lambda: lab.states()[NAME].state != "running", "the attempt is over")
    output, _ = launcher.communicate(timeout=90)
    assert launcher.returncode == 1, output
    last = lab.states()[NAME].attempts[-1]
    assert last.reason == "no-progress"
    assert "attempts in a row ended without a new checkpoint" in str(last.error)


def test_gpus_and_shares_of_them_are_what_a_job_gets(lab: Lab) -> None:
    lab.write(SMALL)
    code, output = lab.finish("--slurm", "gpus=2", fake={"*": {"show": "CUDA_VISIBLE_DEVICES"}})
    assert code == 0, output
    for state in lab.states().values():
        line = json.loads((state.folder / "metrics.jsonl").read_text().splitlines()[0])
        assert len(line["CUDA_VISIBLE_DEVICES"].split(",")) == 2
        assert state.attempts[0].gpus == 2.0
    shutil.rmtree(lab.runs)
    code, output = lab.finish("--slurm", "shards=1", fake={"*": {"show": "CUDA_VISIBLE_DEVICES"}})
    assert code == 0, output
    for state in lab.states().values():
        line = json.loads((state.folder / "metrics.jsonl").read_text().splitlines()[0])
        assert len(line["CUDA_VISIBLE_DEVICES"].split(",")) == 1


def test_a_node_whose_clock_is_an_hour_off_harms_nothing(lab: Lab, slurm: Cluster) -> None:
    slurm.skew("n1", 3600)
    slurm.skew("n2", -3600)
    launcher = lab.launch(fake={"*": {"seconds": 0.3}, "interval=3-seed0": {"kill_at": 3}})
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert complete(lab)
    assert lab.attempts()["interval=3-seed0"] == ["killed", "finished"]
    assert as_data(lab.observe())["counts"] == {"finished": 4}


def test_a_site_without_accounting_is_no_worse_off(
    lab: Lab, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = tmp_path / "bin" / "sacct"
    mute.parent.mkdir()
    mute.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    mute.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mute.parent}:{os.environ['PATH']}")
    lab.write(SMALL)
    launcher = lab.launch(fake={NAME: {"seconds": 1.0}, "interval=3-seed0": {"kill_at": 2}})
    state = lab.wait_for(lambda s: s[NAME].iteration >= 1)[NAME]
    slurm.run("scancel", str(state.attempts[-1].job_id))
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output
    assert lab.attempts()["interval=3-seed0"] == ["killed", "finished"]
    assert f"{NAME}: started again" not in output
    assert lab.finish()[0] == 0
    assert complete(lab)


def test_what_is_queued_is_not_started_locally_as_well(lab: Lab, slurm: Cluster) -> None:
    for node in slurm.nodes:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    launcher = lab.launch()
    slurm.wait(lambda: len(slurm.jobs()) == 4, "all are queued")
    text = as_text(lab.observe())
    assert "4 runs: 4 queued" in text
    assert "in Slurm's queue: 4 " in text
    slurm.run("scontrol", "hold", *{job.id.partition("_")[0] for job in slurm.jobs()})
    assert "held, and will not start by themselves: scontrol release" in as_text(lab.observe())
    slurm.run("scontrol", "release", *{job.id.partition("_")[0] for job in slurm.jobs()})
    launcher.kill()
    launcher.wait()
    lab.executor = ("--executor", "local", "--jobs", "2")
    local = lab.launch()
    time.sleep(4)
    assert lab.attempts() == {name: [] for name in lab.states()}
    for node in slurm.nodes:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    output, _ = local.communicate(timeout=60)
    assert local.returncode == 0, output
    assert complete(lab)
    assert {a.executor for s in lab.states().values() for a in s.attempts} == {"slurm"}


def test_two_launchers_at_once_submit_once(lab: Lab) -> None:
    first, second = lab.launch(fake=slow()), lab.launch(fake=slow())
    outputs = [launcher.communicate(timeout=60)[0] for launcher in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert complete(lab)
    assert len(submissions.read(lab.runs / "toy")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slurm", "partition=nowhere"], "sbatch refuses: .*partition"),
        (["--slurm", "partitoin=gpu"], "--slurm partitoin=gpu: slurm: partitoin: unknown key; did"),
        (["--slurm", "time=soon"], "--slurm time=soon: slurm: time: 'soon' is not a time"),
        (["--slurm", "gpus"], "--slurm gpus: expected KEY=VALUE"),
        (["--slurm", "sharded=true"], "sharded: needs several processes"),
        (["--jobs", "3"], "--jobs: Slurm decides how many run"),
    ],
)
def test_what_cannot_be_asked_of_slurm_is_one_line_and_exit_code_2(
    lab: Lab, options: list[str], message: str
) -> None:
    import re

    code, output = lab.finish(*options)
    assert code == 2, output
    assert re.search(message, output), output
    assert output.strip().count("\n") <= 4  # what was said to start, and the error
    assert "Traceback" not in output
    assert submissions.read(lab.runs / "toy") == []


def test_plan_shows_arrays_hours_and_the_sbatch_text_and_submits_nothing(
    lab: Lab, slurm: Cluster
) -> None:
    lab.write(SWEEP + "slurm: {gpus: 4, time: '2:00:00', setup: [module load cuda]}\n")
    code, output = lab.finish("--trust", "--plan", "--slurm", "max_array=3")
    assert code == 0, output
    assert "array 1 of 2: 3 jobs; each 4 GPU(s), 1 cores, at most 2 h 00 min" in output
    assert "GPU hours: unknown; no iteration of these configurations has been finished" in output
    assert "#SBATCH --gpus-per-node=4" in output
    assert "#SBATCH --time=120" in output
    assert "module load cuda" in output
    assert not lab.runs.exists() or not slurm.jobs()
    with contextlib.suppress(FileNotFoundError):
        assert not list((lab.runs / "toy").glob("*"))
