"""Shows what a run printed, or follows it while it runs.

python -m harness.logs RUN [--follow]
"""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.runs.folder import look_at_attempts, next_attempt, read_attempts
from harness.runs.records import Attempt
from harness.slurm import submissions
from harness.study.names import stem_of
from mixgrpo.cli import run as run_command
from mixgrpo.cli import warn
from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from mixgrpo.text.escape import visible

FOLLOW_EVERY_S = 0.5


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run: a path, or the beginning of a folder's name under `runs_dir`.

    ConfigError where none fits, or several do.
    """
    # A run whose job has not begun yet has an empty folder.
    with contextlib.suppress(OSError):  # a run's name may be too long for a path
        if any((Path(name) / part).exists() for part in ("attempts", "config.yaml")) or (
            "-seed" in Path(name).name and Path(name).is_dir()
        ):
            return Path(name)
    stem = stem_of(name)
    found = sorted(
        folder
        for folder in runs_dir.glob("*/*-seed*")
        if folder.is_dir() and folder.name.startswith((name, stem))
    )
    exact = [folder for folder in found if folder.name.rpartition("-")[0] in (name, stem)]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise ConfigError(
            f"{name}: no run of this name under {runs_dir}; give a run's folder, or its name as "
            "python -m harness.status shows it"
        )
    raise ConfigError(
        f"{name}: fits {len(found)} runs ({', '.join(map(str, found[:3]))}"
        f"{', ...' * (len(found) > 3)}); give the folder"
    )


def find_log(folder: Path, number: int | None = None) -> Path:
    """The log of an attempt, by default of the newest; of its submission where it never began.

    ConfigError where there is none.
    """
    attempts, damaged = look_at_attempts(folder)
    if number is not None:
        chosen = [attempt for attempt in attempts if attempt.number == number]
        if not chosen:
            known = ", ".join(str(attempt.number) for attempt in attempts) or "none"
            raise ConfigError(f"--attempt {number}: {folder} has the attempts {known}")
        return _log_of(folder, chosen[0])
    before_it = _submission_log(folder, attempts)
    if before_it is not None:
        return before_it
    if damaged and (not attempts or attempts[-1].number + 1 < next_attempt(folder)):
        raise ConfigError(damaged[-1])
    if not attempts:
        raise ConfigError(f"{folder}: no job has begun here yet, so there is nothing to show")
    return _log_of(folder, attempts[-1])


def _log_of(folder: Path, attempt: Attempt) -> Path:
    if attempt.log is None:
        raise ConfigError(
            f"{folder}: attempt {attempt.number} ran inline: what it printed is on the terminal "
            "of its launcher"
        )
    log = folder / attempt.log
    if "\0" in attempt.log or not log.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{folder}: attempt {attempt.number} names a log outside its folder, which is not shown"
        )
    return log


def _submission_log(folder: Path, attempts: tuple[Attempt, ...]) -> Path | None:
    """What the newest job of Slurm printed, where it began no attempt."""
    for submission in reversed(submissions.read(folder.parent)):
        for index, names in enumerate(submission.tasks):
            if folder.name in names:
                task = submission.task_id(index)
                if any(attempt.job_id == task for attempt in attempts):
                    return None
                log = submissions.folder(folder.parent) / submission.token / f"{task}_0_log.out"
                return log if log.exists() else None
    return None


def show(log: Path, lines: int) -> int:
    """Print the last lines of a log; 0 means all. The position up to which it was read."""
    try:
        text = log.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{log}: is gone; only the record of the attempt is left") from None
    kept = text.splitlines(keepends=True)
    _print(b"".join(kept[-lines:] if lines else kept))
    return len(text)


def _print(text: bytes) -> None:
    """What a run printed, without moving the cursor: a progress bar becomes lines."""
    decoded = text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    sys.stdout.write(visible(decoded))
    sys.stdout.flush()


def follow(folder: Path, log: Path, position: int, stopping: list[int]) -> None:
    """Print what is added, also by later attempts, until nobody owns the run or a signal is noted
    in `stopping`."""
    watch = lease.Watch()
    while not stopping:
        over = watch.holds(folder / OWNER) is False
        with log.open("rb") as stream:
            stream.seek(position)
            added = stream.read()
        position += len(added)
        _print(added)
        newest = find_log(folder)
        if newest != log:
            warn(f"==> {newest} <==")
            log, position = newest, 0
        elif over:
            return
        signals.pause(FOLLOW_EVERY_S, stopping)


def _first_log(folder: Path, stopping: list[int]) -> Path | None:
    """The newest log of a run, waited for where no job has begun; None after a signal."""
    told = False
    while not stopping:
        if read_attempts(folder) or _submission_log(folder, ()) is not None:
            return find_log(folder)
        if not told:
            warn(f"{folder}: no job has begun here yet; waiting")
            told = True
        signals.pause(FOLLOW_EVERY_S, stopping)
    return None


def main(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name: interval=5-seed0.")],
    runs: cli.RunsOption = Path("runs"),
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt; by default the newest.")
    ] = None,
    lines: Annotated[int, typer.Option(min=0, help="The last so many lines; 0 for all.")] = 0,
) -> int:
    """Show or follow what a run printed."""
    folder = find_run(run, runs)
    # A signal is the way to end it: not as an exception in the middle of a line.
    with signals.noted() as stopping:
        waits = follow_ and attempt is None
        log = _first_log(folder, stopping) if waits else find_log(folder, attempt)
        if log is not None:
            warn(f"==> {log} <==")
            position = show(log, lines)
            if waits:
                follow(folder, log, position, stopping)
    return signals.exit_code(stopping[0]) if stopping else 0


if __name__ == "__main__":
    run_command(main)
