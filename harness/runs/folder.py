"""What a run's folder says beside its measurements: attempts, checkpoints, where it began."""

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
"""Why an attempt ended. `yielded`: it took a checkpoint because the scheduler wanted its place.
`no-progress`: it was not begun, or not queued again, for the attempts before it led nowhere.
`killed` means that it left no word, or that the next attempt says so."""

ENDED_BY_ITSELF: tuple[Reason, ...] = (
    "config",
    "exception",
    "no-space",
    "run-error",
    "no-progress",
)
"""Reasons that the run has, whatever became of its job."""


def look_at_attempts(folder: Path) -> tuple[tuple[Attempt, ...], tuple[str, ...]]:
    """The attempts of a run, the oldest first, one without an end by the time it was last seen; and
    what is wrong with those of the records that are damaged."""
    found, damaged = [], []
    files = _attempt_files(folder)
    if not files and os.path.isfile(place := f"{folder}/attempts"):  # noqa: PTH113
        damaged.append(f"{place}: is no folder; remove it, the run itself is unharmed")
    for file in files:
        try:
            attempt = read(Attempt, file)
        except DamagedFileError as error:
            damaged.append(f"{error}; remove it, the run itself is unharmed")
            continue
        if attempt is not None:
            found.append(attempt)
    return tuple(sorted(found, key=lambda attempt: attempt.number)), tuple(sorted(damaged))


def read_attempts(folder: Path) -> tuple[Attempt, ...]:
    """The attempts of a run, the oldest first, but for damaged records."""
    return look_at_attempts(folder)[0]


def next_attempt(folder: Path) -> int:
    """The number of a new attempt: damaged records keep theirs."""
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
    tail = 0
    for attempt in reversed(attempts):
        if attempt.began_at != checkpoint:
            break
        tail += 1
    return tail


def last_seen(folder: Path, attempt: Attempt) -> float:
    """When an attempt ended, or else the last moment at which its run gave a sign of life."""
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

    None where the lease is another's by now, or was given back.
    """
    try:
        files = [file for file in (folder / OWNER).iterdir() if file.name.isdigit()]
        with max(files, key=lambda file: int(file.name)).open("rb") as stream:
            touched = os.fstat(stream.fileno()).st_mtime
            owner = dict(loads(stream.read()))
    except (OSError, ValueError, TypeError):
        return None
    pid, machine = owner.get("pid"), owner.get("machine")
    # Who asks about an attempt before its own may have the same process id, and is not meant.
    if pid != attempt.pid or (pid == os.getpid() and machine == lease.MACHINE):
        return None
    return touched or None


def close_killed(folder: Path) -> None:
    """Write the end of a run's last attempt, if it could not, and what it had taken over by then.

    To be called by the run's owner, before anything in the folder changes.
    """
    attempts = read_attempts(folder)
    if not attempts or attempts[-1].ended is not None:
        return
    killed, taken = attempts[-1], origin(folder)
    done = taken["iterations"] if taken else 0
    began_at = max(killed.began_at, done if done <= newest_checkpoint(folder) else 0)
    ended = last_seen(folder, killed)
    end = {"ended": ended, "reason": "killed", "began_at": began_at}
    _write_attempt(folder, killed.model_copy(update=end))


def _write_attempt(folder: Path, attempt: Attempt) -> None:
    (folder / "attempts").mkdir(exist_ok=True)
    write_json(folder / "attempts" / f"{attempt.number}.json", attempt.model_dump(mode="json"))


def origin(folder: Path) -> dict[str, Any] | None:
    """What was copied into a run's folder (`mixgrpo.files.records.Origin`); None if nothing was, or
    where that is not known."""
    try:
        found = read_origin(folder)
    except DamagedFileError:
        return None
    return found.model_dump() if found else None


def trained_by(folder: Path, iterations: int) -> str:
    """The study that trained a run's first iterations, the last of them at least.

    Noted with every copy: by now the original may itself be of another study. A note that lacks it,
    as an earlier version's, names the study that was copied from.
    """
    copied = origin(folder)
    if copied is None or copied["iterations"] < iterations:
        made = [a.sweep for a in read_attempts(folder) if a.sweep and a.began_at < iterations]
        return made[-1] if made else folder.resolve().parent.name
    return copied["trained_by"] or copied["run"].partition("/")[0] or folder.parent.name


def is_of(sweep: str, folder: Path, attempt: Attempt) -> bool:
    """Whether a sweep asked for an attempt: the run in `folder` may be another one's, too.

    Earlier versions did not say it, and kept each run in the folder of its sweep.
    """
    return sweep == (
        attempt.sweep or (folder.resolve().parent.name if folder.is_symlink() else sweep)
    )


def taken_over(folder: Path, sweep: str, iterations: int) -> Origin | None:
    """What of a finished run was computed for another sweep, or copied. None where nothing was.

    DamagedFileError for a damaged origin.json.
    """
    noted = read_origin(folder)
    if noted is not None:
        return noted
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
