"""What runs inside a job: take the lease of the run's folder, train, and record how it ended.

A job may be killed at any moment, and the next one continues; a job whose run another one has
leased does nothing. Under Slurm a job that nears its time limit takes a checkpoint and requeues
itself. What it must know of its surroundings is in `harness.launching.job_environment`.

    python -m harness.launching.job     one job, JSON on the standard input, in its own process

It is long because it holds a job's whole life: ranks, copying, training, every way to end.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.launching import first_evaluation
from harness.launching.adopt import UnfitError, adopt, forget
from harness.launching.attempt import (
    NO_SPACE,
    Record,
    explain,
    log_line,
    log_to,
    reason_of,
    trainer_progress_shown,
)
from harness.launching.job_environment import (
    JobEnvironment,
    catch_signals,
    is_preempted,
    join_ranks,
    leave_ranks,
    read_job_environment,
    requeue,
)
from harness.runs import environment
from harness.runs.codechange import FILE as ACCEPTED
from harness.runs.folder import (
    ENDED_BY_ITSELF,
    STOP,
    Reason,
    newest_checkpoint,
    read_attempts,
    without_progress,
)
from mixgrpo.errors import ConfigError
from mixgrpo.files import lease
from mixgrpo.files.atomic import write_json
from mixgrpo.runs.folder import OWNER
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.usercode import user_code

log = logging.getLogger("mixgrpo.job")
"""Beneath the trainer's, whose lines go to the attempt's log."""

TRAIN = "mixgrpo.train:run"

MAX_TRIES = 3
"""After this many attempts in a row without a new checkpoint, a run is not retried."""
YIELDED = 85
"""Exit code of a job in a pack that took a checkpoint and is to be requeued."""

_RANK_WAIT_S = 5.0
"""How long the other ranks wait for the first one, which records why a run ended."""

Outcome = Reason | Literal["busy", "gone"]
"""`busy`: another process holds the run's lease. `gone`: its folder does not exist any more."""


@dataclass(frozen=True)
class Job:
    """One attempt at one run. Holds only text and numbers, so that it can be pickled."""

    folder: str
    config: str
    """The resolved run configuration, as JSON."""
    threads: int = 1
    cores: tuple[int, ...] = ()
    """The CPU cores to use; none leaves that to the system."""
    gpu: str | None = None
    """The GPU to use, as CUDA_VISIBLE_DEVICES takes it; empty hides all, None keeps those that the
    scheduler assigned."""
    train: str = TRAIN
    """The training function, as module:name."""
    executor: str = "inline"
    """Which executor started the job, for its record."""
    gpus: float = 0.0
    """The GPUs that the run occupies, for the ledger; a fraction where runs share one."""
    ranks: bool = False
    """Whether this is one of several processes of the run, as Slurm started them."""
    sharded: bool = False
    """Whether they shard the network (FSDP2)."""
    packed: bool = False
    """Whether other runs share Slurm's job: then the pack requeues it."""
    sweep: str = ""
    """Name of the sweep that asked for the run; others may share it."""
    store: str = ""
    """The folder in which runs are stored once; "" where nothing is shared."""
    source: str = ""
    """The folder of a run that is the same for its first `source_iterations`, whose checkpoint is
    copied; "" for none."""
    source_iterations: int = 0
    identity: str = ""
    """The hash of the run as it was planned; "" for any. A job whose code, weights or prompts have
    changed since then, and so its hash, is refused."""

    def __call__(self) -> str:
        """Run the job in its own process: SIGTERM, SIGUSR1 and SIGUSR2 make it stop."""
        signals = catch_signals()
        os.environ.update(self.variables())
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        job = read_job_environment()
        if self.ranks:
            join_ranks(self.sharded)
            if job.rank:
                return self._run_as_other_rank(job, lambda: bool(signals))
        outcome = self.run(lambda: bool(signals), lambda: is_preempted(signals, job), job)
        log_line(f"{self.folder}: {outcome}", sys.stdout)
        if self.ranks:
            leave_ranks()
            if outcome in ("busy", "gone"):
                # The others wait for this one: srun ends them when it fails.
                sys.exit(lease.TAKEN_OVER)
        if outcome == "yielded" and not self.packed:
            requeue(job)
        return outcome

    def checkpoint(self) -> Any:
        """For submitit, after a signal before `__call__` has begun: the same job again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def variables(self) -> dict[str, str]:
        """The variables that must be set before torch is imported."""
        threads = dict.fromkeys(environment.THREAD_VARIABLES, str(self.threads))
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}

    def run(
        self,
        should_stop: Callable[[], bool],
        should_yield: Callable[[], bool] = lambda: False,
        job: JobEnvironment | None = None,
    ) -> Outcome:
        """One attempt in this process. How it ended is returned, never raised.

        `should_yield` says whether the scheduler preempts the job. With `job` this process is the
        job's alone, and its output goes to a log of the attempt.
        """
        folder = Path(self.folder).absolute()
        try:
            owner = lease.acquire(folder / OWNER, patience_s=2.0)
        except (FileNotFoundError, NotADirectoryError):
            log_line(f"{folder}: no longer exists, and is not made again")
            return "gone"
        if owner is None:
            return "busy"
        owner.ends_process = self.executor != "inline"  # the launcher's process goes on
        try:
            if self.packed and (ended := _ended_before_requeue(folder, job)):
                return ended
            try:
                record = self._record(folder, job, owner)
            except OSError as full:
                if full.errno not in NO_SPACE:
                    raise
                log_line(f"{folder}: cannot record that it began: {full}")
                return "no-space"
            file = record.attempt.log
            with (
                log_to(folder / file) if file else contextlib.nullcontext(),
                trainer_progress_shown(bool(file)),
            ):
                return self._attempt(folder, record, should_stop, should_yield)
        except lease.FolderGoneError as gone:
            log_line(f"error: {gone}")
            return "gone"
        finally:
            owner.release()

    def _record(self, folder: Path, job: JobEnvironment | None, owner: lease.Lease) -> Record:
        return Record(
            folder,
            owner,
            job,
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
            elif record.attempt.restarts and (why := _why_no_retry(folder, MAX_TRIES + 1)):
                reason, error = "no-progress", why
            else:
                config = self._planned_config()
                self._copy_from_other_run(folder, config, record)
                with warnings.catch_warnings():
                    warnings.showwarning = record.warned
                    train = load(self.train)
                    record.owner.check()  # the import took a while
                    reason = train(config, folder, asked_to_stop)
                # Of a run that other code began, the first evaluation is that code's.
                is_own = not (folder / ACCEPTED).exists()
                if self.store and record.attempt.number == 1 and is_own:
                    first_evaluation.keep(Path(self.store), folder, config, record.made_on)
        except lease.FolderGoneError:
            raise
        except BaseException as caught:  # also sys.exit called by other code
            record.owner.check()  # it may have failed because the folder is gone
            reason, error = reason_of(caught), explain(caught)
            log_line(error)
        if reason == "stopped" and should_yield() and not stop_file.exists():
            error = _why_no_retry(folder, MAX_TRIES)
            reason = "no-progress" if error else "yielded"
        record.end(reason, error)
        return reason

    def _planned_config(self) -> RunConfig:
        """The run's configuration. ConfigError where its hash is not the planned one."""
        config = RunConfig.model_validate_json(self.config)
        now = config_hash(config) if self.identity else ""
        if now != self.identity:
            code = "".join(f"the code of {what}, " for what in user_code(config))
            raise ConfigError(
                f"{code}its weights or its prompts changed after the run was planned (its hash was "
                f"{self.identity}, here it is {now}); run the sweep's command again to plan the "
                "changed ones, as another run, or restore the old ones to continue this one "
                "(--snapshot copies only the files that git tracks)"
            )
        return config

    def _copy_from_other_run(self, folder: Path, config: RunConfig, record: Record) -> None:
        """Copy what another run has computed, if this run has no checkpoint yet: its first
        iterations, or the evaluation before training. What cannot be copied is computed."""
        if record.attempt.began_at:
            return
        forget(folder)
        source, done = Path(self.source), self.source_iterations
        try:
            if self.source:
                adopt(folder, config, source, done, record.made_on)
                log_line(f"starts after {done} iterations from {self.source}")
                record.began(done)
            elif self.store and first_evaluation.take(
                Path(self.store), folder, config, record.made_on
            ):
                record.mark_evaluation_taken()
                log.info("the evaluation before training is copied from another run")
        except (UnfitError, OSError) as why:
            if isinstance(why, OSError) and why.errno in NO_SPACE:
                raise
            text = f"starts from zero, not from {self.source}: {why}"
            record.warned(text, UserWarning, __file__, 0)

    def _run_as_other_rank(self, job: JobEnvironment, should_stop: Callable[[], bool]) -> str:
        """Run as a rank that is not the first: only the first one holds the lease and records."""
        folder = Path(self.folder)
        with log_to(folder / "log" / f"{job.job}.rank{job.rank}.log"):
            try:
                config = self._planned_config()
                stop_file = folder / STOP
                stops = load(self.train)(
                    config, folder, lambda: should_stop() or stop_file.exists()
                )
            except BaseException as caught:
                log_line(explain(caught))
                leave_ranks()
                time.sleep(_RANK_WAIT_S)
                sys.exit(1)
        leave_ranks()
        return stops


def _why_no_retry(folder: Path, most: int) -> str | None:
    """Why a run is not tried again: `most` attempts in a row came to no new checkpoint."""
    tries = without_progress(read_attempts(folder), newest_checkpoint(folder))
    if tries < most:
        return None
    return (
        f"{tries} attempts in a row ended without a new checkpoint; give the run more time "
        "(slurm.time) or memory, or more frequent checkpoints (output.checkpoint_every)"
    )


def _ended_before_requeue(folder: Path, job: JobEnvironment | None) -> Reason | None:
    """How a run of a pack ended before Slurm requeued the pack for its other runs; None where it
    did not."""
    attempts = read_attempts(folder)
    if job is None or not job.restarts or not attempts:
        return None
    last = attempts[-1]
    ends: tuple[Reason, ...] = (*ENDED_BY_ITSELF, "stopped")
    return next((end for end in ends if last.job_id == job.job and last.reason == end), None)


def load(
    name: str,
) -> Callable[[RunConfig, Path, Callable[[], bool]], Literal["finished", "stopped"]]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def make_job(folder: Path, config: RunConfig, **rest: Any) -> Job:
    """The job that starts or continues the run in `folder`; `rest` are further fields of Job."""
    return Job(str(folder), json.dumps(config.model_dump(mode="json")), **rest)


def main() -> int:
    """Run one job in its own process, as a pack starts it."""
    outcome = Job(**json.load(sys.stdin))()
    return YIELDED if outcome == "yielded" else 0


if __name__ == "__main__":
    sys.exit(main())
