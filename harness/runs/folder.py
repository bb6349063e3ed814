"""What a run's folder records beside its measurements: attempts, checkpoints, what was copied."""

import itertools
import os
from pathlib import Path
from typing import Any, Literal

from harness.runs.records import Attempt
from mixgrpo.files import lease
from mixgrpo.files.atomic import write_json
from mixgrpo.files.jsonlines import whole_lines
from mixgrpo.files.manifest import is_checkpoint_name
from mixgrpo.files.records import METRICS, DamagedFileError, Origin, loads, read, read_origin
from mixgrpo.runs.folder import OWNER

STOP = "stop"
"""A file of this name in a run's folder asks its job to checkpoint and stop."""


def ask_to_stop(folders: list[Path]) -> None:
    """Ask the jobs of these runs to checkpoint and stop after their iteration."""
    for folder in folders:
        (folder / STOP).touch()


Reason = Literal[
    "finished",
    "stopped",
    "yielded",
    "config",
    "exception",
    "no-space",
    "run-error",
    "no-progress",
    "killed",
]
"""Why an attempt ended. `yielded`: it took a checkpoint because the scheduler needed its node.
`no-progress`: it was not begun, or not queued again, because the attempts before it came to no new
checkpoint. `killed`: it recorded no end; the next attempt does."""

ENDED_BY_ITSELF: tuple[Reason, ...] = (
    "config",
    "exception",
    "no-space",
    "run-error",
    "no-progress",
)
"""Reasons that lie in the run, whatever Slurm says of its job."""


def look_at_attempts(folder: Path) -> tuple[tuple[Attempt, ...], tuple[str, ...]]:
    """The attempts of a run, the oldest first, and what is wrong with damaged records."""
    attempts, damaged = [], []
    files = _attempt_files(folder)
    if not files and os.path.isfile(path := f"{folder}/attempts"):  # noqa: PTH113
        damaged.append(f"{path}: is no folder; remove it, the run itself is unharmed")
    for file in files:
        try:
            attempt = read(Attempt, file)
        except DamagedFileError as error:
            damaged.append(f"{error}; remove it, the run itself is unharmed")
            continue
        if attempt is not None:
            attempts.append(attempt)
    return tuple(sorted(attempts, key=lambda attempt: attempt.number)), tuple(sorted(damaged))


def read_attempts(folder: Path) -> tuple[Attempt, ...]:
    """The attempts of a run, the oldest first, without damaged records."""
    return look_at_attempts(folder)[0]


def next_attempt(folder: Path) -> int:
    """The number of a new attempt; damaged records count."""
    names = (Path(file).stem for file in _attempt_files(folder))
    return max((int(name) for name in names if is_checkpoint_name(name)), default=0) + 1


def _attempt_files(folder: Path) -> list[str]:
    try:
        with os.scandir(f"{folder}/attempts") as entries:
            return [e.path for e in entries if e.name[0] != "." and e.name.endswith(".json")]
    except OSError:
        return []


def newest_checkpoint(folder: Path) -> int:
    """Iterations of a run's newest checkpoint, as its name says; 0 where there is none."""
    return max(checkpoints_of(folder), default=0)


def checkpoints_of(folder: Path) -> list[int]:
    """Iterations of a run's checkpoints, as their names say, the oldest first."""
    try:
        with os.scandir(f"{folder}/checkpoints") as entries:
            return sorted(int(e.name) for e in entries if is_checkpoint_name(e.name))
    except OSError:
        return []


def without_progress(attempts: tuple[Attempt, ...], checkpoint: int) -> int:
    """How many attempts in a row, the last included, began at the `checkpoint` that is still the
    newest."""
    return len(list(itertools.takewhile(lambda a: a.began_at == checkpoint, reversed(attempts))))


def last_seen(folder: Path, attempt: Attempt) -> float:
    """When an attempt ended, or else its run's last sign of life, in seconds since the epoch."""
    if attempt.ended is not None:
        return attempt.ended
    times = [attempt.started]
    for name in ("metrics.jsonl", "eval.jsonl"):
        file = folder / name
        if file.exists():
            times.append(file.stat().st_mtime)
    return max(*times, last_touch(folder, attempt) or 0.0)


def last_touch(folder: Path, attempt: Attempt) -> float | None:
    """When an attempt last touched the lease of its run, in seconds since the epoch.

    None where another process holds the lease by now, or where it was released.
    """
    try:
        files = [file for file in (folder / OWNER).iterdir() if file.name.isdigit()]
        with max(files, key=lambda file: int(file.name)).open("rb") as stream:
            touched = os.fstat(stream.fileno()).st_mtime
            owner = dict(loads(stream.read()))
    except (OSError, ValueError, TypeError):
        return None
    pid, machine = owner.get("pid"), owner.get("machine")
    # This process may hold the lease now, with the process id of the attempt that is asked about.
    if pid != attempt.pid or (pid == os.getpid() and machine == lease.MACHINE):
        return None
    return touched or None


def close_killed(folder: Path) -> None:
    """Record the end of a run's last attempt if it was killed, and what it had copied by then.

    To be called by the holder of the run's lease, before anything in the folder changes.
    """
    attempts = read_attempts(folder)
    if not attempts or attempts[-1].ended is not None:
        return
    killed, copied = attempts[-1], origin(folder)
    iterations = copied["iterations"] if copied else 0
    if iterations > newest_checkpoint(folder):  # it was killed while it copied
        iterations = 0
    began_at = max(killed.began_at, iterations)
    ended = last_seen(folder, killed)
    end = {"ended": ended, "reason": "killed", "began_at": began_at}
    write_attempt(folder, killed.model_copy(update=end))


def write_attempt(folder: Path, attempt: Attempt) -> None:
    (folder / "attempts").mkdir(exist_ok=True)
    write_json(folder / "attempts" / f"{attempt.number}.json", attempt.model_dump(mode="json"))


def origin(folder: Path) -> dict[str, Any] | None:
    """What was copied into a run's folder (`mixgrpo.files.records.Origin`); None if nothing was, or
    where that is not known."""
    try:
        copied = read_origin(folder)
    except DamagedFileError:
        return None
    return copied.model_dump() if copied else None


def trained_by(folder: Path, iterations: int) -> str:
    """The study that trained the last of a run's first `iterations`.

    It is recorded with every copy, for the original may itself be a copy. Earlier versions recorded
    only the study that was copied from.
    """
    copied = origin(folder)
    if copied is None or copied["iterations"] < iterations:
        made = [a.sweep for a in read_attempts(folder) if a.sweep and a.began_at < iterations]
        return made[-1] if made else folder.resolve().parent.name
    return copied["trained_by"] or copied["run"].partition("/")[0] or folder.parent.name


def is_of(sweep: str, folder: Path, attempt: Attempt) -> bool:
    """Whether `sweep` asked for an attempt at the run in `folder`, which other sweeps may share.

    Earlier versions did not record it, and kept each run in the folder of its sweep.
    """
    return sweep == (
        attempt.sweep or (folder.resolve().parent.name if folder.is_symlink() else sweep)
    )


def taken_over(folder: Path, sweep: str, iterations: int) -> Origin | None:
    """The iterations of a finished run that were copied or computed for another sweep; None where
    there are none.

    DamagedFileError for a damaged origin.json.
    """
    copied = read_origin(folder)
    if copied is not None:
        return copied
    attempts = read_attempts(folder)
    others = [a for a in attempts if not is_of(sweep, folder, a)]
    if not others:
        return None
    first = min((a.began_at for a in attempts if a not in others), default=iterations)
    if not first:
        return None
    lines = whole_lines(folder / METRICS)
    seconds = sum(x.get("seconds_total", 0.0) for x in lines if x["iteration"] < first)
    study = trained_by(folder, first)
    return Origin(run=f"{study}/{folder.name}", iterations=first, seconds=seconds, trained_by=study)
