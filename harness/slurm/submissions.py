"""The records of what was submitted to Slurm.

A submission is one array of jobs. Its record is written before sbatch is called, and again with the
job's id after it, so that a launcher killed between the two loses nothing: the array carries the
submission's name, by which the next launcher finds it. Job ids are only ever used together with the
submission's name: a cluster that is set up again counts from the start.

    runs/<sweep>/submissions/<token>.json          the record
    runs/<sweep>/submissions/<token>/              submitit's folder: sbatch text, logs before a run
    runs/<sweep>/submissions/<token>.ended.jsonl   how its jobs ended, which Slurm forgets
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
    """Slurm's id; None while it is not known whether Slurm accepted the jobs."""
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


def folder(sweep_folder: Path) -> Path:
    return sweep_folder / SUBMISSIONS


def new(
    sweep_folder: Path, sweep_name: str, tasks: Sequence[Sequence[str]], resources: dict[str, Any]
) -> Submission:
    """Record what is about to be submitted, and make its folder."""
    records = folder(sweep_folder)
    records.mkdir(exist_ok=True)
    numbers = [int(p.name.partition("-")[0]) for p in records.glob("[0-9]*-*")]
    token = f"{max(numbers, default=0) + 1:05d}-{secrets.token_hex(3)}"
    (records / token).mkdir()
    submission = Submission(
        token=token,
        name=f"{sweep_name}-{token}",
        created=time.time(),
        job=None,
        tasks=tuple(map(tuple, tasks)),
        resources=resources,
        array=len(tasks) > 1,
    )
    write(sweep_folder, submission)
    return submission


def write(sweep_folder: Path, submission: Submission) -> None:
    write_json(folder(sweep_folder) / f"{submission.token}.json", asdict(submission))


def forget(sweep_folder: Path, submission: Submission) -> None:
    """Remove a record: Slurm has refused the jobs."""
    (folder(sweep_folder) / f"{submission.token}.json").unlink()
    shutil.rmtree(folder(sweep_folder) / submission.token, ignore_errors=True)


def read(sweep_folder: Path) -> list[Submission]:
    """The submissions of a sweep, the oldest first. RunError for a damaged record."""
    records = []
    for file in sorted(folder(sweep_folder).glob("[0-9]*.json")):
        try:
            text = read_bytes(file)
            if text is None:
                continue
            submission = _RECORD.validate_json(text, strict=True)
            if submission.token != file.stem:  # files and folders are named by it
                raise DamagedFileError(file, f"its token is {submission.token}")
            records.append(submission)
        except (ValidationError, DamagedFileError) as error:
            why = in_words(error) if isinstance(error, ValidationError) else str(error)
            raise RunError(
                f"{file}: is not a record of this program ({why}); remove it: the runs are unharmed"
            ) from None
    return records


def ended_file(sweep_folder: Path, token: str) -> Path:
    return folder(sweep_folder) / f"{token}.ended.jsonl"


def read_ended(sweep_folder: Path, token: str) -> list[Ended]:
    """How a submission's jobs ended, as far as that was recorded. Damaged lines are skipped: Slurm
    is asked again."""
    ends = []
    for line in jsonlines.whole_lines(ended_file(sweep_folder, token)):
        with contextlib.suppress(ValidationError):
            ends.append(Ended.model_validate(line))
    return ends
