"""The record and the log of one attempt at a run: its begin, its warnings, why it ended."""

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

from harness.launching.place import Here, here
from harness.runs import environment
from harness.runs.folder import (
    Reason,
    _write_attempt,
    close_killed,
    newest_checkpoint,
    next_attempt,
)
from harness.runs.records import Attempt
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.files import lease
from mixgrpo.text.escape import one_line, without_passwords

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MOST_WARNINGS = 20
"""This many a record keeps: a text with a number in it may differ in every iteration."""


class Record:
    """The record of one attempt, written anew whenever there is more to say."""

    def __init__(
        self,
        folder: Path,
        owner: lease.Lease,
        where: Here | None,
        env: dict[str, Any],
        processes: int,
        sharded: bool,
        **fields: Any,
    ) -> None:
        """Begin it in `env` (`environment.describe`), with further `fields` of an Attempt, and
        write the end of one before that could not.

        The clock is the `owner`'s, which all machines share: attempts of a run are compared by it.
        FolderGoneError, here and at every change, where the folder is not the owner's any more.
        """
        self.folder, self.owner = folder, owner
        self.environment = env
        self.made_on = environment.decisive(env, processes, sharded)
        close_killed(folder)
        number = next_attempt(folder)
        place = where or here()
        self.attempt = Attempt(
            number=number,
            pid=os.getpid(),
            job_id=place.job,
            started=owner.now(),
            ended=None,
            reason=None,
            error=None,
            host=place.node,
            restarts=place.restarts,
            began_at=newest_checkpoint(folder),
            commit=self.environment["commit"],
            dirty=self.environment["dirty"],
            made_on=self.made_on,
            log=f"log/{number}.log" if where else None,
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
        """Stands in for `warnings.showwarning`: the record keeps the text, the log all of it."""
        place = warnings.formatwarning(message, category, filename, lineno, line)
        tell(place.removesuffix("\n"))
        text, kept = one_line(without_passwords(str(message))), self.attempt.warnings
        if text in kept or len(kept) >= _MOST_WARNINGS:
            return
        self.attempt = self.attempt.model_copy(update={"warnings": (*kept, text)})
        with contextlib.suppress(OSError):  # the trainer meets a full disk itself, and says so
            self._write(self.attempt)

    def took_evaluation(self) -> None:
        """The evaluation before training was not this attempt's work."""
        self.attempt = self.attempt.model_copy(update={"evaluation_taken": True})
        self._write(self.attempt)

    def began(self, iterations: int) -> None:
        """What came before was not this attempt's work."""
        self.attempt = self.attempt.model_copy(update={"began_at": iterations})
        self._write(self.attempt)

    def end(self, reason: Reason, error: str | None) -> None:
        try:
            end = {"ended": self.owner.now(), "reason": reason, "error": error}
            self._write(self.attempt.model_copy(update=end))
        except OSError as full:
            # A record without an end reads as killed, which is as true: only the words are lost.
            tell(f"{self.folder}: cannot record that it ended: {full}")

    def _write(self, attempt: Attempt) -> None:
        self.owner.check()
        _write_attempt(self.folder, attempt)


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
    # What the trainer did not foresee is a defect of something, whatever it is wrapped in.
    return "exception" if _unforeseen(error) else "run-error"


def explain(error: BaseException) -> str:
    """The message of an error that was foreseen; otherwise a traceback, what it says last."""
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
    """What this process and its children print goes to `file`, and on a full disk where it went."""
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
def trainer_heard(to_log: bool) -> Iterator[None]:
    """What the trainer says of its progress goes to the attempt's log; without one it would stand
    between the lines of the launcher."""
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


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print, on the standard error if nowhere else. What a full disk keeps out of a log is lost."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        print(text, file=stream or sys.stderr, flush=True)
