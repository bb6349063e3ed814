"""Where jobs run: in this process, or in local processes through submitit.

An executor starts a job in a slot and says whether it is over. How it ended is never asked here:
the run's folder knows, also after a kill. The launcher (`harness.launcher`) decides what starts.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from harness import environment
from harness.job import TERMINAL_SIGNALS, TRAIN, make_job
from mixgrpo.config import RunConfig
from mixgrpo.errors import ConfigError

ExecutorName = Literal["inline", "local"]

THREADS = 1
"""CPU threads of a run: two processes with one thread each do more than one with two."""

_NO_TIME_LIMIT_MIN = 60 * 24 * 365


class Handle(Protocol):
    """A job that was started."""

    def done(self) -> bool:
        """Whether its process has ended."""
        ...


class Executor(Protocol):
    """Starts jobs, never more than `slots` at once: the caller gives each a free slot."""

    slots: int

    def start(self, slot: int, folder: Path, config: RunConfig) -> Handle:
        """Start a job in slot 0 .. slots - 1 that begins or continues the run in `folder`.

        OSError where the folder cannot be written, as on a full disk.
        """
        ...


class Inline:
    """One run at a time in this process, for debugging: breakpoints and tracebacks are direct."""

    slots = 1

    def __init__(self, should_stop: Callable[[], bool], train: str = TRAIN) -> None:
        """`should_stop` is asked after every iteration, and so may also show progress."""
        self.should_stop, self.train = should_stop, train
        self.gpu = next(iter(environment.gpus()), None)

    def start(self, slot: int, folder: Path, config: RunConfig) -> Handle:
        job = make_job(folder, config, THREADS, self.gpu, self.train)
        os.environ.update(job.variables())
        job.run(self.should_stop)
        return _Over()


class _Over:
    def done(self) -> bool:
        return True


class Local:
    """Processes on this machine, each with its own threads and GPU.

    The processes outlive their launcher and hear nothing of its terminal: they end when they are
    done, or when they find a stop file in the run's folder.
    """

    def __init__(self, jobs: int | None, train: str = TRAIN) -> None:
        """`jobs` slots; by default one per GPU, or where there is none, one per core."""
        self.gpus = environment.gpus()
        self.slots = jobs or len(self.gpus) or max(1, environment.cores() // THREADS)
        self.train = train

    def start(self, slot: int, folder: Path, config: RunConfig) -> Handle:
        import submitit

        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        job = make_job(folder.resolve(), config, THREADS, gpu, self.train, "local")
        executor = submitit.LocalExecutor(folder=_fresh(folder / "log"))
        # submitit kills what takes longer than its limit, and its limit cannot be left out.
        executor.update_parameters(timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True)
        with _environment(job.variables()), _signals_held_back():
            handle: Handle = executor.submit(job)
        return handle


def make_executor(
    name: ExecutorName, jobs: int | None, should_stop: Callable[[], bool], train: str
) -> Executor:
    if name == "inline":
        if jobs not in (None, 1):
            raise ConfigError("--jobs: the inline executor runs one job at a time; leave it out")
        return Inline(should_stop, train)
    return Local(jobs, train)


def _fresh(logs: Path) -> Path:
    """A folder that no earlier submission used: submitit would find that one's results."""
    logs.mkdir(parents=True, exist_ok=True)
    taken = [int(p.name) for p in logs.iterdir() if p.name.isdigit()]
    folder = logs / f"{max(taken, default=0) + 1:03d}"
    folder.mkdir()
    return folder


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Children inherit what is blocked here, so a terminal's Ctrl-C or end does not reach them.

    This process gets what arrived meanwhile when it is unblocked. submitit starts its processes in
    the launcher's own process group and leaves no other way in.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
