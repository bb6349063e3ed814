"""What was handed to Slurm, and where each run stands there.

A submission is one array of jobs. Its record is written before sbatch is called and again with the
job's id after it, so that a launcher killed between the two loses nothing: the array carries the
submission's name, by which the next launcher finds it. Job ids are only ever used together with the
run they were given for: a cluster that is made anew counts from the start again.

    runs/<sweep>/submissions/<token>.json          the record
    runs/<sweep>/submissions/<token>/              submitit's folder: sbatch text, logs before a run
    runs/<sweep>/submissions/<token>.ended.jsonl   how its jobs ended, for when Slurm has forgotten
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from harness.slurm import commands as slurm
from mixgrpo.errors import RunError
from mixgrpo.files import jsonlines
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import DamagedFileError, Number, Record, in_words, read_bytes

SUBMISSIONS = "submissions"


@dataclass(frozen=True)
class Submission:
    """One array of jobs, or one job."""

    token: str
    """Begins with a number that grows: the last submission of a run counts."""
    name: str
    """The job's name in Slurm."""
    created: float
    """Seconds since the epoch."""
    job: str | None
    """Slurm's id; None where it is not known whether Slurm took it."""
    tasks: tuple[tuple[str, ...], ...]
    """Names of the runs' folders by array task; several where runs are packed."""
    resources: dict[str, Any]
    array: bool

    def task_id(self, index: int) -> str:
        """Slurm's id of one task; empty where it is not known."""
        if self.job is None:
            return ""
        return f"{self.job}_{index}" if self.array else self.job


class Ended(Record):
    """How one task of a submission ended, for each time that it ran."""

    task: str
    state: str
    started: Number | None = None
    """By Slurm's clock, in seconds since the epoch, as `ended`."""
    ended: Number | None = None


_RECORD = TypeAdapter(Submission)

LAG_S = 10.0
"""So long the accounting may need to learn how a job ended; after that it is done without."""
UNKNOWN = "UNKNOWN"
"""Kept as the last word of a job of which nobody could say how it ended."""
_LIVING = ("RUNNING", "PENDING", "COMPLETING", "REQUEUED", "SUSPENDED")

LAUNCH_FAILED = "launch failed requeued held"
"""Slurm's reason for holding a job whose node failed while it started it."""

Standing = Literal["queued", "running", "gone", "unknown"]


@dataclass(frozen=True)
class Place:
    """Where a run stands in Slurm, by its last submission."""

    task: str
    """Slurm's id of its job."""
    token: str
    standing: Standing
    """`unknown` while Slurm does not answer."""
    word: str = ""
    """Slurm's own word for the state, or for how the job ended."""
    reason: str = ""
    """Why it waits."""
    nodes: str = ""
    created: float = field(default=0.0, compare=False)
    """When it was handed over, in seconds since the epoch."""


def folder(sweep_folder: Path) -> Path:
    return sweep_folder / SUBMISSIONS


def new(
    sweep_folder: Path, sweep_name: str, tasks: Sequence[Sequence[str]], resources: dict[str, Any]
) -> Submission:
    """Record what is about to be handed over, and make its folder."""
    place = folder(sweep_folder)
    place.mkdir(exist_ok=True)
    numbers = [int(p.name.partition("-")[0]) for p in place.glob("[0-9]*-*")]
    token = f"{max(numbers, default=0) + 1:05d}-{secrets.token_hex(3)}"
    (place / token).mkdir()
    made = Submission(
        token=token,
        name=f"{sweep_name}-{token}",
        created=time.time(),
        job=None,
        tasks=tuple(map(tuple, tasks)),
        resources=resources,
        array=len(tasks) > 1,
    )
    write(sweep_folder, made)
    return made


def write(sweep_folder: Path, submission: Submission) -> None:
    write_json(folder(sweep_folder) / f"{submission.token}.json", asdict(submission))


def forget(sweep_folder: Path, submission: Submission) -> None:
    """Remove a record: Slurm has not taken the jobs."""
    (folder(sweep_folder) / f"{submission.token}.json").unlink()
    shutil.rmtree(folder(sweep_folder) / submission.token, ignore_errors=True)


def read(sweep_folder: Path) -> list[Submission]:
    """The submissions of a sweep, the oldest first. RunError for a record that is none."""
    found = []
    for file in sorted(folder(sweep_folder).glob("[0-9]*.json")):
        try:
            text = read_bytes(file)
            if text is None:
                continue
            submission = _RECORD.validate_json(text, strict=True)
            if submission.token != file.stem:  # files and folders are named by it
                raise DamagedFileError(file, f"its token is {submission.token}")
            found.append(submission)
        except (ValidationError, DamagedFileError) as error:
            why = in_words(error) if isinstance(error, ValidationError) else str(error)
            raise RunError(
                f"{file}: is not a record of this program ({why}); remove it: the runs are unharmed"
            ) from None
    return found


class Scheduler:
    """What Slurm knows of a sweep's runs, asked again at most every `poll_s`. Writes nothing."""

    def __init__(self, sweep_folder: Path, poll_s: float = 30.0, lag_s: float = 0.0) -> None:
        """`lag_s` is how long it is worth waiting until the accounting knows how a job ended."""
        self.sweep_folder, self.poll_s, self.lag_s = sweep_folder, poll_s, lag_s
        self.silent: str | None = None
        """Why Slurm gave no answer to the last question."""
        self._asked = float("-inf")
        self._queue: dict[str, slurm.Listed] = {}
        self._covered: set[str] = set()
        """Tokens of the submissions that were there when `_queue` was asked for."""
        self._gone: dict[str, str] = {}
        """The last word about each task that is over."""
        self._missed: dict[str, float] = {}
        """Since when tasks are not listed any more whose last word is not known yet."""

    def places(self) -> dict[str, Place]:
        """Where each run that was ever handed over stands, by its folder's name.

        Nothing on a machine without Slurm: there the folders alone say how things are.
        """
        known = read(self.sweep_folder)
        if not known or shutil.which("squeue") is None:
            return {}
        asks = time.monotonic() - self._asked >= self.poll_s
        if asks:
            self._ask({submission.token for submission in known})
        adopted = [self.adopted(submission) for submission in known]
        handed = [
            (name, submission, index)
            for submission in adopted
            for index, names in enumerate(submission.tasks)
            for name in names
        ]
        last = {name: (submission, index) for name, submission, index in handed}
        if asks and not self.silent:
            self._find_last_words(list(last.values()))
        found = {}
        for name, (submission, index) in last.items():
            found[name] = replace(self._place(submission, index), created=submission.created)
        for name, submission, index in handed:
            # An earlier job that is alive after all counts more than a later one that is over.
            if found[name].standing == "gone" and self._listed(
                submission, submission.task_id(index)
            ):
                place = self._place(submission, index)
                found[name] = replace(place, created=submission.created)
        return found

    def cancel(self, names: set[str]) -> set[str]:
        """Take the jobs of these runs off Slurm, whoever submitted them.

        The names of those that share their job with runs of other names, which goes on. RunError
        where Slurm does not answer.
        """
        places = self.places()
        if self.silent is not None:
            raise RunError(f"Slurm does not answer ({self.silent}); run the same command again")
        by_task: dict[str, set[str]] = {}
        for name, place in places.items():
            # The id of a job that is over may by now be that of a job which is not ours.
            if place.standing != "gone" and place.task:
                by_task.setdefault(place.task, set()).add(name)
        slurm.cancel(sorted(task for task, own in by_task.items() if own <= names))
        shared = [own & names for own in by_task.values() if not own <= names]
        return set().union(*shared)

    def adopted(self, submission: Submission) -> Submission:
        """The submission with the id under which Slurm has it, where the record lacks it."""
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

    def _place(self, submission: Submission, index: int) -> Place:
        task, token = submission.task_id(index), submission.token
        if token not in self._covered:
            return Place(task, token, "unknown" if self.silent else "queued")
        listed = self._listed(submission, task)
        if listed is not None:
            standing: Standing = "queued" if listed.queued else "running"
            if self.silent:
                return Place(task, token, "unknown", listed.state, self.silent, listed.nodes)
            return Place(task, token, standing, listed.state, listed.reason, listed.nodes)
        if submission.job is None:
            return Place("", token, "gone", "NEVER_SUBMITTED")
        if task in self._gone:
            return Place(task, token, "gone", self._gone[task])
        if task in self._missed:
            if time.monotonic() - self._missed[task] < self.lag_s:
                return Place(task, token, "running", "COMPLETING")
            return Place(task, token, "gone")
        # Its id was written down after the queue was asked for.
        return Place(task, token, "unknown" if self.silent else "queued")

    def _listed(self, submission: Submission, task: str) -> slurm.Listed | None:
        """The queue's line of a task; one of the same id and another name is not ours."""
        listed = self._queue.get(task)
        return listed if listed is not None and listed.name == submission.name else None

    def _find_last_words(self, last: list[tuple[Submission, int]]) -> None:
        """Learn how the tasks ended that the queue does not list."""
        missing: dict[str, Submission] = {}
        for submission, index in last:
            task = submission.task_id(index)
            if submission.job is None or self._listed(submission, task) is not None:
                continue
            if task not in self._gone:
                missing[task] = submission
        for token in {submission.token for submission in missing.values()}:
            for ended in read_ended(self.sweep_folder, token):
                self._gone[ended.task] = ended.state
        missing = {task: s for task, s in missing.items() if task not in self._gone}
        if not missing:
            return
        words = _last_words(list(missing.values()))
        for task, submission in missing.items():
            # Tasks that were cancelled before they ran stand together under the array's own id.
            name, word = words.get(task) or words.get(str(submission.job), ("", ""))
            # The accounting may lag behind: a state of the living is no last word.
            if name == submission.name and word not in _LIVING:
                self._missed.pop(task, None)
                self._gone[task] = word
            else:
                self._missed.setdefault(task, time.monotonic())


def _last_words(of: list[Submission]) -> dict[str, tuple[str, str]]:
    """Name and last state by task, from the accounting, or else from what Slurm remembers."""
    jobs = sorted({str(submission.job) for submission in of})
    rows = slurm.history(jobs, min(submission.created for submission in of))
    if rows:
        return {task: (past[-1].name, past[-1].state) for task, past in rows.items()}
    return slurm.last_words(jobs)


def ended_file(sweep_folder: Path, token: str) -> Path:
    return folder(sweep_folder) / f"{token}.ended.jsonl"


def read_ended(sweep_folder: Path, token: str) -> list[Ended]:
    """How a submission's jobs ended, as far as that was kept. Damaged lines are passed over: Slurm
    is asked again."""
    found = []
    for line in jsonlines.whole_lines(ended_file(sweep_folder, token)):
        with contextlib.suppress(ValidationError):
            found.append(Ended.model_validate(line))
    return found


def tidy(scheduler: Scheduler) -> None:
    """Write down what Slurm will forget: the ids it gave, and how jobs ended. One writer."""
    for submission in read(scheduler.sweep_folder):
        found = scheduler.adopted(submission)
        if found.job != submission.job:
            with contextlib.suppress(RunError):  # tried again with the next look
                if _cancel_without_orders(scheduler.sweep_folder, found):
                    forget(scheduler.sweep_folder, submission)
                else:
                    write(scheduler.sweep_folder, found)
    _record_ended(scheduler.sweep_folder, scheduler.places())


def _cancel_without_orders(sweep_folder: Path, submission: Submission) -> bool:
    """Cancel the jobs that can do nothing: their launcher was killed before submitit had named the
    files that say what they are to do. Whether these are all of the submission's."""
    tasks = [submission.task_id(index) for index in range(len(submission.tasks))]
    place = folder(sweep_folder) / submission.token
    idle = [task for task in tasks if not (place / f"{task}_submitted.pkl").exists()]
    slurm.cancel(idle)
    return idle == tasks


def _record_ended(sweep_folder: Path, places: dict[str, Place]) -> None:
    """Keep how jobs ended, each once, with every time they ran."""
    gone: dict[str, set[str]] = {}
    for place in places.values():
        if place.standing == "gone" and place.task:
            gone.setdefault(place.token, set()).add(place.task)
    submission = {s.token: s for s in read(sweep_folder)}
    for token, tasks in gone.items():
        file = ended_file(sweep_folder, token)
        known = {ended.task for ended in read_ended(sweep_folder, token)}
        new_ones = tasks - known
        if not new_ones:
            continue
        jobs = sorted({task.partition("_")[0] for task in new_ones})
        rows = slurm.history(jobs, submission[token].created)
        words = {p.task: p.word for p in places.values()}
        for task in sorted(new_ones):
            name = submission[token].name
            ran = [
                asdict(past)
                for past in rows.get(task, [])
                if past.name == name and past.state not in _LIVING
            ]
            if not ran or not words[task]:
                ran.append({"state": words[task] or UNKNOWN})
            for line in ran:
                jsonlines.append(file, line | {"task": task})
