"""What was handed to Slurm: records, where runs stand by Slurm's answers, and what tidy keeps."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.launching.status import Observer, as_data, as_text
from harness.slurm import submissions
from harness.slurm.commands import Unreachable
from harness.slurm.scheduler import JobState, Scheduler, settle_submissions
from harness.slurm.submissions import Submission
from mixgrpo.errors import RunError
from mixgrpo.files.jsonlines import whole_lines
from tests.harness.fake_slurm import FakeSlurm
from tests.harness.lab import Lab

STARTED = "2024-05-01T10:00:00|2024-05-01T11:00:00|n1"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "toy"


def hand_over(folder: Path, *tasks: tuple[str, ...], job: str | None = "7") -> Submission:
    folder.mkdir(parents=True, exist_ok=True)
    made = replace(submissions.new(folder, "toy", tasks, {"gpus": 1}), job=job)
    submissions.write(folder, made)
    return made


def line(made: Submission, index: str, state: str, reason: str = "None", job: str = "7") -> str:
    """What squeue prints of a task; `N/A` is the index of a job without an array."""
    return f"{job}|{index}|{state}|{reason}|n1|{made.name}\n"


def statuses(states: dict[str, JobState]) -> dict[str, tuple[str, str]]:
    return {name: (job.status, job.slurm_state) for name, job in states.items()}


def kept_words(folder: Path, made: Submission) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in whole_lines(submissions.ended_file(folder, made.token)):
        found.setdefault(row["task"], []).append(row["state"])
    return found


# ---- records ---------------------------------------------------------------------------------


def test_a_record_survives_the_round_trip(folder: Path) -> None:
    made = hand_over(folder, ("a", "b"), ("c",))
    assert submissions.read(folder) == [made]
    assert made.name == f"toy-{made.token}"
    assert made.array
    assert [made.task_id(0), made.task_id(1)] == ["7_0", "7_1"]
    assert hand_over(folder, ("a",), job="8").task_id(0) == "8"
    assert hand_over(folder, ("a",), job=None).task_id(0) == ""


def test_tokens_grow_and_the_oldest_record_comes_first(folder: Path) -> None:
    made = [hand_over(folder, ("a",)) for _ in range(12)]
    tokens = [one.token for one in made]
    assert tokens == sorted(tokens)
    assert [one.token for one in submissions.read(folder)] == tokens
    # Also after one that Slurm refused, and beside the words that are kept.
    submissions.ended_file(folder, tokens[-1]).write_text("")
    submissions.forget(folder, made[3])
    assert hand_over(folder, ("a",)).token > tokens[-1]
    assert not (submissions.folder(folder) / tokens[3]).exists()
    assert tokens[3] not in [one.token for one in submissions.read(folder)]


def test_a_record_that_is_none_is_named_with_its_fix(folder: Path) -> None:
    assert submissions.read(folder) == []
    made = hand_over(folder, ("a",))
    file = submissions.folder(folder) / f"{made.token}.json"
    for text in ("{", "[]", json.dumps(asdict(made) | {"tasks": [1]}), "[" * 100_000):
        file.write_text(text)
        with pytest.raises(RunError, match=f"{made.token}.json: is not a record .*remove it"):
            submissions.read(folder)


# ---- standings -------------------------------------------------------------------------------


def test_runs_stand_where_the_queue_has_their_tasks(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b", "c"), ("d",))
    fake.answer("squeue", line(made, "0", "RUNNING") + line(made, "1", "PENDING", "Priority"))
    fake.answer("sacct", f"7_2|FAILED|{STARTED}|{made.name}\n")
    states = Scheduler(folder).job_states()
    assert statuses(states) == {
        "a": ("running", "RUNNING"),
        "b": ("queued", "PENDING"),
        "c": ("queued", "PENDING"),
        "d": ("gone", "FAILED"),
    }
    assert states["c"] == JobState("7_1", made.token, "queued", "PENDING", "Priority", "n1")


def test_the_last_submission_of_a_run_counts(fake: FakeSlurm, folder: Path) -> None:
    first = hand_over(folder, ("a",), ("b",))
    again = hand_over(folder, ("b",), job="8")
    fake.answer(
        "squeue", line(first, "0", "RUNNING") + line(again, "N/A", "PENDING", "Priority", job="8")
    )
    states = Scheduler(folder).job_states()
    assert statuses(states) == {"a": ("running", "RUNNING"), "b": ("queued", "PENDING")}
    assert (states["a"].task, states["b"].task) == ("7_0", "8")


def test_slurm_is_asked_at_most_once_per_poll(fake: FakeSlurm, folder: Path) -> None:
    scheduler = Scheduler(folder, poll_s=60)
    assert scheduler.job_states() == {}
    assert fake.calls("squeue") == []  # nothing was ever handed over
    made = hand_over(folder, ("a",))
    fake.answer("squeue", line(made, "N/A", "RUNNING"))
    for _ in range(5):
        assert scheduler.job_states()["a"].status == "running"
    assert len(fake.calls("squeue")) == 1
    often = Scheduler(folder, poll_s=0.2)
    often.job_states()
    time.sleep(0.25)
    often.job_states()
    assert len(fake.calls("squeue")) == 3


def test_silence_is_asked_at_most_once_per_poll_too(fake: FakeSlurm, folder: Path) -> None:
    hand_over(folder, ("a",))
    fake.fail("squeue", "Unable to contact slurm controller")
    scheduler = Scheduler(folder, poll_s=60)
    for _ in range(3):
        assert statuses(scheduler.job_states()) == {"a": ("unknown", "")}
    assert len(fake.calls("squeue")) == 1


def test_silence_keeps_the_last_knowledge(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b",), ("c",))
    fake.answer("squeue", line(made, "0", "RUNNING") + line(made, "1", "PENDING", "Priority"))
    fake.answer("sacct", f"7_2|TIMEOUT|{STARTED}|{made.name}\n")
    scheduler = Scheduler(folder, poll_s=0)
    scheduler.job_states()
    fake.fail("squeue", "Unable to contact slurm controller")
    late = hand_over(folder, ("d",), job="8")
    states = scheduler.job_states()
    assert statuses(states) == {
        "a": ("unknown", "RUNNING"),
        "b": ("unknown", "PENDING"),
        "c": ("gone", "TIMEOUT"),  # what is over stays over
        "d": ("unknown", ""),
    }
    assert "Unable to contact" in states["a"].reason
    assert scheduler.silent is not None
    fake.answer("squeue", line(made, "1", "RUNNING") + line(late, "N/A", "RUNNING", job="8"))
    fake.answer("sacct", f"7_0|COMPLETED|{STARTED}|{made.name}\n")
    assert statuses(scheduler.job_states()) == {
        "a": ("gone", "COMPLETED"),
        "b": ("running", "RUNNING"),
        "c": ("gone", "TIMEOUT"),
        "d": ("running", "RUNNING"),
    }
    assert scheduler.silent is None


def test_what_was_handed_over_since_the_last_question_is_queued(
    fake: FakeSlurm, folder: Path
) -> None:
    hand_over(folder, ("a",))
    scheduler = Scheduler(folder, poll_s=60)
    scheduler.job_states()
    hand_over(folder, ("b",), job="8")
    assert scheduler.job_states()["b"].status == "queued"


def test_a_record_that_gets_its_job_since_the_last_question_is_queued(
    fake: FakeSlurm, folder: Path
) -> None:
    # Another process's launcher stands between the record and sbatch's answer.
    made = hand_over(folder, ("a",), job=None)
    scheduler = Scheduler(folder, poll_s=60)
    assert statuses(scheduler.job_states()) == {"a": ("gone", "NEVER_SUBMITTED")}
    submissions.write(folder, replace(made, job="7"))
    assert scheduler.job_states()["a"].status == "queued"


def test_without_squeue_the_folders_alone_say_how_things_are(fake: FakeSlurm, folder: Path) -> None:
    hand_over(folder, ("a",))
    fake.remove("squeue")
    assert Scheduler(folder).job_states() == {}


# ---- ids that are not ours, and ours that nobody wrote down ------------------------------------


def test_a_job_of_the_same_id_and_another_name_is_not_ours(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b",))
    foreign = replace(made, name="other")
    fake.answer("squeue", line(foreign, "0", "RUNNING"))
    fake.answer(
        "sacct",
        f"7_0|RUNNING|2024-05-01T10:00:00|Unknown|n1|other\n7_1|TIMEOUT|{STARTED}|other\n",
    )
    scheduler = Scheduler(folder)
    assert statuses(scheduler.job_states()) == {"a": ("gone", ""), "b": ("gone", "")}
    scheduler.cancel({"a", "b"})
    assert fake.calls("scancel") == []


def test_the_jobs_of_these_runs_are_cancelled_and_no_others(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b", "c"), ("d",))
    fake.answer("squeue", "".join(line(made, index, "PENDING") for index in "012"))
    Scheduler(folder).cancel({"a", "b", "c", "never handed over"})
    assert fake.calls("scancel") == ["7_0 7_1"]


def test_a_job_whose_id_was_never_written_down_is_known_by_its_name(
    fake: FakeSlurm, folder: Path
) -> None:
    made = hand_over(folder, ("a",), ("b",), job=None)
    for index in (0, 1):
        pickled = submissions.folder(folder) / made.token / f"31_{index}_submitted.pkl"
        pickled.touch()
    other = line(replace(made, name=f"{made.name}0"), "0", "RUNNING", job="30")
    fake.answer("squeue", other + line(made, "1", "PENDING", job="31"))
    scheduler = Scheduler(folder)
    assert scheduler.job_states()["b"] == JobState(
        "31_1", made.token, "queued", "PENDING", "None", "n1"
    )
    assert submissions.read(folder)[0].job is None  # looking writes nothing
    settle_submissions(scheduler)
    assert submissions.read(folder)[0].job == "31"
    assert fake.calls("scancel") == []


def test_jobs_without_orders_are_cancelled_by_tidy(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b",), job=None)
    (submissions.folder(folder) / made.token / "31_0_submitted.pkl").touch()
    fake.answer(
        "squeue", line(made, "0", "PENDING", job="31") + line(made, "1", "RUNNING", "", "31")
    )
    scheduler = Scheduler(folder)
    scheduler.job_states()
    settle_submissions(scheduler)
    assert fake.calls("scancel") == ["31_1"]
    settle_submissions(scheduler)
    assert len(fake.calls("scancel")) == 1


def test_what_slurm_never_took_was_never_submitted(fake: FakeSlurm, folder: Path) -> None:
    hand_over(folder, ("a",), job=None)
    assert statuses(Scheduler(folder).job_states()) == {"a": ("gone", "NEVER_SUBMITTED")}
    assert fake.calls("sacct") == []


# ---- last words ------------------------------------------------------------------------------


def test_the_accounting_has_the_last_word_of_the_last_time_it_ran(
    fake: FakeSlurm, folder: Path
) -> None:
    made = hand_over(folder, ("a",), ("b",), ("c",))
    fake.answer(
        "sacct",
        f"7_0|NODE_FAIL|{STARTED}|{made.name}\n"
        f"7_0|TIMEOUT|2024-05-01T12:00:00|2024-05-01T13:00:00|n2|{made.name}\n"
        f"7_[1-2%1]|CANCELLED by 0|None|2024-05-01T11:00:00|None assigned|{made.name}\n",
    )
    assert statuses(Scheduler(folder).job_states()) == {
        "a": ("gone", "TIMEOUT"),
        "b": ("gone", "CANCELLED"),
        "c": ("gone", "CANCELLED"),
    }


def test_the_arrays_own_row_speaks_for_tasks_that_never_ran(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b",))
    fake.answer(
        "sacct",
        f"7_0|COMPLETED|{STARTED}|{made.name}\n"
        f"7|CANCELLED by 0|None|2024-05-01T11:00:00|None assigned|{made.name}\n",
    )
    assert statuses(Scheduler(folder).job_states()) == {
        "a": ("gone", "COMPLETED"),
        "b": ("gone", "CANCELLED"),
    }


@pytest.mark.parametrize("sacct", ["missing", "disabled"])
def test_without_accounting_the_controller_has_the_last_word(
    sacct: str, fake: FakeSlurm, folder: Path
) -> None:
    made = hand_over(folder, ("a",), ("b",))
    if sacct == "missing":
        fake.remove("sacct")
    else:
        fake.fail("sacct", "Slurm accounting storage is disabled")
    fake.answer("squeue", line(made, "1", "RUNNING"))
    fake.answer("squeue", f"7|0|OUT_OF_MEMORY|{made.name}\n", to="-t all")
    assert statuses(Scheduler(folder).job_states()) == {
        "a": ("gone", "OUT_OF_MEMORY"),
        "b": ("running", "RUNNING"),
    }


def test_what_was_kept_speaks_when_slurm_has_forgotten(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",))
    fake.answer("sacct", f"7|PREEMPTED|{STARTED}|{made.name}\n")
    settle_submissions(Scheduler(folder))
    fake.answer("sacct", "")
    fake.fail("squeue", "Invalid job id specified", to="-t all")
    calls = len(fake.calls("sacct"))
    assert statuses(Scheduler(folder).job_states()) == {"a": ("gone", "PREEMPTED")}
    assert len(fake.calls("sacct")) == calls  # not even asked again


def test_the_accounting_may_lag_behind(
    fake: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hand_over(folder, ("a",), ("b",))
    fake.answer("squeue", line(made, "1", "RUNNING"))
    fake.answer("sacct", f"7_0|RUNNING|2024-05-01T10:00:00|Unknown|n1|{made.name}\n")
    scheduler = Scheduler(folder, poll_s=0, lag_s=60)
    assert statuses(scheduler.job_states())["a"] == ("running", "COMPLETING")
    settle_submissions(scheduler)
    assert not submissions.ended_file(folder, made.token).exists()
    fake.answer("sacct", f"7_0|TIMEOUT|{STARTED}|{made.name}\n")
    assert statuses(scheduler.job_states())["a"] == ("gone", "TIMEOUT")
    # And the accounting that never learns it is not waited for without end.
    fake.answer("squeue", "")
    fake.answer("sacct", f"7_1|RUNNING|2024-05-01T10:00:00|Unknown|n1|{made.name}\n")
    assert statuses(scheduler.job_states())["b"] == ("running", "COMPLETING")
    scheduler.lag_s = 0.0
    assert statuses(scheduler.job_states())["b"] == ("gone", "")
    # That nobody knew is kept too, so that whoever looks next need not wait.
    settle_submissions(scheduler)
    patient = Scheduler(folder, poll_s=0, lag_s=60)
    assert statuses(patient.job_states())["b"] == ("gone", "UNKNOWN")
    # And who looks but once does not wait at all.
    submissions.ended_file(folder, made.token).unlink()
    assert statuses(Scheduler(folder).job_states())["b"] == ("gone", "")


def test_an_earlier_job_that_is_alive_counts_more_than_a_later_one_that_is_over(
    fake: FakeSlurm, folder: Path
) -> None:
    first = hand_over(folder, ("a",), ("b",), job="7")
    second = hand_over(folder, ("a",), ("b",), job="9")
    fake.answer("squeue", line(first, "0", "PENDING", job="7"))
    fake.answer("sacct", "")
    found = Scheduler(folder).job_states()
    assert (found["a"].token, found["a"].status) == (first.token, "queued")
    assert (found["b"].token, found["b"].status) == (second.token, "gone")


def test_a_line_cut_short_in_what_was_kept_harms_nothing(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",), ("b",))
    fake.answer("squeue", "")
    file = submissions.ended_file(folder, made.token)
    file.write_text('{"task": "7_0", "state": "TIME{"task": "7_1", "state": "TIMEOUT"}\n')
    fake.answer("sacct", f"7_0|NODE_FAIL|{STARTED}|{made.name}\n")
    scheduler = Scheduler(folder, poll_s=0)
    assert statuses(scheduler.job_states())["a"] == ("gone", "NODE_FAIL")
    settle_submissions(scheduler)


def test_a_pack_is_cancelled_only_as_a_whole(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a", "b"), ("c", "d"))
    fake.answer("squeue", line(made, "0", "PENDING") + line(made, "1", "PENDING"))
    fake.answer("scancel", "")
    assert Scheduler(folder).cancel({"a", "b", "c"}) == {"c"}
    assert [call.split()[-1] for call in fake.calls("scancel")] == ["7_0"]


def test_nothing_is_cancelled_while_slurm_is_silent(fake: FakeSlurm, folder: Path) -> None:
    hand_over(folder, ("a",), ("b",))
    fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(RunError, match="Slurm does not answer"):
        Scheduler(folder).cancel({"a"})


# ---- tidy ------------------------------------------------------------------------------------


def test_tidy_writes_each_end_once_with_every_time_it_ran(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a", "b"), ("c",))
    fake.answer("squeue", line(made, "1", "RUNNING"))
    rows = (
        f"7_0|NODE_FAIL|{STARTED}|{made.name}\n"
        f"7_0|COMPLETED|2024-05-01T12:00:00|2024-05-01T13:00:00|n2|{made.name}\n"
    )
    fake.answer("sacct", rows)
    scheduler = Scheduler(folder, poll_s=0)
    for _ in range(3):
        settle_submissions(scheduler)
    assert kept_words(folder, made) == {"7_0": ["NODE_FAIL", "COMPLETED"]}
    fake.answer("squeue", "")
    fake.answer("sacct", f"{rows}7_1|CANCELLED by 0|{STARTED}|{made.name}\n")
    for one in (scheduler, Scheduler(folder)):  # also another launcher
        settle_submissions(one)
    file = submissions.ended_file(folder, made.token)
    kept = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(one["task"], one["state"], one["nodes"]) for one in kept] == [
        ("7_0", "NODE_FAIL", "n1"),
        ("7_0", "COMPLETED", "n2"),
        ("7_1", "CANCELLED", "n1"),
    ]
    assert kept[0]["ended"] - kept[0]["started"] == 3600


def test_tidy_keeps_the_word_alone_where_there_is_no_accounting(
    fake: FakeSlurm, folder: Path
) -> None:
    made = hand_over(folder, ("a",), job="7")
    fake.remove("sacct")
    fake.answer("squeue", f"7|N/A|TIMEOUT|{made.name}\n", to="-t all")
    settle_submissions(Scheduler(folder))
    assert kept_words(folder, made) == {"7": ["TIMEOUT"]}


def test_tidy_keeps_nothing_of_an_earlier_job_of_the_same_id(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",))
    fake.answer(
        "sacct",
        "7|FAILED|2024-05-01T08:00:00|2024-05-01T09:00:00|n9|another\n"
        f"7|TIMEOUT|{STARTED}|{made.name}\n",
    )
    settle_submissions(Scheduler(folder))
    assert kept_words(folder, made) == {"7": ["TIMEOUT"]}


def test_a_cancellation_that_slurm_does_not_hear_is_an_error(fake: FakeSlurm, folder: Path) -> None:
    made = hand_over(folder, ("a",))
    fake.answer("squeue", line(made, "N/A", "PENDING"))
    fake.fail("scancel", "scancel: error: Unable to contact slurm controller")
    with pytest.raises(RunError, match="Unable to contact"):
        Scheduler(folder).cancel({"a"})
    assert issubclass(Unreachable, RunError)


# ---- what the status makes of it -------------------------------------------------------------


def test_the_status_says_why_runs_wait_and_what_is_held(fake: FakeSlurm, lab: Lab) -> None:
    runs = lab.sweep.runs
    made = hand_over(lab.runs / "toy", *[(run.folder_name,) for run in runs])
    fake.answer(
        "squeue",
        line(made, "0", "PENDING", "JobHeldUser")
        + line(made, "1", "PENDING", "Priority")
        + line(made, "2", "PENDING", "None")
        + line(made, "3", "RUNNING"),
    )
    seen = lab.observe()
    text = as_text(seen)
    assert "toy: 4 runs: 1 running, 3 queued" in text
    assert "in Slurm's queue: 1 JobHeldUser, 1 Priority, 1 just submitted" in text
    assert "held, and will not start by themselves: scontrol release 7_0" in text.splitlines()
    assert "on n1 (7_3)" in text
    data = {run["folder"]: run for run in as_data(seen)["runs"]}
    assert data[str(lab.runs / "toy" / runs[0].folder_name)]["queue"] == "JobHeldUser"
    assert data[str(lab.runs / "toy" / runs[3].folder_name)]["job"] == "7_3"


def test_the_status_says_how_jobs_ended_that_left_no_word(fake: FakeSlurm, lab: Lab) -> None:
    runs = lab.sweep.runs
    made = hand_over(lab.runs / "toy", *[(run.folder_name,) for run in runs])
    words = ("OUT_OF_MEMORY", "CANCELLED by 0", "NODE_FAIL", "TIMEOUT")
    fake.answer("sacct", "".join(f"7_{i}|{w}|{STARTED}|{made.name}\n" for i, w in enumerate(words)))
    text = as_text(lab.observe())
    assert "toy: 4 runs: 1 stopped, 3 lost" in text
    for word in ("out-of-memory", "node-failure", "time-limit"):
        assert f"its job ended: {word}" in text


def test_the_status_says_that_slurm_does_not_answer(fake: FakeSlurm, lab: Lab) -> None:
    hand_over(lab.runs / "toy", (lab.sweep.runs[0].folder_name,))
    fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    seen: Observer = lab.observe()
    text = as_text(seen)
    assert "Slurm does not answer: squeue failed: slurm_load_jobs error: Unable to" in text
    assert "1 unknown" in text
    assert as_data(seen)["slurm_silent"] == seen.scheduler.silent


@pytest.mark.parametrize("token", ["../../precious", "00002-abcdef", ""])
def test_a_record_is_of_the_submission_that_its_file_is_named_after(
    folder: Path, token: str
) -> None:
    """Files and folders are written and removed by that name."""
    made = hand_over(folder, ("a",))
    file = folder / "submissions" / f"{made.token}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"token": token}))
    with pytest.raises(RunError, match="is not a record of this program"):
        submissions.read(folder)
