"""The state of every run's job in Slurm, from what was submitted and what Slurm answers.

`Scheduler` queries Slurm, and cancels jobs when told to, but writes no file. `settle_submissions`,
which only the launcher calls, records what Slurm forgets: the ids of jobs, and how they ended.
"""

import contextlib
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from harness.slurm import commands as slurm
from harness.slurm import submissions
from harness.slurm.submissions import Submission
from mixgrpo.errors import RunError
from mixgrpo.files import jsonlines

LAG_S = 10.0
"""How long to wait for the accounting to learn how a job ended; after that, do without."""
UNKNOWN = "UNKNOWN"
"""The recorded end of a job of which neither Slurm nor its accounting knew how it ended."""
_NOT_ENDED = ("RUNNING", "PENDING", "COMPLETING", "REQUEUED", "SUSPENDED")

LAUNCH_FAILED = "launch failed requeued held"
"""Slurm's reason for holding a job whose node failed while it started it."""

JobStatus = Literal["queued", "running", "gone", "unknown"]


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a run's job, of its last submission."""

    task: str
    """Slurm's id of the job."""
    token: str
    """The submission's."""
    status: JobStatus
    """`unknown` while Slurm does not answer."""
    slurm_state: str = ""
    """Slurm's word for the state, or for how the job ended."""
    reason: str = ""
    """Why it waits."""
    nodes: str = ""
    created: float = field(default=0.0, compare=False)
    """When it was submitted, in seconds since the epoch."""


class Scheduler:
    """What Slurm knows of a sweep's runs, asked again at most every `poll_s`. Writes nothing."""

    def __init__(self, sweep_folder: Path, poll_s: float = 30.0, lag_s: float = 0.0) -> None:
        """`lag_s` is how long to wait for the accounting to learn how a job ended."""
        self.sweep_folder, self.poll_s, self.lag_s = sweep_folder, poll_s, lag_s
        self.silent: str | None = None
        """Why Slurm did not answer the last question."""
        self._asked = float("-inf")
        self._queue: dict[str, slurm.Listed] = {}
        self._covered: set[str] = set()
        """Tokens of the submissions that existed when `_queue` was read."""
        self._ends: dict[str, str] = {}
        """Slurm's last state of each task that is over."""
        self._unlisted_since: dict[str, float] = {}
        """Tasks that the queue no longer lists and whose last state is not known yet."""

    def job_states(self) -> dict[str, JobState]:
        """The state of each run's job, by the name of the run's folder, for all that were ever
        submitted.

        Empty on a machine without Slurm: there only the run folders are read.
        """
        known = submissions.read(self.sweep_folder)
        if not known or shutil.which("squeue") is None:
            return {}
        asks = time.monotonic() - self._asked >= self.poll_s
        if asks:
            self._ask({submission.token for submission in known})
        submitted = [
            (name, submission, index)
            for submission in map(self.with_job_id, known)
            for index, names in enumerate(submission.tasks)
            for name in names
        ]
        last = {name: (submission, index) for name, submission, index in submitted}
        if asks and not self.silent:
            self._learn_ends(list(last.values()))
        states = {name: self._state(*task) for name, task in last.items()}
        for name, submission, index in submitted:
            # An earlier job that is alive after all counts more than a later one that is over.
            if states[name].status == "gone" and self._listed(submission, index):
                states[name] = self._state(submission, index)
        return states

    def cancel(self, names: set[str]) -> set[str]:
        """Cancel the jobs of these runs, whoever submitted them.

        Returns the names of the runs that share their job with other runs; those jobs go on.
        RunError where Slurm does not answer.
        """
        states = self.job_states()
        if self.silent is not None:
            raise RunError(f"Slurm does not answer ({self.silent}); run the same command again")
        by_task: dict[str, set[str]] = {}
        for name, job in states.items():
            # The id of a job that is over may by now be that of another user's or sweep's job.
            if job.status != "gone" and job.task:
                by_task.setdefault(job.task, set()).add(name)
        slurm.cancel(sorted(task for task, runs in by_task.items() if runs <= names))
        return set().union(*(runs & names for runs in by_task.values() if not runs <= names))

    def with_job_id(self, submission: Submission) -> Submission:
        """The submission with Slurm's id of it, looked up by its name where the record lacks it."""
        if submission.job is not None:
            return submission
        for listed in self._queue.values():
            if listed.name == submission.name:
                return replace(submission, job=listed.id.partition("_")[0])
        return submission

    def _ask(self, tokens: set[str]) -> None:
        self._asked = time.monotonic()
        try:
            self._queue = slurm.queue()
        except slurm.Unreachable as error:
            self.silent = str(error)
            return
        self.silent, self._covered = None, tokens

    def _state(self, submission: Submission, index: int) -> JobState:
        task = submission.task_id(index)

        def state(
            status: JobStatus, slurm_state: str = "", reason: str = "", nodes: str = ""
        ) -> JobState:
            return JobState(
                task, submission.token, status, slurm_state, reason, nodes, submission.created
            )

        if submission.token not in self._covered:
            return state("unknown" if self.silent else "queued")
        listed = self._listed(submission, index)
        if listed is not None:
            if self.silent:
                return state("unknown", listed.state, self.silent, listed.nodes)
            status: JobStatus = "queued" if listed.queued else "running"
            return state(status, listed.state, listed.reason, listed.nodes)
        if submission.job is None:
            return state("gone", "NEVER_SUBMITTED")
        if task in self._ends:
            return state("gone", self._ends[task])
        if task in self._unlisted_since:
            if time.monotonic() - self._unlisted_since[task] < self.lag_s:
                return state("running", "COMPLETING")
            return state("gone")
        # Its id was written down after the queue was read.
        return state("unknown" if self.silent else "queued")

    def _listed(self, submission: Submission, index: int) -> slurm.Listed | None:
        """The queue's line of a task; one of the same id and another name is another job."""
        listed = self._queue.get(submission.task_id(index))
        return listed if listed is not None and listed.name == submission.name else None

    def _learn_ends(self, tasks: list[tuple[Submission, int]]) -> None:
        """Learn how the tasks ended that the queue does not list."""
        missing = {
            submission.task_id(index): submission
            for submission, index in tasks
            if submission.job is not None
            and self._listed(submission, index) is None
            and submission.task_id(index) not in self._ends
        }
        for token in {submission.token for submission in missing.values()}:
            for ended in submissions.read_ended(self.sweep_folder, token):
                self._ends[ended.task] = ended.state
        missing = {task: s for task, s in missing.items() if task not in self._ends}
        if not missing:
            return
        ends = _last_states(list(missing.values()))
        for task, submission in missing.items():
            # Tasks that were cancelled before they ran stand together under the array's id.
            name, state = ends.get(task) or ends.get(str(submission.job), ("", ""))
            # The accounting may lag behind and still say that a job runs.
            if name == submission.name and state not in _NOT_ENDED:
                self._unlisted_since.pop(task, None)
                self._ends[task] = state
            else:
                self._unlisted_since.setdefault(task, time.monotonic())


def _last_states(of: list[Submission]) -> dict[str, tuple[str, str]]:
    """Name and last state by task, from the accounting, or else from what Slurm remembers."""
    jobs = sorted({str(submission.job) for submission in of})
    rows = slurm.history(jobs, min(submission.created for submission in of))
    if rows:
        return {task: (past[-1].name, past[-1].state) for task, past in rows.items()}
    return slurm.last_states(jobs)


def settle_submissions(scheduler: Scheduler) -> None:
    """Record the ids of jobs and how they ended, and cancel jobs that have nothing to run. For the
    one launcher."""
    folder = scheduler.sweep_folder
    for recorded in submissions.read(folder):
        submission = scheduler.with_job_id(recorded)
        if submission.job != recorded.job:
            with contextlib.suppress(RunError):  # tried again at the next look
                if _cancel_without_task_files(folder, submission):
                    submissions.forget(folder, recorded)
                else:
                    submissions.write(folder, submission)
    _record_ends(folder, scheduler.job_states())


def _cancel_without_task_files(sweep_folder: Path, submission: Submission) -> bool:
    """Cancel the jobs that have nothing to run, for their launcher was killed before submitit
    renamed the files that describe the tasks. Whether these are all of the submission's."""
    tasks = [submission.task_id(index) for index in range(len(submission.tasks))]
    folder = submissions.folder(sweep_folder) / submission.token
    idle = [task for task in tasks if not (folder / f"{task}_submitted.pkl").exists()]
    slurm.cancel(idle)
    return idle == tasks


def _record_ends(sweep_folder: Path, states: dict[str, JobState]) -> None:
    """Record how jobs ended, each once, with every time they ran."""
    ended: dict[str, dict[str, str]] = {}
    """Slurm's word by task, by the submission's token."""
    for job in states.values():
        if job.status == "gone" and job.task:
            ended.setdefault(job.token, {})[job.task] = job.slurm_state
    by_token = {submission.token: submission for submission in submissions.read(sweep_folder)}
    for token, words in ended.items():
        recorded = {end.task for end in submissions.read_ended(sweep_folder, token)}
        new = sorted(words.keys() - recorded)
        if not new:
            continue
        submission = by_token[token]
        jobs = sorted({task.partition("_")[0] for task in new})
        rows = slurm.history(jobs, submission.created)
        for task in new:
            times = [
                asdict(past)
                for past in rows.get(task, [])
                if past.name == submission.name and past.state not in _NOT_ENDED
            ]
            if not times or not words[task]:
                times.append({"state": words[task] or UNKNOWN})
            for line in times:
                file = submissions.ended_file(sweep_folder, token)
                jsonlines.append(file, line | {"task": task})
