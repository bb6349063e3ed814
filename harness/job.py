"""What runs inside a job: own the run's folder, train, and leave a record of how it ended.

Knows nothing of schedulers. A job that is killed at any moment leaves the folder so that the next
one continues; a job that finds the folder owned by another leaves it alone.
"""

import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from harness import environment
from harness.store import STOP, Attempt, Reason, last_seen, read_attempts
from mixgrpo import lock
from mixgrpo.atomic import write_json
from mixgrpo.config import RunConfig
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.train import OWNER_LOCK

TRAIN = "mixgrpo.train:run"

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A terminal's Ctrl-C and end are for the launcher, which then asks the jobs to stop."""

_JOB_ID_VARIABLES = ("SUBMITIT_LOCAL_JOB_ID", "SLURM_JOB_ID")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

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
        attempt = _begin(folder)
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
                reason = _load(self.train)(config, folder, asked_to_stop)
        except Exception as caught:
            reason = _reason(caught)
            expected = isinstance(caught, ConfigError | RunError)
            error = str(caught) if expected else traceback.format_exc()
            print(error, file=sys.stderr, flush=True)
        _end(folder, attempt, reason, error)
        return reason


def _begin(folder: Path) -> Attempt:
    """Write the record of this attempt, and the end of one before that could not."""
    attempts = read_attempts(folder)
    if attempts and attempts[-1].ended is None:
        _write(
            folder, replace(attempts[-1], ended=last_seen(folder, attempts[-1]), reason="killed")
        )
    attempt = Attempt(
        number=attempts[-1].number + 1 if attempts else 1,
        pid=os.getpid(),
        job_id=next((os.environ[v] for v in _JOB_ID_VARIABLES if v in os.environ), None),
        started=time.time(),
        ended=None,
        reason=None,
        error=None,
    )
    _write(folder, attempt)
    return attempt


def _end(folder: Path, attempt: Attempt, reason: Reason, error: str | None) -> None:
    try:
        _write(folder, replace(attempt, ended=time.time(), reason=reason, error=error))
    except OSError as full:
        # A record without an end reads as killed, which is as true: nothing is lost but the words.
        print(f"{folder}: cannot record that it ended: {full}", file=sys.stderr, flush=True)


def _write(folder: Path, attempt: Attempt) -> None:
    (folder / "attempts").mkdir(exist_ok=True)
    write_json(folder / "attempts" / f"{attempt.number}.json", asdict(attempt))


def _reason(error: BaseException) -> Reason:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            return "no-space"
        cause = cause.__cause__
    if isinstance(error, ConfigError):
        return "config"
    return "run-error" if isinstance(error, RunError) else "exception"


def _load(
    name: str,
) -> Callable[[RunConfig, Path, Callable[[], bool]], Literal["finished", "stopped"]]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def make_job(folder: Path, config: RunConfig, threads: int, gpu: str | None, train: str) -> Job:
    """The job that begins or continues the run in `folder`."""
    return Job(str(folder), json.dumps(config.model_dump(mode="json")), threads, gpu, train)
