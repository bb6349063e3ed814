"""What runs inside a job: own the run's folder, train, and leave a record of how it ended.

Knows nothing of schedulers. A job that is killed at any moment leaves the folder so that the next
one continues; a job that finds the folder owned by another leaves it alone.
"""

import contextlib
import errno
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from harness import environment
from harness.store import STOP, Attempt, Reason, last_seen, read_attempts
from mixgrpo import lock
from mixgrpo.atomic import write_json
from mixgrpo.config import RunConfig
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.train import OWNER_LOCK

TRAIN = "mixgrpo.train:run"

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A terminal's Ctrl-C and end are for the launcher, which then asks the jobs to stop."""

_JOB_ID_VARIABLES = ("SUBMITIT_LOCAL_JOB_ID", "SLURM_JOB_ID")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MOST_WARNINGS = 20
"""So many a record keeps: a text with a number in it may differ in every iteration."""

Outcome = Reason | Literal["busy"]


@dataclass(frozen=True)
class Job:
    """One attempt at one run. Holds nothing but text and numbers, so that it can be pickled."""

    folder: str
    config: str
    """The resolved run configuration, as JSON."""
    threads: int = 1
    gpu: str | None = None
    """The GPU to use, as CUDA_VISIBLE_DEVICES takes it; none hides them all."""
    train: str = TRAIN
    """The training function, as module:name."""
    executor: str = "inline"
    """What started the job, for its record."""

    def __call__(self) -> str:
        """The job in a process of its own: SIGTERM, SIGUSR1 and SIGUSR2 make it stop."""
        signals: list[int] = []
        for number in STOP_SIGNALS:
            signal.signal(number, lambda n, _: signals.append(n))
        for number in TERMINAL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.environ.update(self.variables())
        outcome = self.run(lambda: bool(signals))
        print(f"{self.folder}: {outcome}", flush=True)
        return outcome

    def variables(self) -> dict[str, str]:
        """The environment that torch must find when it is imported."""
        threads = dict.fromkeys(environment.THREAD_VARIABLES, str(self.threads))
        return {**threads, "CUDA_VISIBLE_DEVICES": self.gpu or ""}

    def run(self, should_stop: Callable[[], bool]) -> Outcome:
        """One attempt in this process. Every end that leaves a word is returned, none raised."""
        folder = Path(self.folder)
        owner = lock.acquire(folder / OWNER_LOCK, patience_s=2.0)
        if owner is None:
            return "busy"
        try:
            return self._attempt(folder, should_stop)
        finally:
            owner.release()

    def _attempt(self, folder: Path, should_stop: Callable[[], bool]) -> Outcome:
        record = _Record(folder, self.executor)
        stop_file = folder / STOP

        def asked_to_stop() -> bool:
            return should_stop() or stop_file.exists()

        reason: Reason
        error = None
        try:
            write_json(folder / "env.json", environment.describe(self.threads, self.gpu))
            if asked_to_stop():
                reason = "stopped"
            else:
                config = RunConfig.model_validate_json(self.config)
                with warnings.catch_warnings():
                    warnings.showwarning = record.warned
                    reason = _load(self.train)(config, folder, asked_to_stop)
        except Exception as caught:
            reason, error = _reason(caught), _explain(caught)
            print(error, file=sys.stderr, flush=True)
        record.end(reason, error)
        return reason


class _Record:
    """The record of one attempt, written anew whenever there is more to say."""

    def __init__(self, folder: Path, executor: str) -> None:
        """Begin it, and write the end of one before that could not."""
        self.folder = folder
        attempts = read_attempts(folder)
        if attempts and attempts[-1].ended is None:
            self._write(
                replace(attempts[-1], ended=last_seen(folder, attempts[-1]), reason="killed")
            )
        self.attempt = Attempt(
            number=attempts[-1].number + 1 if attempts else 1,
            pid=os.getpid(),
            job_id=next((os.environ[v] for v in _JOB_ID_VARIABLES if v in os.environ), None),
            started=time.time(),
            ended=None,
            reason=None,
            error=None,
            executor=executor,
            host=socket.gethostname(),
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
        print(place, end="", file=sys.stderr, flush=True)
        text, kept = " ".join(str(message).split()), self.attempt.warnings
        if text in kept or len(kept) >= _MOST_WARNINGS:
            return
        self.attempt = replace(self.attempt, warnings=(*kept, text))
        with contextlib.suppress(OSError):  # the trainer meets a full disk itself, and says so
            self._write(self.attempt)

    def end(self, reason: Reason, error: str | None) -> None:
        try:
            self._write(replace(self.attempt, ended=time.time(), reason=reason, error=error))
        except OSError as full:
            # A record without an end reads as killed, which is as true: only the words are lost.
            print(
                f"{self.folder}: cannot record that it ended: {full}", file=sys.stderr, flush=True
            )

    def _write(self, attempt: Attempt) -> None:
        (self.folder / "attempts").mkdir(exist_ok=True)
        write_json(self.folder / "attempts" / f"{attempt.number}.json", asdict(attempt))


def _reason(error: Exception) -> Reason:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            return "no-space"
        cause = cause.__cause__
    if isinstance(error, ConfigError):
        return "config"
    if not isinstance(error, RunError) or isinstance(error, RepeatableError):
        return "exception"
    # What the trainer did not foresee is a defect of something, whatever it is wrapped in.
    return "exception" if _unforeseen(error) else "run-error"


def _explain(error: Exception) -> str:
    """The message of an error that was foreseen; otherwise a traceback, what it says last."""
    if not isinstance(error, ConfigError | RunError):
        return "".join(traceback.format_exception(error))
    if isinstance(error, RunError) and _unforeseen(error):
        return "".join(traceback.format_exception(error.__cause__)) + str(error)
    return str(error)


def _unforeseen(error: RunError) -> bool:
    return not isinstance(error.__cause__, OSError | None)


def _load(
    name: str,
) -> Callable[[RunConfig, Path, Callable[[], bool]], Literal["finished", "stopped"]]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def make_job(
    folder: Path,
    config: RunConfig,
    threads: int,
    gpu: str | None,
    train: str,
    executor: str = "inline",
) -> Job:
    """The job that begins or continues the run in `folder`."""
    text = json.dumps(config.model_dump(mode="json"))
    return Job(str(folder), text, threads, gpu, train, executor)
