"""The ledger: what was useful, what was lost and by which cause, and for how long."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.launching.status import as_text
from harness.runs.folder import read_attempts
from harness.runs.ledger import START_UP, Ledger, ledger
from harness.runs.state import RunState, look
from harness.slurm import submissions
from harness.slurm.scheduler import JobState, JobStatus
from harness.study.spec import Run
from mixgrpo.files import lease
from mixgrpo.settings.config import SCHEMA_VERSION
from tests.harness.lab import Lab
from tests.harness.synthetic import seal

NO_PROCESS = 2**22 + 1
"""More than the largest process id."""


class Books:
    """The folder of one run, written by hand, and what the ledger says of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run: Run = lab.sweep.runs[0]
        self.sweep_folder = lab.runs / "toy"
        self.folder = self.sweep_folder / self.run.folder_name
        (self.folder / "attempts").mkdir(parents=True)

    def attempt(self, number: int, started: float, **rest: Any) -> None:
        record = {"number": number, "pid": NO_PROCESS, "started": started, "gpus": 8.0} | rest
        (self.folder / "attempts" / f"{number}.json").write_text(json.dumps(record))

    def measured(self, iterations: int, at: float) -> None:
        """Iterations of 10 s each, the last of them written at this time."""
        lines = [{"iteration": m, "seconds_total": 10.0} for m in range(iterations)]
        file = self.folder / "metrics.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(file, (at, at))

    def copied(self, iterations: int) -> None:
        """The first iterations are another run's."""
        said = {"run": "toy/other", "iterations": iterations, "seconds": 10.0 * iterations}
        (self.folder / "origin.json").write_text(json.dumps(said))

    def checkpoint(self, iterations: int) -> None:
        (self.folder / "checkpoints" / f"{iterations:06d}").mkdir(parents=True)

    def finished(self) -> None:
        (self.folder / "eval.jsonl").write_text('{"iteration": 0, "seconds_total": 0.0}\n')
        totals = ("evaluations_computed", "backward_computed", "nfe_rollout", "nfe_train")
        result = {"schema": SCHEMA_VERSION, "hash": self.run.hash, "seed": 0, "iterations": 6}
        result |= {"before": {}, "after": {}, "seconds_total": 60.0, **dict.fromkeys(totals, 1)}
        (self.folder / "result.json").write_text(json.dumps(result))
        seal(self.folder)

    def leased(self, pid: int, touched: float) -> Path:
        """The lease as a process that was killed leaves it."""
        file = self.folder / "owner" / "000003"
        file.parent.mkdir()
        owner = {"pid": pid, "host": "node1", "machine": lease.MACHINE, "since": touched}
        file.write_text(json.dumps(owner))
        os.utime(file, (touched, touched))
        return file

    def submitted(self, number: int, *rows: dict[str, Any], **rest: Any) -> None:
        """A submission of this run, and what was kept of the accounting."""
        made = submissions.Submission(
            token=f"{number:05d}-abcdef",
            name="toy",
            **{"created": 900.0, "job": "7", "tasks": ((self.run.folder_name,),)} | rest,
            resources={},
            array=True,
        )
        submissions.folder(self.sweep_folder).mkdir(exist_ok=True)
        submissions.write(self.sweep_folder, made)
        file = submissions.ended_file(self.sweep_folder, made.token)
        file.write_text("".join(json.dumps({"task": "7_0"} | row) + "\n" for row in rows))

    def state(self, job_state: JobState | None = None) -> RunState:
        states = {self.run.folder_name: job_state} if job_state else None
        return look(self.lab.sweep, self.run, self.lab.runs, states)

    def made(self, job_state: JobState | None = None) -> Ledger:
        return ledger([self.state(job_state)], self.sweep_folder)

    def wasted(self, job_state: JobState | None = None) -> dict[str, float]:
        return {cause: spent.seconds for cause, spent in self.made(job_state).wasted.items()}


@pytest.fixture
def books(lab: Lab) -> Books:
    return Books(lab)


def in_slurm(status: JobStatus) -> JobState:
    return JobState("7_0", "00001-abcdef", status)


def row(state: str, started: float | None = None, ended: float | None = None) -> dict[str, Any]:
    return {"state": state, "started": started, "ended": ended}


def test_the_ledger_tells_useful_from_wasted_by_cause(lab: Lab) -> None:
    broken = {"interval=3-seed0": {"raise_at": 2}}
    lab.finish("--executor", "inline", fake=broken)
    stopped = lab.states()["interval=3-seed1"].folder
    record = stopped / "attempts" / "1.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps(data | {"ended": data["started"] + 10, "reason": "stopped"}))
    (stopped / "result.json").unlink()

    seen = lab.observe()
    books = ledger(seen.states, seen.folder)
    assert books.total.seconds > 10
    # 6 + 6 + 2 + 6 iterations of 0.01 s, and 2 + 2 + 0 + 1 evaluations of 0.001 s: the one before
    # training is made once for both arms of a seed.
    assert books.useful.seconds == pytest.approx(0.205)
    assert set(books.wasted) == {START_UP, "exception"}
    # The record of the stopped run was made to say 10 s.
    assert 9.9 < books.wasted[START_UP].seconds < 12


def test_the_ledger_counts_what_a_kill_lost_and_gpus(books: Books) -> None:
    """Two attempts: 4 iterations, of which the checkpoint kept 2; then the rest."""
    books.measured(6, at=2045.0)
    evals = [{"iteration": m, "seconds_total": 1.0} for m in (0, 6)]
    (books.folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    books.attempt(1, 1000.0, ended=1045.0, reason="killed", job_id="7_0", restarts=0)
    times = {"ended": 2050.0, "reason": "exception", "began_at": 2}
    books.attempt(2, 2000.0, **times, job_id="7_0", restarts=1)
    books.checkpoint(6)
    books.submitted(1, row("NODE_FAIL"))
    made = books.made()
    # The first kept iterations 0 and 1 and an evaluation, the second 2 to 5 and another one.
    assert made.useful.seconds == 21.0 + 41.0
    assert made.useful.gpu_seconds == 8 * 62.0
    assert books.wasted() == {"node-failure": 24.0, "exception": 9.0}
    assert "cost: 0.21 GPU hours, 0.14 useful" in as_text(books.lab.observe())


def test_what_was_copied_after_a_kill_is_not_the_killed_attempts_work(books: Books) -> None:
    """It had no checkpoint when it was killed; the next one began with another run's iterations."""
    books.measured(6, at=2045.0)
    evals = [{"iteration": m, "seconds_total": 1.0} for m in (0, 4, 6)]
    (books.folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    books.attempt(1, 1000.0, ended=1035.0, reason="killed")
    books.attempt(2, 2000.0, ended=2050.0, reason="exception", began_at=4)
    books.checkpoint(6)
    assert books.made().useful.seconds == 35.0 + 21.0
    books.copied(4)
    # Two iterations of the second and its evaluation after them.
    assert books.made().useful.seconds == 21.0
    assert books.wasted() == {"killed": 35.0, "exception": 29.0}


def test_what_was_made_again_after_a_damaged_checkpoint_counts_once(books: Books) -> None:
    """The second attempt found the checkpoint of 4 iterations damaged, and the third went on from
    that of 1."""
    books.measured(6, at=4055.0)
    books.attempt(1, 1000.0, ended=1045.0, reason="killed")
    books.attempt(2, 2000.0, ended=2005.0, reason="killed", began_at=4)
    books.attempt(3, 3000.0, ended=3025.0, reason="killed", began_at=1)
    books.attempt(4, 4000.0, ended=4055.0, reason="exception", began_at=2)
    books.checkpoint(6)
    assert books.made().useful.seconds == 60.0
    assert books.wasted() == {"killed": 35.0 + 5.0 + 15.0, "exception": 15.0}


def test_an_attempt_whose_forerunners_record_was_removed_has_not_judged_the_base_model(
    books: Books,
) -> None:
    books.measured(10, at=2095.0)
    (books.folder / "eval.jsonl").write_text(json.dumps({"iteration": 0, "seconds_total": 30.0}))
    books.attempt(2, 2000.0, ended=2100.0, reason="exception", began_at=4)
    books.checkpoint(10)
    assert books.made().useful.seconds == 60.0


def test_a_run_that_was_copied_whole_after_a_kill_has_cost_what_the_kill_lost(books: Books) -> None:
    books.measured(6, at=2045.0)
    books.attempt(1, 1000.0, ended=1035.0, reason="killed")
    books.copied(6)
    books.finished()
    assert books.state().state == "finished"
    assert books.made().useful.seconds == 0.0
    assert books.wasted() == {"killed": 35.0}


def test_an_attempt_that_was_killed_while_it_loaded_has_cost_its_time(books: Books) -> None:
    books.attempt(1, 1000.0)
    file = books.leased(NO_PROCESS, touched=1300.0)
    assert books.wasted() == {"killed": 300.0}
    assert books.made().total.gpu_seconds == 8 * 300.0
    # A lease that was given back says nothing.
    os.utime(file, (0, 0))
    assert books.wasted() == {"killed": 0.0}


def test_the_lease_of_the_next_attempt_is_no_sign_of_life_of_the_last(books: Books) -> None:
    books.attempt(1, 1000.0)
    books.leased(NO_PROCESS - 1, touched=5000.0)
    assert books.wasted() == {"killed": 0.0}


def test_a_process_does_not_take_its_own_lease_for_that_of_the_attempt_before(
    books: Books,
) -> None:
    """Also where process ids happen to be the same, as on two nodes."""
    script = f"""
import os, pathlib, json
from harness.launching import job
from mixgrpo.settings.config import RunConfig
folder = pathlib.Path({str(books.folder)!r})
record = {{"number": 1, "pid": os.getpid(), "started": 1000.0}}
(folder / "attempts" / "1.json").write_text(json.dumps(record))
job.make_job(folder, RunConfig(), train="os:getcwd").run(lambda: True)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    first, second = read_attempts(books.folder)
    assert (first.ended, first.reason) == (1000.0, "killed")
    assert second.started > 1e9


def test_slurm_says_when_an_attempt_ended_that_left_no_word(books: Books) -> None:
    books.attempt(1, 1000.0, ended=1000.0, reason="killed", job_id="7_0", restarts=0)
    books.attempt(2, 2000.0, ended=2001.0, reason="killed", job_id="7_0", restarts=1)
    books.attempt(3, 3000.0, job_id="7_0", restarts=2)
    times = [
        row("OUT_OF_MEMORY", 990.0, 1300.0),
        row("NODE_FAIL", 1990.0, 2100.0),
        row("TIMEOUT", 2990.0, 3700.0),
    ]
    books.submitted(1, *times)
    assert books.wasted() == {"out-of-memory": 300.0, "node-failure": 100.0, "time-limit": 700.0}


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (row("OUT_OF_MEMORY", 990.0, None), 5.0),
        (row("OUT_OF_MEMORY", None, 1300.0), 300.0),
        # Slurm's clock is an hour behind, or ahead.
        (row("OUT_OF_MEMORY", 990.0 - 3600, 1300.0 - 3600), 5.0),
        (row("OUT_OF_MEMORY", 990.0 + 3600, 1300.0 + 3600), 310.0),
        # The attempts of a run do not overlap.
        (row("OUT_OF_MEMORY", None, 9000.0), 1000.0),
    ],
)
def test_slurms_times_count_only_where_they_can_be_true(
    books: Books, told: dict[str, Any], seconds: float
) -> None:
    books.attempt(1, 1000.0, ended=1005.0, reason="killed", job_id="7_0", restarts=0)
    books.attempt(2, 2000.0, ended=2000.0, reason="exception", job_id="8", restarts=0)
    books.submitted(1, told)
    assert books.wasted() == {"out-of-memory": seconds, "exception": 0.0}


@pytest.mark.parametrize(
    ("state", "expected"),
    [("FAILED", {"killed": 5.0}), ("NODE_FAIL", {"node-failure": 300.0})],
)
def test_a_run_that_was_killed_in_a_pack_did_not_end_with_its_job(
    books: Books, state: str, expected: dict[str, float]
) -> None:
    books.attempt(1, 1000.0, ended=1005.0, reason="killed", job_id="7_0", restarts=0)
    books.submitted(1, row(state, 990.0, 1300.0), tasks=((books.run.folder_name, "other"),))
    assert books.wasted() == expected


def test_an_attempt_that_left_its_own_word_needs_none_of_slurms(books: Books) -> None:
    books.attempt(1, 1000.0, ended=1010.0, reason="exception", job_id="7_0", restarts=0)
    books.submitted(1, row("TIMEOUT", 990.0, 1300.0))
    assert books.wasted() == {"exception": 10.0}


def test_an_id_that_was_given_twice_is_looked_up_where_the_run_was_submitted(books: Books) -> None:
    books.attempt(1, 1000.0, ended=1005.0, reason="killed", job_id="7_0", restarts=0)
    books.attempt(2, 5000.0, ended=5010.0, reason="killed", job_id="7_0", restarts=0)
    books.submitted(1, row("TIMEOUT"), created=900.0)
    books.submitted(2, row("NODE_FAIL"), created=950.0, tasks=(("other",),))
    # The same run on a cluster that was made anew.
    books.submitted(3, row("PREEMPTED"), created=4000.0)
    assert books.wasted() == {"time-limit": 5.0, "preempted": 10.0}


def test_an_accounting_that_was_cut_short_is_read_as_far_as_it_goes(books: Books) -> None:
    books.attempt(1, 1000.0, ended=1005.0, reason="killed", job_id="7_0", restarts=0)
    books.submitted(1, row("NODE_FAIL"))
    file = submissions.ended_file(books.sweep_folder, "00001-abcdef")
    file.write_text('{"task": "7_0", "sta\n' + file.read_text() + '{"task"')
    assert books.wasted() == {"node-failure": 5.0}


@pytest.mark.parametrize("status", ["queued", "unknown"])
def test_what_a_run_lost_that_waits_again_is_not_useful(books: Books, status: JobStatus) -> None:
    """It came to 4 iterations, of which the checkpoint kept 2."""
    books.attempt(1, 1000.0, job_id="7_0", restarts=0)
    books.measured(4, at=1050.0)
    books.checkpoint(2)
    assert books.state(in_slurm(status)).state == status
    assert books.made(in_slurm(status)).useful.seconds == 20.0
    assert books.wasted(in_slurm(status)) == {"killed": 30.0}


def test_a_job_that_begins_again_loses_what_its_last_attempt_had_not_saved(books: Books) -> None:
    """Slurm says that it runs, and the newest attempt has ended: the next one has not begun."""
    books.attempt(1, 1000.0, ended=1050.0, reason="yielded", job_id="7_0", restarts=0)
    books.measured(4, at=1050.0)
    books.checkpoint(2)
    assert books.made(in_slurm("running")).useful.seconds == 20.0
    assert books.wasted(in_slurm("running")) == {START_UP: 30.0}


def test_an_attempt_that_loads_has_not_made_the_iterations_that_lie_there(books: Books) -> None:
    books.attempt(1, 1000.0, ended=1050.0, reason="killed", job_id="7_0", restarts=0)
    books.attempt(2, 2000.0, began_at=2, job_id="7_0", restarts=1)
    books.measured(4, at=1050.0)
    books.checkpoint(2)
    file = books.leased(NO_PROCESS, touched=2100.0)
    job_state = in_slurm("running")
    assert books.made(job_state).useful.seconds == 20.0
    assert books.wasted(job_state) == {"killed": 30.0, START_UP: 100.0}
    # Two iterations later.
    books.measured(4, at=2120.0)
    os.utime(file, (2125.0, 2125.0))
    assert books.made(job_state).useful.seconds == 40.0
    assert books.wasted(job_state) == {"killed": 30.0, START_UP: 105.0}


@pytest.mark.parametrize("leased", [True, False])
def test_the_time_of_a_running_attempt_is_by_the_clock_of_its_lease(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, leased: bool
) -> None:
    lab.launch("--executor", "local", "--only", "interval=1", fake={"*": {"seconds": 0.2}})
    states = lab.wait_for(lambda s: s["interval=1-seed0"].iteration >= 1)
    state = states["interval=1-seed0"]
    assert state.state == "running"
    if not leased:
        for file in (state.folder / "owner").iterdir():
            file.unlink()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    spent = ledger([state], lab.runs / "toy").total.seconds
    assert 0.1 < spent < 60 if leased else 3600 < spent < 3660


def test_runs_on_shards_of_a_gpu_have_no_gpu_hours(books: Books) -> None:
    books.attempt(1, 1000.0, ended=8200.0, reason="exception", gpus=0.0)
    assert books.made().total.gpu_seconds == 0
    text = as_text(books.lab.observe())
    assert "cost: 2 h 00 min of runs, 0 s useful; beside them 2 h 00 min exception" in text
    assert "GPU" not in text


def test_a_run_that_was_finished_in_one_go_costs_no_look_at_lease_or_accounting(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.finish("--executor", "inline", "--only", "interval=1")
    seen = lab.observe()
    states = [state for state in seen.states if state.state == "finished"]
    opened: list[str] = []
    in_use = True
    sys.addaudithook(
        lambda event, told: opened.append(str(told[0])) if in_use and event == "open" else None
    )
    ledger(states, seen.folder)
    in_use = False
    assert opened == [f"{state.folder}/eval.jsonl" for state in states]
