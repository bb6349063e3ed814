"""Starts the missing runs of a sweep, follows them, and stops them cleanly.

It decides only from what the folders and the scheduler show, so it can be killed and started again
at any time, and picks up jobs that an earlier launcher left running. One launcher at a time works
on a sweep (`harness.launching.sweep_lease`). Its source of work says which runs there are: a sweep
file, one with looks (`looks`), or a search whose trials come one after the other. What is tried
again is decided in `retry`.

It is long because starting, following and stopping share the states of the runs.
"""

import contextlib
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from harness.launching.dispatch import Executor
from harness.launching.folders import Folders, HasRuns
from harness.launching.job import MAX_TRIES
from harness.launching.retry import Retries, Retry
from harness.launching.screen import Progress
from harness.runs.folder import STOP, ask_to_stop
from harness.runs.result import read_result
from harness.runs.state import LIVE, RunState, State, look, sweep_folder
from harness.slurm import commands as slurm
from harness.slurm.scheduler import LAUNCH_FAILED, Scheduler, settle_submissions
from harness.study.spec import Run, Sweep
from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease
from mixgrpo.files.records import DamagedFileError, check_lines
from mixgrpo.runs.folder import is_finished

STOP_PATIENCE_S = 120.0
"""How long a launcher waits for its jobs to finish their iteration and checkpoint."""
PAUSE_S = 0.25
_PAUSE_PER_LOOK = 4
"""After each look at the runs, pause 4 times as long as the look took: the launcher then uses at
most a fifth of a core."""

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Work(HasRuns, Protocol):
    """A source of work: says which runs there are."""

    def wants(self, run: Run) -> bool:
        """Whether the source of work wants a run to be started now."""
        ...

    def advance(self, states: list[RunState], launcher: "Launcher") -> bool:
        """Act on the states of the runs. Whether there may be other runs now."""
        ...


@dataclass(frozen=True)
class SweepWork:
    """The runs of a sweep file, or of a part of it."""

    sweep: Sweep

    def wants(self, run: Run) -> bool:
        return True

    def advance(self, states: list[RunState], launcher: "Launcher") -> bool:
        return False


class Launcher:
    """Runs one sweep. Use it with the sweep's lease held (`sweep_lease`)."""

    def __init__(
        self,
        work: Work,
        runs_dir: Path,
        progress: Progress,
        make_executor: Callable[[Callable[[], bool]], Executor],
        scheduler: Scheduler,
        retry: Retry = "lost",
        share: bool = True,
        accept_code_change: bool = False,
        held: lease.Lease | None = None,
    ) -> None:
        """`make_executor` is given the function that an inline job calls after every iteration.
        `share` and `accept_code_change` are those of `Folders`. `held` is the sweep's lease."""
        # Absolute: code that an inline run calls may change the working directory.
        self.work, self.runs_dir, self.progress = work, runs_dir.absolute(), progress
        self.retries, self.scheduler, self.held = Retries(retry), scheduler, held
        self.folders = Folders(work, self.runs_dir, progress.say, share, accept_code_change)
        self.executor = make_executor(self._after_iteration)
        self.signals = 0
        self.exit_code = 0
        """The exit code for the signal that interrupted it."""
        self.active: set[str] = set()
        """Folder names of the runs whose jobs were started here and are not over."""
        self._error: Exception | None = None
        """What ends the launcher early. Jobs are still followed."""
        self._released: dict[str, tuple[float, int]] = {}
        """When, and how often, jobs that Slurm held were released, by task."""
        self._states: dict[str, RunState] = {}
        self._watch = lease.Watch()
        self.vanished: set[str] = set()
        """Folder names of runs whose folder disappeared while this launcher worked."""
        self._seen: set[str] = set()
        """Folder names of runs whose folder existed at some moment."""

    @property
    def sweep(self) -> Sweep:
        return self.work.sweep

    @property
    def folder(self) -> Path:
        return sweep_folder(self.sweep, self.runs_dir)

    def go(self) -> bool:
        """Run until nothing is left to do. False where it was interrupted.

        RunError where a disk is full, or the sweep's folder was renamed, removed or replaced.
        Before any error ends it, the jobs of this machine are asked to stop.
        """
        complete = False
        with signals.handling(self._interrupt, _ENDING_SIGNALS):
            try:
                complete = self._go()
            except BrokenPipeError:  # whoever read the output (`| head`) has gone
                raise
            except Exception as error:
                self._error = self._error or error
                with contextlib.suppress(RunError, ConfigError, OSError):
                    self._stop()
        if isinstance(self._error, OSError):
            self._check_folder()
            raise self._disk_error(self._error) from self._error
        if self._error is not None:
            raise self._error
        return complete

    def _go(self) -> bool:
        while True:
            begin = time.monotonic()
            self._check_folder()
            states = self._look()
            self._check_folder()
            self._reap(states)
            self.progress.warnings(states)
            if self.signals:
                return self._stop()
            started = self._start_missing(states)
            settle_submissions(self.scheduler)
            self._release(states)
            if not (
                started or self._under_way(states) or self._has_work_left(states) or self.signals
            ):
                self.progress.update(self._shown, self.executor.slots, force=True)
                return True
            self.progress.update(self._shown, self.executor.slots)
            if not started:
                self._pause(max(PAUSE_S, _PAUSE_PER_LOOK * (time.monotonic() - begin)))

    def _check_folder(self) -> None:
        """RunError where the sweep's folder is not the one in which this launcher began. It says
        what the jobs will do, for their records cannot be read any more."""
        if self.held is None or not self.held.gone():
            return
        live = [s for name, s in self._states.items() if s.state in LIVE or name in self.active]
        jobs = ""
        if live and self.executor.outlive:
            tasks = sorted({state.job.task for state in live if state.job is not None})
            jobs = (
                f"; {len(live)} run(s) in Slurm end by themselves: running ones now, waiting ones "
                "when they begin"
            )
            if tasks:
                jobs += f" (scancel {' '.join(tasks)} ends them now)"
        elif live:
            jobs = f"; {len(live)} running run(s) end by themselves"
        raise lease.FolderGoneError(
            f"{self.folder}: was renamed, removed or replaced while "
            f"this command worked in it; nothing more is written there{jobs}: put the folder back "
            "and run the same command again to continue, or run it without the folder to start "
            "again"
        )

    def _has_vanished(self, state: RunState) -> bool:
        """Whether a run's folder disappeared while this launcher worked: it is not made again."""
        name = state.run.folder_name
        if name not in self._seen or state.folder.is_dir():
            return False
        if name not in self.vanished:
            self.vanished.add(name)
            self.progress.say(
                f"{state.run.name}: its folder was renamed or removed while this command ran; put "
                "it back, or run the same command again, which continues what is stored of the "
                f"run or starts it again: {state.folder}"
            )
        return True

    def _disk_error(self, error: OSError) -> RunError:
        return RunError(
            f"no space (or not writable) under {self.runs_dir}: {error.strerror or error}; "
            "everything is resumable: make room and run the same command again"
        )

    def _set_aside(self, state: RunState) -> bool:
        """Check every line of a finished run, which `look` does not. Where one does not match the
        result, set the result aside, so that the run continues. Whether that was done."""
        result = read_result(state.folder, state.run)
        try:
            if result is not None:
                check_lines(state.folder, result, None, thorough=True)
            return False
        except DamagedFileError:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                is_finished(state.run.config, state.folder)
        for warning in said:
            self.progress.say(f"{state.run.name}: {warning.message}")
        return True

    def _look(self) -> list[RunState]:
        """All states, after the source of work has acted on them."""
        states = self._look_once()
        while self._error is None and self.work.advance(states, self):
            states = self._look_once()
        return states

    def _look_once(self) -> list[RunState]:
        """All states; those of finished runs are remembered, for they do not change."""
        jobs = self.scheduler.job_states()
        states = []
        for run in self.sweep.runs:
            known = self._states.get(run.folder_name)
            if known is None or known.state != "finished":
                known = look(self.sweep, run, self.runs_dir, jobs, self._watch)
                if known.state == "finished" and self._set_aside(known):
                    known = look(self.sweep, run, self.runs_dir, jobs, self._watch)
                self._states[run.folder_name] = known
                if known.state in LIVE and known.is_started_by(self.sweep.name):
                    self.retries.seen_live(known)
                if known.attempts:
                    self._seen.add(run.folder_name)
            states.append(known)
        return states

    def _shown(self) -> list[RunState]:
        """The states to show: a job that was started here and has not yet taken its lease counts
        as under way, whatever its folder says of earlier attempts."""
        under_way: State = "queued" if self.executor.outlive else "running"
        return [
            replace(state, state=under_way, phase="starting")
            if state.run.folder_name in self.active and state.state not in (*LIVE, "finished")
            else state
            for state in self._look()
        ]

    def _reap(self, states: list[RunState]) -> None:
        """Take note of the jobs that are over, and say how they ended."""
        jobs, before = self.scheduler.job_states() if self.active else {}, len(self.active)
        for index, seen in enumerate(states):
            name = seen.run.folder_name
            if name not in self.active or not self.executor.over(seen):
                continue
            self.active.discard(name)
            state = look(self.sweep, seen.run, self.runs_dir, jobs, self._watch)
            self._states[name] = states[index] = state
            self.retries.no_space = self.retries.no_space or state.reason == "no-space"
            if self._has_vanished(state):
                continue
            self.progress.warnings([state])
            self.progress.ended(state)
        if len(self.active) < before:
            states[:] = self._look()

    def _under_way(self, states: list[RunState]) -> set[str]:
        """Folder names of the runs that are under way, whoever started them."""
        return {s.run.folder_name for s in states if s.state in LIVE} | self.active

    def _under_way_for_this_sweep(self, states: list[RunState]) -> set[str]:
        """The same without the runs that another sweep, which shares them, has started."""
        others = {s.run.folder_name for s in states if not s.is_started_by(self.sweep.name)}
        return self.active | (self._under_way(states) - others)

    def _has_work_left(self, states: list[RunState]) -> bool:
        """Whether a run is to be started that the queue did not accept, or that must wait."""
        return any(
            (self.executor.outlive and self._wants(state)) or self.retries.may_start_later(state)
            for state in states
        )

    def _start_missing(self, states: list[RunState]) -> bool:
        """Fill the free slots. Whether anything changed."""
        busy = self._under_way(states)
        wanted = [s for s in states if s.run.folder_name not in busy and self._wants(s)]
        if self.folders.take_stored([s.run for s in wanted if s.state == "waiting"]):
            return True
        if self.executor.slots is not None:
            elsewhere = {s.run.folder_name for s in states if s.in_queue} - self.active
            wanted = wanted[: max(0, self.executor.slots - len(busy - elsewhere))]
        started = False
        # Processes are started one by one; a queue takes all runs at once.
        batches = [wanted] if self.executor.outlive else [[state] for state in wanted]
        for batch in filter(None, batches):
            if self.signals:
                break
            started = self._start(batch) or started
        return started

    def _wants(self, state: RunState) -> bool:
        """Whether a run that is not under way is to be started."""
        return self.work.wants(state.run) and self._may_start(state)

    def _may_start(self, state: RunState) -> bool:
        return not self._has_vanished(state) and self.retries.may_start(state)

    def _start(self, states: list[RunState]) -> bool:
        """Start these runs, as many as the executor accepts. Whether it accepted any."""
        wanted = {}
        self._check_folder()
        for state in states:
            folder = self.folders.make(state.run)
            self._seen.add(state.run.folder_name)
            (folder / STOP).unlink(missing_ok=True)
            wanted[state.run.folder_name] = (state, self.folders.start(state.run, folder))
        if not self.executor.outlive:  # announced before: an inline run takes its time
            for state in states:
                self._count_start(state)
        accepted = self.executor.start([start for _, start in wanted.values()])
        for name in accepted:
            if self.executor.outlive:
                self._count_start(wanted[name][0])
            self.active.add(name)
        return bool(accepted)

    def _count_start(self, state: RunState) -> None:
        self.progress.started(state.run, self.retries.count_start(state))

    def _release(self, states: list[RunState]) -> None:
        """Let jobs start that Slurm holds because a node failed while it started them."""
        held = {
            state.job.task
            for state in states
            if state.job is not None
            and state.job.status == "queued"
            and LAUNCH_FAILED in state.job.reason
        }
        for task in sorted(held):
            asked, tries = self._released.get(task, (float("-inf"), 0))
            # The queue is read every poll_s and shows the old state until then.
            if tries < MAX_TRIES and time.monotonic() - asked > 2 * self.scheduler.poll_s:
                self._released[task] = (time.monotonic(), tries + 1)
                with contextlib.suppress(RunError):  # tried again while it is held
                    slurm.release([task])
                    self.progress.say(f"job {task} was held after a failed start: released")

    def _after_iteration(self) -> bool:
        """Called by an inline job, during which the launcher's own loop stands still."""
        try:
            self.progress.update(self._shown, self.executor.slots)
        except (ConfigError, RunError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            # What ends the launcher is not the fault of the run that is computed meanwhile.
            self._error = error
            self.signals += 1
        return self.signals > 0

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.signals and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PAUSE_S))

    # -- what a source of work may call

    def has_given_up(self, state: RunState) -> bool:
        """Whether a run has failed, or was lost for good, so that it is not started again."""
        # While its job is starting, its folder still shows how the attempt before ended.
        return state.run.folder_name not in self.active and self.retries.has_given_up(state)

    def end(self, live: Iterable[RunState]) -> None:
        """Ask living jobs to stop."""
        live = list(live)
        queued = {s.run.folder_name for s in live if s.state == "queued"}
        if queued:
            with contextlib.suppress(RunError):  # then it starts, and sees its stop file
                self.scheduler.cancel(queued)
        ask_to_stop([s.folder for s in live if s.folder.is_dir()])

    # -- stopping

    def _interrupt(self, number: int) -> None:
        self.signals += 1
        self.exit_code = self.exit_code or signals.exit_code(number)

    def _stop(self) -> bool:
        """Ask every running job to checkpoint and stop, and wait; jobs in a queue go on."""
        if self.held is not None and self.held.gone():
            return False
        states = self._look()
        running = self._under_way_for_this_sweep(states)
        if self.executor.outlive:
            if running:
                self.progress.say(
                    f"{len(running)} run(s) go on in Slurm without this command; the same command "
                    "follows them again, and --cancel ends them"
                )
            return False
        with contextlib.suppress(OSError):  # a disk too full for the stop file ends the jobs
            ask_to_stop([s.folder for s in states if s.run.folder_name in running])
        if running:
            self.progress.say(
                f"stopping: {len(running)} running run(s) finish their iteration and checkpoint "
                "(Ctrl-C again leaves without waiting)"
            )
        begin = time.monotonic()
        while running and self.signals < 2 and time.monotonic() - begin < STOP_PATIENCE_S:
            time.sleep(PAUSE_S)
            states = self._look()
            self._reap(states)
            running = self._under_way_for_this_sweep(states)
            self.progress.update(self._shown, self.executor.slots)
        if running:
            self.progress.say(
                f"{len(running)} run(s) are still busy with an iteration and stop after it"
            )
        return False
