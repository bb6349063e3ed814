"""Calls Slurm's programs (squeue, sacct, scontrol, scancel) and reads their answers.

Only the user's jobs are asked for. Nothing here knows of runs.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mixgrpo.errors import ConfigError, RunError

_TIMEOUT_S = 60.0
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
_QUEUED |= {"PREEMPTED", "NODE_FAIL"}  # while squeue still lists them, they will run again

CAUSES = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "PREEMPTED": "preempted",
    "REQUEUED": "requeued",
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "node-failure",
    "OUT_OF_MEMORY": "out-of-memory",
}
"""Why a job ended, by Slurm's state; the other states add nothing to the job's own record."""


USUAL_ARRAY_SIZE = 1001
"""Slurm's default of MaxArraySize."""


class Unreachable(RunError):
    """Slurm does not answer at the moment; nothing is known."""


@dataclass(frozen=True)
class Listed:
    """A job or array task that squeue lists."""

    id: str
    """`123`, or `123_4` for a task of an array."""
    name: str
    state: str
    reason: str
    nodes: str

    @property
    def queued(self) -> bool:
        return self.state in _QUEUED


@dataclass(frozen=True)
class Past:
    """One row of the accounting: one time that a job or array task was on its nodes."""

    id: str
    name: str
    state: str
    started: float | None
    """Seconds since the epoch, as `ended`."""
    ended: float | None
    nodes: str


def check() -> None:
    """ConfigError where this machine has no Slurm, or a Slurm without a cluster. That the cluster
    does not answer is no error."""
    missing = [name for name in ("sbatch", "squeue", "srun", "scontrol") if not shutil.which(name)]
    if missing:
        raise ConfigError(
            f"--executor slurm: {missing[0]} is not installed; run this on a login node of the "
            "cluster, or with --executor local"
        )
    try:
        _run(["scontrol", "show", "config"])
    except RunError as error:
        if "configuration source" in str(error):
            raise ConfigError(
                "--executor slurm: Slurm is installed, but no cluster is configured (no "
                "slurm.conf); run this on a login node of the cluster, or with --executor local"
            ) from None


def check_path(folder: Path) -> None:
    """ConfigError for a folder that Slurm cannot use: it drops backslashes, reads `%j` as the job's
    id, and ends an option at a line break."""
    path = str(folder.resolve())
    for character, name in (("\\", "a backslash"), ("%", "a %"), ("\n", "a line break")):
        if character in path:
            raise ConfigError(
                f"{path!r}: contains {name}, which Slurm changes in the names of files; "
                "rename that folder, or name another one with --runs"
            )
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ConfigError(
            f"{path!r}: is not UTF-8, which Slurm requires; rename that folder, or "
            "name another one with --runs"
        )


def queue() -> dict[str, Listed]:
    """The user's jobs that wait or run, by id. Unreachable where Slurm does not answer."""
    form = "%F|%K|%T|%r|%N|%j"
    text = _query(["squeue", "-h", "-r", "-a", "-u", str(os.getuid()), "-o", form])
    rows = [line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5]
    listed = [Listed(_task_id(row[0], row[1]), row[5], row[2], row[3], row[4]) for row in rows]
    return {one.id: one for one in listed}


def history(jobs: Iterable[str], since: float) -> dict[str, list[Past]]:
    """Every time that the tasks of these jobs ran, the oldest first, by task id.

    `jobs`: ids without the task. Empty where the site keeps no accounting.
    """
    if shutil.which("sacct") is None:
        return {}
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 2 * 86400))
    form = "JobID,State,Start,End,NodeList,JobName"
    command = ["sacct", "-X", "-D", "-P", "-n", "-S", start, "-j", ",".join(jobs), "-o", form]
    try:
        text = _query(command)
    except Unreachable:
        return {}
    by_task: dict[str, list[Past]] = {}
    of_ranges: dict[str, list[Past]] = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) < 6:
            continue
        state = (fields[1].split() or [""])[0]  # `CANCELLED by 1000`
        tasks = expand_tasks(fields[0])
        for task in tasks:
            past = Past(task, fields[5], state, _epoch(fields[2]), _epoch(fields[3]), fields[4])
            (by_task if tasks == [fields[0]] else of_ranges).setdefault(task, []).append(past)
    # The row of a range of tasks that wait may still list some that have run since.
    by_task = of_ranges | by_task
    for rows in by_task.values():
        rows.sort(key=lambda row: (row.started is None, row.started or 0.0))
    return by_task


def expand_tasks(job: str) -> list[str]:
    """The tasks that an id stands for: `7_[1,4-5%2]` for three of which none has run."""
    array, bracket, tasks = job.partition("_[")
    if not bracket:
        return [job]
    ids = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if all(word.isdigit() for word in (first, last or first, step or "1")):
            indices = range(int(first), int(last or first) + 1, int(step or "1"))
            ids += [f"{array}_{index}" for index in indices]
    return ids


def last_states(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Name and last state of jobs that are over, by task id, from the controller's memory.

    For sites without accounting. The controller forgets a job after some minutes.
    """
    try:
        text = _query(
            ["squeue", "-h", "-r", "-t", "all", "-j", ",".join(jobs), "-o", "%F|%K|%T|%j"]
        )
    except Unreachable:  # also where it has forgotten all of them
        return {}
    rows = [line.split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return {_task_id(row[0], row[1]): (row[3], row[2]) for row in rows}


def max_array_size() -> int:
    """The most jobs that an array may have on this cluster."""
    for line in _query(["scontrol", "show", "config"]).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return USUAL_ARRAY_SIZE


def is_running(job: str) -> bool:
    """Whether a job runs by Slurm's account: a cancelled job is COMPLETING, one that is about to be
    preempted is RUNNING. Unreachable where Slurm does not answer.
    """
    return "JobState=RUNNING" in _query(["scontrol", "-o", "show", "job", job])


def release(jobs: list[str]) -> None:
    """Let held jobs start again. RunError where Slurm refuses."""
    _run(["scontrol", "release", *jobs])


def requeue(job: str) -> None:
    """Put a job that is running back into the queue. RunError where Slurm refuses."""
    _run(["scontrol", "requeue", job])


def cancel(jobs: list[str]) -> None:
    """Cancel jobs and array tasks. One that is over already is no error."""
    for begin in range(0, len(jobs), 200):
        _run(["scancel", *jobs[begin : begin + 200]])


def _task_id(job: str, index: str) -> str:
    return f"{job}_{index}" if index.isdigit() else job


def _environment() -> dict[str, str]:
    """The environment of Slurm's programs, without variables that filter or truncate answers."""
    filters = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(filters)}
    return kept | {"SLURM_BITSTR_LEN": "0"}


def _query(command: list[str]) -> str:
    """The output of a program that only reads. Unreachable where it fails."""
    try:
        return _run(command)
    except RunError as error:
        raise Unreachable(str(error)) from None


def _run(command: list[str]) -> str:
    """Run a program and return its output. RunError with its error message where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise RunError(f"{command[0]} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(text: str) -> str:
    """The line of a fatal error, or else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "fatal:" in line]
    return next(iter([*fatal, *lines]), "no reason given")


def _epoch(text: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:  # Unknown, None
        return None
