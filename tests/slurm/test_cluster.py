"""The throw-away Slurm does what its methods promise, seen through Slurm's own clients."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .cluster import REPOSITORY, Cluster
from .conftest import reason_to_skip
from .hosts import HOSTS
from .processes import start_time


def submit(slurm: Cluster, script: str, *options: str, output: Path | None = None) -> str:
    """The number of a new batch job."""
    text = f"#!/bin/bash\n{script}\n"
    job = subprocess.run(
        [
            "sbatch",
            "--parsable",
            f"--output={output or '/dev/null'}",
            "--open-mode=append",
            *options,
        ],
        input=text,
        check=True,
        capture_output=True,
        text=True,
    )
    return job.stdout.strip()


def wait_state(slurm: Cluster, job: str, state: str, seconds: float = 30) -> None:
    slurm.wait(lambda: slurm.job(job)["JobState"] == state, f"job {job} {state}", seconds)


def wait_text(slurm: Cluster, file: Path, text: str) -> None:
    slurm.wait(lambda: file.exists() and text in file.read_text(), f"{text} in {file}")


def test_a_job_runs_on_its_node_with_its_gpus_and_is_accounted(slurm: Cluster, tmp_path: Path):
    output = tmp_path / "output"
    script = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; exit 3"
    job = submit(slurm, script, "--gpus-per-node=2", "--nodelist=n3", output=output)
    wait_state(slurm, job, "FAILED")
    assert output.read_text() == "n3 0,1\n"

    def account() -> str:
        return slurm.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,NodeList")

    slurm.wait(lambda: account() == "FAILED|3:0|n3", f"sacct's answer for {job}: {account()}")


def test_an_array_runs_no_more_tasks_at_once_than_it_may(slurm: Cluster, tmp_path: Path):
    script = f"cd {tmp_path}; touch $SLURM_ARRAY_TASK_ID; ls | wc -l; sleep 0.5; rm [0-9]*"
    script = script.replace("rm [0-9]*", "rm $SLURM_ARRAY_TASK_ID")
    seen = tmp_path / "seen"
    submit(slurm, f"({script}) >> {seen}", "--array=0-7%2", "--mem=100")
    slurm.wait_idle()
    # `seen` itself is listed as well. Whether a task is ever seen alone depends on the machine.
    assert max(int(count) for count in seen.read_text().split()) == 3
    assert len(seen.read_text().split()) == 8


def test_all_nodes_of_a_job_start_and_their_names_resolve(slurm: Cluster):
    ask = "import os, socket; n = os.environ['SLURMD_NODENAME']; print(n, socket.gethostbyname(n))"
    rows = slurm.run("srun", "--nodes=4", "/usr/bin/env", "python3", "-c", ask).splitlines()
    assert sorted(rows) == [f"n{i} 127.0.0.1" for i in (1, 2, 3, 4)]


def test_a_requeued_job_starts_again_under_its_number(slurm: Cluster, tmp_path: Path):
    output = tmp_path / "output"
    job = submit(slurm, "echo start ${SLURM_RESTART_COUNT:-0}; sleep 60", output=output)
    wait_text(slurm, output, "start 0")
    slurm.run("scontrol", "requeue", job)
    wait_text(slurm, output, "start 1")


def test_a_killed_controller_comes_back_with_its_queue(slurm: Cluster):
    running = submit(slurm, "sleep 60")
    waiting = submit(slurm, "true", "--hold")
    wait_state(slurm, running, "RUNNING")
    slurm.kill_controller()
    slurm.start_controller()
    states = {job.id: job.state for job in slurm.jobs()}
    assert states == {running: "RUNNING", waiting: "PENDING"}


def test_a_node_without_power_is_noticed_and_its_job_runs_elsewhere(slurm: Cluster, tmp_path: Path):
    output = tmp_path / "output"
    submit(slurm, "echo $$ $SLURMD_NODENAME; sleep 60", output=output)
    wait_text(slurm, output, "\n")
    pid, node = output.read_text().split()
    slurm.power_off(node)
    assert start_time(int(pid)) is None
    slurm.wait(lambda: slurm.node_states()[node] == "down*", f"{node} down")
    slurm.wait(lambda: len(output.read_text().split()) == 4, "the job elsewhere")
    assert output.read_text().split()[3] != node
    slurm.start_node_daemon(node)
    slurm.wait(lambda: slurm.node_states()[node] == "idle", f"{node} in service")


def test_tasks_outlive_their_nodes_daemon(slurm: Cluster, tmp_path: Path):
    pid = tmp_path / "pid"
    submit(slurm, f"echo $$ > {pid}; sleep 60", "--nodelist=n2")
    wait_text(slurm, pid, "\n")
    slurm.kill_node_daemon("n2")
    time.sleep(0.5)
    assert start_time(int(pid.read_text())) is not None
    slurm.power_off("n2")
    assert start_time(int(pid.read_text())) is None


def test_a_node_set_down_loses_its_job_until_it_is_resumed(slurm: Cluster, tmp_path: Path):
    job = submit(slurm, "sleep 60", "--nodelist=n4")
    wait_state(slurm, job, "RUNNING")
    slurm.set_down("n4")
    assert slurm.node_states()["n4"].startswith("down")
    wait_state(slurm, job, "PENDING")
    slurm.resume("n4")
    wait_state(slurm, job, "RUNNING")


def test_only_the_clock_of_the_day_is_skewed_and_only_on_its_node(slurm: Cluster, tmp_path: Path):
    ask = (
        "import os, sys, time; from pathlib import Path; start = time.monotonic(); time.sleep(0.1);"
        "file = Path(sys.argv[1], os.environ['SLURMD_NODENAME']); file.touch();"
        "print(os.environ['SLURMD_NODENAME'], time.time(), start, time.monotonic() - start,"
        " file.stat().st_mtime)"
    )
    slurm.skew("n2", 3600)
    # srun starts on the skewed node: what it hands on must not skew the others.
    script = f'srun --nodes=2 {sys.executable} -c "{ask}" {tmp_path}'
    output = tmp_path / "output"
    submit(slurm, f"echo $(date +%s); {script}", "--nodelist=n[2-3]", "--nodes=2", output=output)
    slurm.wait_idle()
    now, monotonic = time.time(), time.monotonic()
    rows = {name: values for name, *values in map(str.split, output.read_text().splitlines()[1:])}
    for node, shift in (("n2", 3600), ("n3", 0)):
        day, start, slept, touched = map(float, rows[node])
        assert day == pytest.approx(now + shift, abs=20)
        assert start == pytest.approx(monotonic, abs=20)
        assert 0.1 <= slept < 5
        assert touched == pytest.approx(now, abs=20)
    slurm.skew("n2", 0)
    date = int(slurm.run("srun", "--nodelist=n2", "date", "+%s"))
    assert date == pytest.approx(time.time(), abs=20)


@pytest.mark.parametrize("user_signal", [True, False])
def test_a_preempted_job_gets_its_own_signal_only_where_the_site_sends_it(
    slurm: Cluster, tmp_path: Path, user_signal: bool
):
    slurm.preempt_with_signal(user_signal)
    output = tmp_path / "output"
    # Without B: only the steps get the signal, as submitit has it.
    traps = "trap 'echo USR2' USR2; trap 'echo TERM; exit' TERM"
    step = f"{traps}; echo start; while true; do sleep 0.1; done"
    low = submit(
        slurm,
        f'srun bash -c "{step}"',
        *("--signal=USR2@60", "--exclusive", "--nodelist=n1"),
        output=output,
    )
    wait_text(slurm, output, "start")
    submit(slurm, "true", "--partition=high", "--exclusive", "--nodelist=n1")
    wait_text(slurm, output, "USR2" if user_signal else "TERM")
    assert ("USR2" in output.read_text()) is user_signal
    assert slurm.job(low)["Partition"] == "gpu"


def test_two_clusters_live_side_by_side_and_end_with_their_owner(tmp_path: Path):
    why_not = reason_to_skip()
    if why_not:
        pytest.skip(why_not)
    program = (
        "import os, sys; from pathlib import Path; from tests.slurm.cluster import Cluster;"
        "one = Cluster(Path(sys.argv[1]), 2, max_array_size=10, accounting=False);"
        "one.up(owner=os.getpid()); print(flush=True); sys.stdin.read()"
    )
    owners = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    for owner in owners:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"\n"
    names = [f"in {tmp_path / name}" for name in ("one", "two")]
    assert all(name in HOSTS.read_text() for name in names)
    pids = [int(f.read_text().split()[0]) for f in tmp_path.glob("*/run/*.pid")]
    # Each: guard, munged, slurmctld and two nodes.
    assert len([pid for pid in pids if start_time(pid)]) == 10
    environment = {**os.environ, "SLURM_CONF": str(tmp_path / "one/etc/slurm.conf")}
    refused = subprocess.run(["sbatch", "--array=0-10", "--wrap=true"], env=environment)
    assert refused.returncode != 0
    assert subprocess.run(["sacct"], env=environment).returncode != 0
    for owner in owners:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    limit = time.monotonic() + 20
    while any(start_time(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(start_time(pid) for pid in pids)
    assert not any(name in HOSTS.read_text() for name in names)
