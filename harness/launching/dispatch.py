"""Executors: run jobs in this process or, through submitit, in local processes.

An executor starts jobs for runs and says whether they are over. How they ended is read from the
run's folder, which also covers killed jobs. The launcher (`harness.launching.launcher`) decides
what starts. The executor for Slurm is `harness.launching.cluster`.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.launching.job import TRAIN, Job, make_job
from harness.launching.job_environment import TERMINAL_SIGNALS
from harness.launching.snapshot import Snapshot
from harness.runs import environment
from harness.runs.state import RunState
from harness.study.spec import Run
from mixgrpo.compute.foreign import stays

ExecutorName = Literal["inline", "local", "slurm"]

THREADS = 1
"""CPU threads of a local run: two processes with one thread each do more than one with two."""

_NO_TIME_LIMIT_MIN = 60 * 24 * 365


@dataclass(frozen=True)
class Start:
    """A run that is to be started or continued."""

    run: Run
    folder: Path
    """Absolute."""
    sweep: str = ""
    """Name of the sweep that asks for it."""
    store: Path | None = None
    """The store of runs; None where nothing is shared."""
    source: Path | None = None
    """The folder of a run of another length whose checkpoint is copied; None for none."""
    source_iterations: int = 0
    """The iterations of that checkpoint."""

    @property
    def name(self) -> str:
        return self.run.folder_name

    def job(self, **rest: Any) -> Job:
        """The job that starts or continues the run; `rest` are further fields of Job."""
        return make_job(
            self.folder,
            self.run.config,
            identity=self.run.hash,
            sweep=self.sweep,
            store=str(self.store or ""),
            source=str(self.source or ""),
            source_iterations=self.source_iterations,
            **rest,
        )


class Executor(Protocol):
    """Starts jobs, and knows of those that it started."""

    @property
    def slots(self) -> int | None:
        """The most jobs that run at once; None where a queue accepts all and decides."""
        ...

    outlive: bool
    """Whether jobs go on after the launcher is interrupted, rather than being asked to stop."""

    def start(self, starts: Sequence[Start]) -> list[str]:
        """Start jobs, at most one for each free slot. The names of those that were accepted.

        OSError where a folder cannot be written, as on a full disk; ConfigError where Slurm refuses
        the resources.
        """
        ...

    def over(self, state: RunState) -> bool:
        """Whether the job that this executor started for the run has ended."""
        ...


class Inline:
    """One run at a time in this process, for debugging: breakpoints and tracebacks are direct."""

    slots = 1
    outlive = False

    def __init__(self, should_stop: Callable[[], bool], train: str = TRAIN) -> None:
        """`should_stop` is called after every iteration, so it may also show progress."""
        self.should_stop, self.train = should_stop, train
        self.gpu = next(iter(environment.gpus()), None)

    def start(self, starts: Sequence[Start]) -> list[str]:
        for start in starts[:1]:
            job = start.job(
                threads=THREADS,
                gpu=self.gpu or "",
                train=self.train,
                gpus=float(self.gpu is not None),
            )
            os.environ.update(job.variables())
            with environment.changed(dict.fromkeys(environment.job_variables())), stays():
                job.run(self.should_stop)
        return [start.name for start in starts[:1]]

    def over(self, state: RunState) -> bool:
        return True


class _Process(Protocol):
    """A job as submitit's local executor knows it."""

    def done(self) -> bool: ...


class Local:
    """Processes on this machine, each with its own threads and GPU, at most one for each slot.

    The processes outlive their launcher and ignore its terminal's signals: they end when they are
    done, or when they see a stop file in the run's folder.
    """

    outlive = False

    def __init__(
        self, jobs: int | None, train: str = TRAIN, snapshot: Snapshot | None = None
    ) -> None:
        """`jobs` slots; by default one per GPU, or where there is none, one per core."""
        self.gpus = environment.gpus()
        self.slots: int | None = jobs or len(self.gpus) or max(1, environment.cores() // THREADS)
        self.train, self.snapshot = train, snapshot
        self._active: dict[str, tuple[int, _Process]] = {}
        """Slot and process by folder name, of the jobs started here that are not over."""

    def start(self, starts: Sequence[Start]) -> list[str]:
        assert self.slots is not None
        # Jobs of an earlier launcher occupy slots too; the last ones are assumed to be theirs.
        free = sorted(set(range(self.slots)) - {slot for slot, _ in self._active.values()})
        accepted = []
        for slot, start in zip(free, starts, strict=False):
            self._active[start.name] = (slot, self._start(slot, start))
            accepted.append(start.name)
        return accepted

    def _start(self, slot: int, start: Start) -> _Process:
        import submitit

        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else ""
        job = start.job(
            threads=THREADS,
            gpu=gpu,
            train=self.train,
            executor="local",
            gpus=min(1.0, len(self.gpus) / (self.slots or 1)),
            cores=_cores(slot, self.slots or 1),
        )
        executor = submitit.LocalExecutor(folder=_fresh(start.folder / "log"))
        # submitit kills jobs at its time limit, which cannot be left out.
        executor.update_parameters(timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True)
        variables: dict[str, str | None] = dict.fromkeys(environment.job_variables())
        variables |= job.variables() | (self.snapshot.variables() if self.snapshot else {})
        with environment.changed(variables), _signals_held_back():
            process: _Process = executor.submit(job)
        return process

    def over(self, state: RunState) -> bool:
        started = self._active.get(state.run.folder_name)
        if started is not None and not started[1].done():
            return False
        self._active.pop(state.run.folder_name, None)
        return True


def _cores(slot: int, slots: int) -> tuple[int, ...]:
    """The cores of a slot if there are enough for all slots, else none."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    if slots * THREADS > len(cores):
        return ()
    return tuple(cores[slot * THREADS : (slot + 1) * THREADS])


def _fresh(logs: Path) -> Path:
    """A new folder for one start: in an old one submitit would read the old results."""
    logs.mkdir(exist_ok=True)
    taken = [int(p.name[5:]) for p in logs.glob("start*") if p.name[5:].isdigit()]
    folder = logs / f"start{max(taken, default=0) + 1:03d}"
    folder.mkdir()
    return folder


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block a terminal's signals, so that children, which inherit the block, do not get them.

    This process gets what arrived meanwhile afterwards. submitit starts its processes in the
    launcher's process group and offers no other way to separate them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
