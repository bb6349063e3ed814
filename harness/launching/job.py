"""What runs inside a job: own the run's folder, train, and leave a record of how it ended.

A job that is killed at any moment leaves the folder so that the next one continues; a job that
finds the folder owned by another leaves it alone. Under Slurm a job that is told that its time is
over takes a checkpoint and puts itself back into the queue. All it needs to know of where it runs
stands in its environment (`harness.launching.place`).

    python -m harness.launching.job     one job, JSON on the standard input, in its own process

It is long because a job's life stands in one place: signals, ranks, taking over, every way to end.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.launching import first_evaluation
from harness.launching.adopt import UnfitError, adopt
from harness.launching.attempt import (
    NO_SPACE,
    Record,
    explain,
    log_to,
    reason_of,
    tell,
    trainer_heard,
)
from harness.launching.place import Here, here, join_ranks
from harness.runs import environment
from harness.runs.folder import (
    ENDED_BY_ITSELF,
    STOP,
    Reason,
    newest_checkpoint,
    read_attempts,
    without_progress,
)
from harness.slurm import commands as slurm
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import ORIGIN
from mixgrpo.runs.folder import OWNER
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.usercode import user_code

log = logging.getLogger("mixgrpo.job")
"""Beneath the trainer's, whose lines go to the attempt's log."""

TRAIN = "mixgrpo.train:run"

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
YIELD_SIGNAL = signal.SIGUSR2
"""What Slurm sends some time before the time limit and, at most sites, at a preemption."""
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A terminal's Ctrl-C and end are for the launcher, which then asks the jobs to stop."""

MAX_TRIES = 3
"""So many attempts in a row without a checkpoint, and a run is not tried again by itself."""
YIELDED = 85
"""Exit code of a job in a pack that made room and is to be queued again."""

_PATIENCE_WITH_RANKS_S = 5.0
"""The first rank records why a run ended; the others leave it time to."""

Outcome = Reason | Literal["busy", "gone"]
"""`busy`: another process owns the run. `gone`: its folder is not there, or not any more."""


@dataclass(frozen=True)
class Job:
    """One attempt at one run. Holds nothing but text and numbers, so that it can be pickled."""

    folder: str
    config: str
    """The resolved run configuration, as JSON."""
    threads: int = 1
    cores: tuple[int, ...] = ()
    """The CPU cores to stay on; none leaves that to the system."""
    gpu: str | None = None
    """The GPU to use, as CUDA_VISIBLE_DEVICES takes it; empty hides them all, None leaves what the
    scheduler gave."""
    train: str = TRAIN
    """The training function, as module:name."""
    executor: str = "inline"
    """What started the job, for its record."""
    gpus: float = 0.0
    """The GPUs that the run occupies, for the ledger; a part of one where runs share it."""
    ranks: bool = False
    """Whether this is one of several processes of the run, as Slurm started them."""
    sharded: bool = False
    """Whether they shard the network (FSDP2)."""
    packed: bool = False
    """Whether other runs share the scheduler's job: then it is not this one that requeues it."""
    sweep: str = ""
    """Name of the sweep that asked for it: others may have the same run."""
    store: str = ""
    """The folder in which runs are stored once; "" where nothing is shared."""
    source: str = ""
    """The folder of a run that is the same for `source_iterations`: its checkpoint is taken."""
    source_iterations: int = 0
    identity: str = ""
    """The hash of the run as it was planned; "" where nobody says. What gives another one by the
    time the job begins, by other code, weights or prompts, is refused."""

    def __call__(self) -> str:
        """The job in a process of its own: SIGTERM, SIGUSR1 and SIGUSR2 make it stop."""
        signals = catch_signals()
        os.environ.update(self.variables())
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        where = here()
        if self.ranks:
            join_ranks(self.sharded)
            if where.rank:
                return self._follow(where, lambda: bool(signals))
        outcome = self.run(lambda: bool(signals), lambda: _place_is_wanted(signals, where), where)
        tell(f"{self.folder}: {outcome}", sys.stdout)
        if self.ranks:
            leave_ranks()
            if outcome in ("busy", "gone"):
                # The others wait for this one: srun ends them when it fails.
                sys.exit(lease.TAKEN_OVER)
        if outcome == "yielded" and not self.packed:
            requeue(where)
        return outcome

    def checkpoint(self) -> Any:
        """For submitit: at a signal before `__call__` has begun, the same job again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def variables(self) -> dict[str, str]:
        """The environment that torch must find when it is imported."""
        threads = dict.fromkeys(environment.THREAD_VARIABLES, str(self.threads))
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}

    def run(
        self,
        should_stop: Callable[[], bool],
        should_yield: Callable[[], bool] = lambda: False,
        where: Here | None = None,
    ) -> Outcome:
        """One attempt in this process. Every end that leaves a word is returned, none raised.

        `should_yield` says whether the scheduler wants the job's place; `where` it runs is known
        for a process of its own, whose output then goes to a log of the attempt.
        """
        folder = Path(self.folder).absolute()
        try:
            owner = lease.acquire(folder / OWNER, patience_s=2.0)
        except (FileNotFoundError, NotADirectoryError):
            tell(f"{folder}: is not there any more; nothing is begun in its place")
            return "gone"
        if owner is None:
            return "busy"
        owner.ends_process = self.executor != "inline"  # the launcher's own process says more
        try:
            if self.packed and (ended := _ended_by_itself(folder, where)):
                return ended
            try:
                record = self._record(folder, where, owner)
            except OSError as full:
                if full.errno not in NO_SPACE:
                    raise
                tell(f"{folder}: cannot record that it began: {full}")
                return "no-space"
            file = record.attempt.log
            with (
                log_to(folder / file) if file else contextlib.nullcontext(),
                trainer_heard(bool(file)),
            ):
                return self._attempt(folder, record, should_stop, should_yield)
        except lease.FolderGoneError as gone:
            tell(f"error: {gone}")
            return "gone"
        finally:
            owner.release()

    def _record(self, folder: Path, where: Here | None, owner: lease.Lease) -> Record:
        return Record(
            folder,
            owner,
            where,
            environment.describe(self.threads, self.gpu),
            int(os.environ.get("SLURM_NTASKS", "1")) if self.ranks else 1,
            self.sharded,
            executor=self.executor,
            sweep=self.sweep or None,
            gpus=self.gpus,
        )

    def _attempt(
        self,
        folder: Path,
        record: Record,
        should_stop: Callable[[], bool],
        should_yield: Callable[[], bool],
    ) -> Outcome:
        stop_file = folder / STOP

        def asked_to_stop() -> bool:
            record.owner.check()
            return should_stop() or stop_file.exists()

        reason: Reason
        error = None
        try:
            write_json(folder / "env.json", record.environment)
            if asked_to_stop():
                reason = "stopped"
            elif record.attempt.restarts and (hopeless := _hopeless(folder, MAX_TRIES + 1)):
                reason, error = "no-progress", hopeless
            else:
                config = self._planned()
                self._take_over(folder, config, record)
                with warnings.catch_warnings():
                    warnings.showwarning = record.warned
                    train = load(self.train)
                    record.owner.check()  # to import it took a while
                    reason = train(config, folder, asked_to_stop)
                if self.store and record.attempt.number == 1:
                    first_evaluation.keep(Path(self.store), folder, config, record.made_on)
        except lease.FolderGoneError:
            raise
        except BaseException as caught:  # what would end the process, too: sys.exit of other code
            record.owner.check()  # what failed may be that the folder is gone
            reason, error = reason_of(caught), explain(caught)
            tell(error)
        if reason == "stopped" and should_yield() and not stop_file.exists():
            error = _hopeless(folder, MAX_TRIES)
            reason = "no-progress" if error else "yielded"
        record.end(reason, error)
        return reason

    def _planned(self) -> RunConfig:
        """The run's configuration. ConfigError where what it names is not what was planned."""
        config = RunConfig.model_validate_json(self.config)
        now = config_hash(config) if self.identity else ""
        if now != self.identity:
            code = "".join(f"the code of {what}, " for what in user_code(config))
            raise ConfigError(
                f"{code}its weights or its prompts changed after the run was planned (its hash was "
                f"{self.identity}, here it is {now}); the sweep's command run again plans what "
                "there is now, as another run; what was there before, restored, continues this one "
                "(--snapshot copies the files that git tracks, and no others)"
            )
        return config

    def _take_over(self, folder: Path, config: RunConfig, record: Record) -> None:
        """Take what another run has computed, if the run has no checkpoint of its own yet: its
        first iterations, or the evaluation before training. Where that is not to be had, the run
        computes it."""
        if record.attempt.began_at:
            return
        (folder / ORIGIN).unlink(missing_ok=True)
        source, done = Path(self.source), self.source_iterations
        try:
            if self.source:
                adopt(folder, config, source, done, record.made_on)
                tell(f"starts after {done} iterations from {self.source}")
                record.began(done)
            elif self.store and first_evaluation.take(
                Path(self.store), folder, config, record.made_on
            ):
                record.took_evaluation()
                log.info("the evaluation before training is that of another run")
        except (UnfitError, OSError) as why:
            if isinstance(why, OSError) and why.errno in NO_SPACE:
                raise
            text = f"does not start from {self.source}, but from nothing: {why}"
            record.warned(text, UserWarning, __file__, 0)

    def _follow(self, where: Here, should_stop: Callable[[], bool]) -> str:
        """The part of a rank that is not the first: the first one owns the folder and records."""
        folder = Path(self.folder)
        with log_to(folder / "log" / f"{where.job}.rank{where.rank}.log"):
            try:
                config = self._planned()
                stop_file = folder / STOP
                stops = load(self.train)(
                    config, folder, lambda: should_stop() or stop_file.exists()
                )
            except BaseException as caught:
                tell(explain(caught))
                leave_ranks()
                time.sleep(_PATIENCE_WITH_RANKS_S)
                sys.exit(1)
        leave_ranks()
        return stops


def catch_signals() -> list[int]:
    """Keep the signals that stop a job in the list from now on, and do not hear a terminal's."""
    signals: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda n, _: signals.append(n))
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return signals


def _place_is_wanted(signals: list[int], where: Here) -> bool:
    """Whether signals mean that Slurm wants the job's place, not that somebody cancelled it."""
    if where.raw_job is None or not signals:
        return False
    if YIELD_SIGNAL in signals:
        return True
    try:
        return slurm.is_running(where.raw_job)
    except slurm.Unreachable:
        return True


def requeue(where: Here) -> None:
    """Put this job back into Slurm's queue; its end follows. A refusal is for the launcher."""
    try:
        slurm.requeue(str(where.raw_job))
    except RunError as refused:
        tell(f"cannot be queued again: {refused}")


def leave_ranks() -> None:
    from mixgrpo.compute.ranks import leave

    leave()


def _hopeless(folder: Path, most: int) -> str | None:
    """Why a run is not queued again: so many attempts in a row came to no checkpoint."""
    tries = without_progress(read_attempts(folder), newest_checkpoint(folder))
    if tries < most:
        return None
    return (
        f"{tries} attempts in a row ended before they came to a checkpoint; give the run more time "
        "(slurm.time) or memory, or more frequent checkpoints (output.checkpoint_every)"
    )


def _ended_by_itself(folder: Path, where: Here | None) -> Reason | None:
    """How a run of a pack ended before Slurm queued the pack again for the sake of others."""
    attempts = read_attempts(folder)
    if where is None or not where.restarts or not attempts:
        return None
    last = attempts[-1]
    ends: tuple[Reason, ...] = (*ENDED_BY_ITSELF, "stopped")
    return next((end for end in ends if last.job_id == where.job and last.reason == end), None)


def load(
    name: str,
) -> Callable[[RunConfig, Path, Callable[[], bool]], Literal["finished", "stopped"]]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def make_job(folder: Path, config: RunConfig, **rest: Any) -> Job:
    """The job that begins or continues the run in `folder`; `rest` are further fields of Job."""
    return Job(str(folder), json.dumps(config.model_dump(mode="json")), **rest)


def main() -> int:
    """One job in a process of its own, as a pack starts it."""
    outcome = Job(**json.load(sys.stdin))()
    return YIELDED if outcome == "yielded" else 0


if __name__ == "__main__":
    sys.exit(main())
