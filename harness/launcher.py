"""Makes the run folders match the sweep file: starts what is missing, follows it, stops cleanly.

Decides only from what the folders show, so it can be killed and started again at any time, and
picks up jobs that an earlier launcher left running. One launcher at a time works on a sweep.
"""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from harness.dispatch import Executor, ExecutorName, Handle, make_executor
from harness.job import TRAIN
from harness.progress import Progress
from harness.spec import Run, Sweep
from harness.store import STOP, RunState, look, look_at_all, sweep_folder
from mixgrpo import lock
from mixgrpo.errors import RunError
from mixgrpo.train import OWNER_LOCK

Retry = Literal["none", "lost", "failed"]
"""What runs again: nothing that ended by itself, infrastructure failures, exceptions as well."""

LAUNCHER_LOCK = "launcher.lock"
MAX_STARTS = 3
"""How often one launcher starts the same run: a run that is killed each time is not worth more."""
STOP_PATIENCE_S = 120.0
"""How long a launcher waits for its jobs to finish their iteration and checkpoint."""
PAUSE_S = 0.25

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launcher:
    """Owns a sweep while it runs. Use it with the sweep's lock held (`own`, `wait_for_lock`)."""

    def __init__(
        self,
        sweep: Sweep,
        runs_dir: Path,
        progress: Progress,
        executor: ExecutorName = "local",
        jobs: int | None = None,
        retry: Retry = "lost",
        train: str = TRAIN,
    ) -> None:
        self.sweep, self.runs_dir, self.progress, self.retry = sweep, runs_dir, progress, retry
        self.executor: Executor = make_executor(executor, jobs, self._after_iteration, train)
        self.signals = 0
        self.active: dict[str, tuple[int, Handle]] = {}
        """Slot and handle by folder name, of the jobs started here that are not over."""
        self.starts: dict[str, int] = {}
        self.no_space = False
        self._states: dict[str, RunState] = {}

    def go(self) -> bool:
        """Run until nothing is left to do. False where it was interrupted."""
        with _handling(self._interrupt):
            while True:
                self._reap()
                states = self._look()
                self.progress.warnings(states)
                if self.signals:
                    return self._stop()
                try:
                    started = self._start_missing(states)
                except BrokenPipeError:  # whoever read the output (`| head`) has gone
                    raise
                except OSError as error:
                    self._stop()
                    raise RunError(
                        f"no space (or not writable) under {self.runs_dir}: "
                        f"{error.strerror or error}; everything is resumable: make room and run "
                        "the same command again"
                    ) from error
                if not (started or self._running(states) or self.signals):
                    self.progress.update(self._look, self.executor.slots, force=True)
                    return True
                self.progress.update(self._look, self.executor.slots)
                time.sleep(0 if started else PAUSE_S)

    def _look(self) -> list[RunState]:
        """All states; those of finished runs are remembered, for they do not change."""
        states = []
        for run in self.sweep.runs:
            known = self._states.get(run.folder_name)
            if known is None or known.state != "finished":
                known = self._states[run.folder_name] = look(self.sweep, run, self.runs_dir)
            states.append(known)
        return states

    def _reap(self) -> None:
        """Free the slots of jobs that are over, and say how they ended."""
        over = [name for name, (_, handle) in self.active.items() if handle.done()]
        for name in over:
            del self.active[name]
            run = next(run for run in self.sweep.runs if run.folder_name == name)
            state = self._states[name] = look(self.sweep, run, self.runs_dir)
            self.no_space = self.no_space or state.reason == "no-space"
            self.progress.warnings([state])
            self.progress.ended(state)

    def _running(self, states: list[RunState]) -> set[str]:
        """Folder names of what occupies a slot, whoever started it."""
        return {s.run.folder_name for s in states if s.state == "running"} | set(self.active)

    def _start_missing(self, states: list[RunState]) -> bool:
        """Fill the free slots. Whether anything was started."""
        started = False
        for state in states:
            name = state.run.folder_name
            busy = self._running(states)
            # Jobs of an earlier launcher occupy slots too; theirs are taken to be the last ones.
            free = sorted(
                set(range(self.executor.slots)) - {slot for slot, _ in self.active.values()}
            )
            if len(busy) >= self.executor.slots or not free or self.signals:
                break
            if name not in busy and self._wants(state):
                self._start(free[0], state.run)
                started = True
        return started

    def _wants(self, state: RunState) -> bool:
        """Whether a run that is not under way should be."""
        starts = self.starts.get(state.run.folder_name, 0)
        if self.no_space or starts >= MAX_STARTS:
            return False
        match state.state:
            case "waiting" | "stopped":
                return True
            case "lost":
                # What was killed may do better at once; another failure is for the user to mend.
                return self.retry != "none" and (starts == 0 or state.reason == "killed")
            case "failed":
                return self.retry == "failed" and starts == 0
            case _:
                return False

    def _start(self, slot: int, run: Run) -> None:
        folder = sweep_folder(self.sweep, self.runs_dir) / run.folder_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP).unlink(missing_ok=True)
        self.starts[run.folder_name] = self.starts.get(run.folder_name, 0) + 1
        self.progress.started(run, self.starts[run.folder_name])
        handle = self.executor.start(slot, folder, run.config)
        self.active[run.folder_name] = (slot, handle)

    def _after_iteration(self) -> bool:
        """Called by an inline job, during which the launcher's own loop stands still."""
        self.progress.update(self._look, self.executor.slots)
        return self.signals > 0

    # -- stopping

    def _interrupt(self) -> None:
        self.signals += 1

    def _stop(self) -> bool:
        """Ask every running job to checkpoint and stop, and wait for a while."""
        running = self._running(self._look())
        with contextlib.suppress(OSError):  # a disk too full to be asked ends the jobs by itself
            ask_to_stop([sweep_folder(self.sweep, self.runs_dir) / name for name in running])
        if running:
            self.progress.say(
                f"stopping: {len(running)} running run(s) finish their iteration and checkpoint "
                "(Ctrl-C again leaves without waiting)"
            )
        begin = time.monotonic()
        while running and self.signals < 2 and time.monotonic() - begin < STOP_PATIENCE_S:
            time.sleep(PAUSE_S)
            self._reap()
            running = self._running(self._look())
            self.progress.update(self._look, self.executor.slots)
        if running:
            self.progress.say(
                f"{len(running)} run(s) are still busy with an iteration and stop after it"
            )
        return False


# ---- one launcher at a time ------------------------------------------------------------------


def own(sweep: Sweep, runs_dir: Path) -> lock.Lock | None:
    """The sweep's lock, or None where another launcher holds it."""
    return lock.acquire(sweep_folder(sweep, runs_dir) / LAUNCHER_LOCK)


def owner(sweep: Sweep, runs_dir: Path) -> str:
    """Who holds the sweep's lock, in words."""
    return lock.holder(sweep_folder(sweep, runs_dir) / LAUNCHER_LOCK)


def wait_for_lock(sweep: Sweep, runs_dir: Path, progress: Progress) -> lock.Lock | None:
    """Follow the launcher that owns the sweep until it is gone. None where it was interrupted."""
    signals: list[int] = []
    progress.warnings(look_at_all(sweep, runs_dir))
    with _handling(lambda: signals.append(1)):
        while (held := own(sweep, runs_dir)) is None:
            if signals:
                return None
            progress.update(lambda: look_at_all(sweep, runs_dir), None)
            time.sleep(PAUSE_S)
    progress.warnings(look_at_all(sweep, runs_dir))
    return held


@contextmanager
def _handling(handler: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the terminal's end call `handler` and nothing else."""
    before = {
        number: signal.signal(number, lambda *_: handler())
        for number in _ENDING_SIGNALS
        # Whoever ignores the terminal's end (nohup) wants to outlive it.
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


# ---- stopping and removing -------------------------------------------------------------------


def ask_to_stop(folders: list[Path]) -> None:
    """Ask the jobs of these runs to checkpoint and stop after their iteration."""
    for folder in folders:
        (folder / STOP).touch()


def prune(folders: list[Path], say: Callable[[str], None]) -> None:
    """Remove run folders that are no longer in the sweep file; running ones are stopped first."""
    live = [folder for folder in folders if lock.is_held(folder / OWNER_LOCK)]
    ask_to_stop(live)
    begin = time.monotonic()
    for folder in folders:
        patience = STOP_PATIENCE_S - (time.monotonic() - begin) if folder in live else 1.0
        # Owning the run keeps a job from beginning in it while it is removed.
        owned = lock.acquire(folder / OWNER_LOCK, patience)
        if owned is None:
            raise RunError(
                f"{folder}: still runs and was not removed; it stops after its iteration: "
                "run the same command again then"
            )
        shutil.rmtree(folder)
        owned.release()
        say(f"removed {folder}")
