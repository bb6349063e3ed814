"""What Slurm's answers mean, its silence included. The answers are recorded ones."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.launching.job_environment import read_job_environment
from harness.slurm import commands as slurm
from harness.slurm.commands import Unreachable
from mixgrpo.errors import ConfigError, RunError
from tests.harness.fake_slurm import FakeSlurm

QUEUE = """\
7|0|RUNNING|None|n1|toy-00001-a1b2c3
7|2|PENDING|JobArrayTaskLimit||toy-00001-a1b2c3
7|3|PENDING|Resources||toy-00001-a1b2c3
9|N/A|RUNNING|None|n[2-3]|my|odd|name
11|N/A|PENDING|Nodes required for job are DOWN, DRAINED or reserved||pack
12|N/A|COMPLETING|None|n4|done
"""

HISTORY = """\
7_0|NODE_FAIL|2024-05-01T10:00:00|2024-05-01T11:00:00|n1|toy-00001-a1b2c3
7_0|REQUEUED|2024-05-01T11:05:00|2024-05-01T12:00:00|n2|toy-00001-a1b2c3
7_0|RUNNING|2024-05-01T12:10:00|Unknown|n3|toy-00001-a1b2c3
7_[0,2-3%2]|CANCELLED by 0|None|2024-05-01T12:30:00|None assigned|toy-00001-a1b2c3
9|COMPLETED|2024-05-01T10:00:00|2024-05-01T10:30:00|n[2-3]|my|odd|name
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path, monkeypatch)


def test_the_queue_is_read_by_task(fake: FakeSlurm) -> None:
    fake.answer("squeue", QUEUE)
    found = slurm.queue()
    assert list(found) == ["7_0", "7_2", "7_3", "9", "11", "12"]
    assert found["7_2"].reason == "JobArrayTaskLimit"
    assert found["9"] == slurm.Listed("9", "my|odd|name", "RUNNING", "None", "n[2-3]")
    assert found["11"].reason == "Nodes required for job are DOWN, DRAINED or reserved"
    assert [id for id, one in found.items() if one.queued] == ["7_2", "7_3", "11"]


@pytest.mark.parametrize(
    ("state", "queued"),
    [
        ("PENDING", True),
        ("CONFIGURING", True),
        ("REQUEUE_HOLD", True),
        ("PREEMPTED", True),
        ("NODE_FAIL", True),
        ("RUNNING", False),
        ("COMPLETING", False),
        ("SUSPENDED", False),
    ],
)
def test_what_will_run_again_counts_as_queued(state: str, queued: bool, fake: FakeSlurm) -> None:
    fake.answer("squeue", f"7|N/A|{state}|None||x\n")
    assert slurm.queue()["7"].queued is queued


def test_lines_that_are_none_of_a_job_are_passed_over(fake: FakeSlurm) -> None:
    fake.answer("squeue", "slurm_load_jobs: retrying\n\n7|N/A|RUNNING|None|n1|x\n")
    assert list(slurm.queue()) == ["7"]


def test_only_the_users_own_jobs_are_asked_for(
    fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")  # whose shell it was before `su`
    slurm.queue()
    assert f" -u {os.getuid()} " in fake.calls("squeue")[0]
    assert " -a " in fake.calls("squeue")[0]  # hidden partitions too


def test_no_variable_filters_what_slurm_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SACCT_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/there")
    seen = slurm._environment()
    assert not {"SQUEUE_PARTITION", "SACCT_FORMAT", "SLURM_TIME_FORMAT"} & seen.keys()
    assert (seen["SLURM_CONF"], seen["SLURM_BITSTR_LEN"]) == ("/there", "0")


def test_array_expressions_may_have_steps() -> None:
    assert slurm.expand_tasks("7_[1-9:4%2,20]") == ["7_1", "7_5", "7_9"]
    assert slurm.expand_tasks("7_[1-9:4,20%2]") == ["7_1", "7_5", "7_9", "7_20"]


def test_the_accounting_tells_every_time_that_a_task_ran(fake: FakeSlurm) -> None:
    # The controller may list them in any order.
    lines = HISTORY.splitlines(keepends=True)
    fake.answer("sacct", "".join([lines[2], lines[1], lines[0], *lines[3:]]))
    found = slurm.history(["7", "9"], time.time())
    assert [past.state for past in found["7_0"]] == ["NODE_FAIL", "REQUEUED", "RUNNING"]
    assert [past.nodes for past in found["7_0"]] == ["n1", "n2", "n3"]
    assert found["7_0"][0].ended - found["7_0"][0].started == 3600  # type: ignore[operator]
    assert found["7_0"][2].ended is None
    assert found["7_2"] == [
        slurm.Past(
            "7_2",
            "toy-00001-a1b2c3",
            "CANCELLED",
            None,
            time.mktime((2024, 5, 1, 12, 30, 0, 0, 0, -1)),
            "None assigned",
        )
    ]
    assert found["7_3"][0].state == "CANCELLED"
    assert (found["9"][0].name, found["9"][0].state) == ("my|odd|name", "COMPLETED")
    assert set(found) == {"7_0", "7_2", "7_3", "9"}


def test_the_accounting_is_asked_for_duplicates_and_from_before_the_submission(
    fake: FakeSlurm,
) -> None:
    since = time.mktime((2024, 5, 3, 12, 0, 0, 0, 0, -1))
    slurm.history(["7", "9"], since)
    (call,) = fake.calls("sacct")
    assert " -D " in f" {call} "
    assert " -j 7,9 " in f" {call} "
    start = call.split()[call.split().index("-S") + 1]
    assert time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S")) < since - 86400


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("7", ["7"]),
        ("7_4", ["7_4"]),
        ("7_[2-3%2]", ["7_2", "7_3"]),
        ("7_[1,4-6,9%2]", ["7_1", "7_4", "7_5", "7_6", "7_9"]),
        ("7_[0]", ["7_0"]),
        ("7_[1-3,...]", ["7_1", "7_2", "7_3"]),
    ],
)
def test_an_id_stands_for_its_tasks(text: str, tasks: list[str]) -> None:
    assert slurm.expand_tasks(text) == tasks


def test_last_states_are_the_controllers_by_task(fake: FakeSlurm) -> None:
    fake.answer("squeue", "7|0|TIMEOUT|toy|1\n7|1|COMPLETED|toy|1\n9|N/A|FAILED|x\n")
    assert slurm.last_states(["7", "9"]) == {
        "7_0": ("toy|1", "TIMEOUT"),
        "7_1": ("toy|1", "COMPLETED"),
        "9": ("x", "FAILED"),
    }
    assert " -t all -j 7,9 " in fake.calls("squeue")[0]


def test_what_slurm_has_forgotten_has_no_last_states(fake: FakeSlurm) -> None:
    fake.fail("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert slurm.last_states(["7"]) == {}


def test_a_site_without_accounting_has_no_history(fake: FakeSlurm) -> None:
    fake.fail("sacct", "Slurm accounting storage is disabled")
    assert slurm.history(["7"], time.time()) == {}
    fake.remove("sacct")
    assert slurm.history(["7"], time.time()) == {}


def test_the_size_of_an_array_is_the_sites(fake: FakeSlurm) -> None:
    fake.answer(
        "scontrol",
        "Configuration data as of 2024-05-01T10:00:00\n"
        "MaxArraySize            = 4096\nMaxJobCount             = 10000\n",
        to="show config",
    )
    assert slurm.max_array_size() == 4096
    fake.answer("scontrol", "MaxJobCount = 10000\n", to="show config")
    assert slurm.max_array_size() == 1001


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "PENDING", "SUSPENDED"])
def test_a_job_is_meant_to_go_on_only_while_it_is_running(state: str, fake: FakeSlurm) -> None:
    line = f"JobId=8 ArrayJobId=7 JobName=RUNNING JobState={state} Reason=None\n"
    fake.answer("scontrol", line, to="show job 8")
    assert slurm.is_running("8") is (state == "RUNNING")


def test_jobs_are_cancelled_in_batches(fake: FakeSlurm) -> None:
    jobs = [f"7_{index}" for index in range(450)]
    slurm.cancel(jobs)
    calls = [call.split() for call in fake.calls("scancel")]
    assert [len(call) for call in calls] == [200, 200, 50]
    assert [job for call in calls for job in call] == jobs
    slurm.cancel([])
    assert len(fake.calls("scancel")) == 3


@pytest.mark.parametrize("silence", ["fails", "hangs", "is gone"])
def test_silence_is_told_from_an_empty_answer(
    silence: str, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.queue() == {}
    for program in ("squeue", "scontrol", "scancel"):
        if silence == "fails":
            fake.fail(program, "slurm_load_jobs error: Unable to contact slurm controller")
        elif silence == "hangs":
            monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.3)
            fake.hang(program)
        else:
            fake.remove(program)
    said = "squeue failed: .*Unable to contact" if silence == "fails" else "squeue does not answer"
    begin = time.monotonic()
    with pytest.raises(Unreachable, match=said):
        slurm.queue()
    with pytest.raises(Unreachable, match="scontrol"):
        slurm.is_running("8")
    with pytest.raises(Unreachable, match="scontrol"):
        slurm.max_array_size()
    with pytest.raises(RunError, match="scontrol"):
        slurm.requeue("8")
    with pytest.raises(RunError, match="scancel"):
        slurm.cancel(["8"])
    assert time.monotonic() - begin < 20


def test_a_machine_without_slurm_is_a_mistake_of_the_command(fake: FakeSlurm) -> None:
    slurm.check()
    fake.remove("srun")
    with pytest.raises(ConfigError, match="srun is not installed; run this on a login node"):
        slurm.check()


def test_programs_without_a_cluster_are_a_mistake_and_one_that_is_silent_is_not(
    fake: FakeSlurm,
) -> None:
    fake.fail(
        "scontrol",
        "scontrol: error: fetch_config: DNS SRV lookup failed\n"
        "scontrol: fatal: Could not establish a configuration source",
    )
    with pytest.raises(
        ConfigError, match=r"no cluster is configured \(no slurm.conf\); run this on"
    ):
        slurm.check()
    fake.fail("scontrol", "slurm_load_ctl_conf error: Unable to contact slurm controller")
    slurm.check()


@pytest.mark.parametrize("name", ["a\\b", "a%b", "100%", "a\nb", "a\udcffb"])
def test_a_folder_that_slurm_would_look_for_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rename that folder, or name another one with --runs"):
        slurm.check_path(tmp_path / name / "toy")


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a$HOMEb", "~a", "a#b", "\u00fc", "a;b"])
def test_what_slurm_leaves_alone_is_not_refused(name: str, tmp_path: Path) -> None:
    slurm.check_path(tmp_path / name / "toy")


# ---- the other side: what a job sees of Slurm ------------------------------------------------


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "8",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURMD_NODENAME": "n1",
        "SLURM_PROCID": "3",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return monkeypatch


def test_a_task_of_an_array_knows_its_environment(in_a_job: pytest.MonkeyPatch) -> None:
    job = read_job_environment()
    assert (job.job, job.raw_job, job.restarts) == ("7_1", "8", 0)
    assert (job.node, job.rank) == ("n1", 3)
    in_a_job.setenv("SLURM_RESTART_COUNT", "2")
    in_a_job.delenv("SLURM_ARRAY_JOB_ID")
    job = read_job_environment()
    assert (job.job, job.restarts) == ("8", 2)


def test_a_process_that_only_stands_in_a_users_allocation_is_no_job_of_ours(
    in_a_job: pytest.MonkeyPatch,
) -> None:
    in_a_job.delenv("SUBMITIT_EXECUTOR")
    in_a_job.delenv("SUBMITIT_LOCAL_JOB_ID", raising=False)
    job = read_job_environment()
    assert (job.job, job.raw_job, job.restarts, job.rank) == (None, None, None, 0)
    in_a_job.setenv("SUBMITIT_EXECUTOR", "local")
    in_a_job.setenv("SUBMITIT_LOCAL_JOB_ID", "4711")
    job = read_job_environment()
    assert (job.job, job.raw_job) == ("4711", None)


def test_the_fake_answers_as_told(fake: FakeSlurm) -> None:
    fake.answer("squeue", "it's 5 % of $HOME\n")
    fake.answer("squeue", "all\n", to="-t all")
    said = [
        subprocess.run(["squeue", *more], capture_output=True, text=True).stdout
        for more in ([], ["-t", "all"])
    ]
    assert said == ["it's 5 % of $HOME\n", "all\n"]
