"""The record and the log of one attempt at a run: its start, its warnings, why it ended."""

import contextlib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from harness.launching.job_environment import JobEnvironment, read_job_environment
from harness.runs import environment
from harness.runs.folder import (
    Reason,
    close_killed,
    newest_checkpoint,
    next_attempt,
    write_attempt,
)
from harness.runs.records import Attempt
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.files import lease
from mixgrpo.text.escape import one_line, without_passwords

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MOST_WARNINGS = 20
"""The most that a record keeps: a text with a number in it may differ in every iteration."""


class Record:
    """The record of one attempt, rewritten at every change."""

    def __init__(
        self,
        folder: Path,
        owner: lease.Lease,
        job: JobEnvironment | None,
        env: dict[str, Any],
        processes: int,
        sharded: bool,
        **fields: Any,
    ) -> None:
        """Write the record, with further `fields` of an Attempt, and the end of an attempt before
        it that was killed.

        `owner` is the lease of the run's folder. Its clock, which all machines share, gives the
        times. `job` is None for an attempt in the launcher's process. `env` is what
        `environment.describe` returns. FolderGoneError, here and at every change, where the folder
        is no longer the one that was leased.
        """
        self.folder, self.owner = folder, owner
        self.environment = env
        self.made_on = environment.decisive(env, processes, sharded)
        close_killed(folder)
        number = next_attempt(folder)
        about_job = job or read_job_environment()
        self.attempt = Attempt(
            number=number,
            pid=os.getpid(),
            job_id=about_job.job,
            started=owner.now(),
            ended=None,
            reason=None,
            error=None,
            host=about_job.node,
            restarts=about_job.restarts,
            began_at=newest_checkpoint(folder),
            commit=self.environment["commit"],
            dirty=self.environment["dirty"],
            made_on=self.made_on,
            log=f"log/{number}.log" if job else None,
            **fields,
        )
        self._write(self.attempt)

    def warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        """Replaces `warnings.showwarning`: the text goes to the record, the location to the log."""
        located = warnings.formatwarning(message, category, filename, lineno, line)
        log_line(located.removesuffix("\n"))
        text, kept = one_line(without_passwords(str(message))), self.attempt.warnings
        if text in kept or len(kept) >= _MOST_WARNINGS:
            return
        self.attempt = self.attempt.model_copy(update={"warnings": (*kept, text)})
        with contextlib.suppress(OSError):  # the trainer reports a full disk itself
            self._write(self.attempt)

    def mark_evaluation_taken(self) -> None:
        """The evaluation before training was not this attempt's work."""
        self.attempt = self.attempt.model_copy(update={"evaluation_taken": True})
        self._write(self.attempt)

    def began(self, iterations: int) -> None:
        """Record from which iteration on this attempt computes."""
        self.attempt = self.attempt.model_copy(update={"began_at": iterations})
        self._write(self.attempt)

    def end(self, reason: Reason, error: str | None) -> None:
        try:
            end = {"ended": self.owner.now(), "reason": reason, "error": error}
            self._write(self.attempt.model_copy(update=end))
        except OSError as full:
            # A record without an end reads as killed: only the reason is lost.
            log_line(f"{self.folder}: cannot record that it ended: {full}")

    def _write(self, attempt: Attempt) -> None:
        self.owner.check()
        write_attempt(self.folder, attempt)


def reason_of(error: BaseException) -> Reason:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            return "no-space"
        cause = cause.__cause__
    if isinstance(error, ConfigError):
        return "config"
    if not isinstance(error, RunError) or isinstance(error, RepeatableError):
        return "exception"
    # An error that the trainer did not foresee is a defect, whatever it is wrapped in.
    return "exception" if _unforeseen(error) else "run-error"


def explain(error: BaseException) -> str:
    """The message of an error that was foreseen; otherwise the traceback, message last."""
    text = str(error)
    if isinstance(error, ConfigError):
        text = "; ".join(map(str, error.errors))
    elif not isinstance(error, RunError):
        text = "".join(traceback.format_exception(error))
    elif _unforeseen(error):
        text = "".join(traceback.format_exception(error.__cause__)) + text
    return without_passwords(text)


def _unforeseen(error: RunError) -> bool:
    return not isinstance(error.__cause__, OSError | None)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Redirect the output of this process and its children to `file`, unless the disk is full."""
    kept = []
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            kept.append((number, os.dup(number)))
            os.dup2(target, number)
        os.close(target)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, before in kept:
            os.dup2(before, number)
            os.close(before)


@contextmanager
def trainer_progress_shown(to_log: bool) -> Iterator[None]:
    """Print the trainer's progress if the output goes `to_log`: elsewhere it would mix with the
    launcher's lines."""
    trainer = logging.getLogger("mixgrpo")
    handler = logging.StreamHandler(sys.stderr)
    level = trainer.level
    if to_log:
        trainer.addHandler(handler)
        trainer.setLevel(logging.INFO)
    try:
        yield
    finally:
        trainer.removeHandler(handler)
        trainer.setLevel(level)


def log_line(text: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on the standard error. It is lost where a full disk refuses it."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        print(text, file=stream or sys.stderr, flush=True)
