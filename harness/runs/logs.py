"""Finds a run by name, and the log of one of its attempts."""

import contextlib
from pathlib import Path

from harness.runs.folder import look_at_attempts, next_attempt
from harness.runs.records import Attempt
from harness.slurm import submissions
from harness.study.names import stem_of
from mixgrpo.errors import ConfigError
from mixgrpo.runs.location import locate


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder of a run, given by its path or by the beginning of its name under `runs_dir`.

    ConfigError where no run, or more than one, matches.
    """
    # The folder of a run whose job has not begun yet is empty.
    with contextlib.suppress(OSError):  # a run's name may be too long for a path
        if any((Path(name) / part).exists() for part in ("attempts", "config.yaml")) or (
            "-seed" in Path(name).name and Path(name).is_dir()
        ):
            return Path(name)
        if Path(name).is_file() and (folder := locate(Path(name))).is_dir():
            return folder
    stem = stem_of(name)
    matches = sorted(
        folder
        for folder in runs_dir.glob("*/*-seed*")
        if folder.is_dir() and folder.name.startswith((name, stem))
    )
    exact = [folder for folder in matches if folder.name.rpartition("-")[0] in (name, stem)]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if not matches:
        raise ConfigError(
            f"{name}: no run of this name under {runs_dir}; give a run's folder, or its name as "
            "python -m harness.status shows it"
        )
    raise ConfigError(
        f"{name}: fits {len(matches)} runs ({', '.join(map(str, matches[:3]))}"
        f"{', ...' * (len(matches) > 3)}); give the folder"
    )


def find_log(folder: Path, number: int | None = None) -> Path:
    """The log of attempt `number`, by default of the newest, or of the Slurm job that never
    began one.

    ConfigError where there is none.
    """
    attempts, damaged = look_at_attempts(folder)
    if number is not None:
        chosen = [attempt for attempt in attempts if attempt.number == number]
        if not chosen:
            known = ", ".join(str(attempt.number) for attempt in attempts) or "none"
            raise ConfigError(f"--attempt {number}: {folder} has the attempts {known}")
        return _log_of(folder, chosen[0])
    slurm_log = submission_log(folder, attempts)
    if slurm_log is not None:
        return slurm_log
    if damaged and (not attempts or attempts[-1].number + 1 < next_attempt(folder)):
        raise ConfigError(damaged[-1])
    if not attempts:
        raise ConfigError(f"{folder}: no job has begun yet, so there is nothing to show")
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


def submission_log(folder: Path, attempts: tuple[Attempt, ...]) -> Path | None:
    """The log of a run's newest job in Slurm; None where it began an attempt, or has no log."""
    for submission in reversed(submissions.read(folder.parent)):
        for index, names in enumerate(submission.tasks):
            if folder.name in names:
                task = submission.task_id(index)
                if any(attempt.job_id == task for attempt in attempts):
                    return None
                log = submissions.folder(folder.parent) / submission.token / f"{task}_0_log.out"
                return log if log.exists() else None
    return None
