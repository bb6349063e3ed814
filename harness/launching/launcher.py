"""Makes the run folders match what is asked for: starts what is missing, follows it, stops cleanly.

Decides only from what the folders and the scheduler show, so it can be killed and started again at
any time, and picks up jobs that an earlier launcher left running. One launcher at a time works on a
sweep (`harness.launching.sweep_lease`). Which runs there are is its source of work's to say: a
sweep file, or a search whose trials come one after the other.

It is long because the states of a run and the answers to each of them stand in one place.
"""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from harness.launching.dispatch import Executor
from harness.launching.folders import Folders, HasRuns
from harness.launching.job import MAX_TRIES
from harness.launching.screen import Progress
from harness.runs.folder import STOP, is_of, newest_checkpoint
from harness.runs.result import read_result
from harness.runs.state import LIVE, RunState, State, look, sweep_folder
from harness.slurm import commands as slurm
from harness.slurm.scheduler import LAUNCH_FAILED, Scheduler, save_answers
from harness.study.spec import Run, Sweep
from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease
from mixgrpo.files.records import DamagedFileError, check_lines
from mixgrpo.runs.folder import is_finished

Retry = Literal["none", "lost", "failed"]
"""What runs again: nothing that ended by itself, infrastructure failures, exceptions as well."""

STOP_PATIENCE_S = 120.0
"""How long a launcher waits for its jobs to finish their iteration and checkpoint."""
PAUSE_S = 0.25
RETRY_PAUSE_S = float(os.environ.get("MIXGRPO_RETRY_SECONDS", "60"))
"""A run whose reward cannot be reached, or whose disk fails, is tried again after this time, and
after twice this time the next time."""
_PAUSE_PER_LOOK = 4
"""After a look at the runs the launcher sleeps this many times as long as the look took, so that it
uses a fifth of a core at most."""

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Work(HasRuns, Protocol):
    """Where a launcher's runs come from."""

    def wants(self, run: Run) -> bool:
        """Whether a run may be started, as far as the source of work is concerned."""
        ...

    def advance(self, states: list[RunState], launcher: "Launcher") -> bool:
        """Act on what the runs show. Whether there may be other runs now."""
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
    """Owns a sweep while it runs. Use it with the sweep's lease held (`sweep_lease`)."""

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
        """`make_executor` is given what an inline job asks after every iteration. `share` and
        `accept_code_change` are those of `Folders`. `held` is the sweep's lease."""
        # Absolute: code that an inline run calls may change the working directory.
        self.work, self.runs_dir, self.progress = work, runs_dir.absolute(), progress
        self.retry, self.scheduler, self.held = retry, scheduler, held
        self.folders = Folders(work, self.runs_dir, progress.say, share, accept_code_change)
        self.executor = make_executor(self._after_iteration)
        self.signals = 0
        self.exit_code = 0
        """That of the signal which interrupted it."""
        self.active: set[str] = set()
        """Folder names of the runs whose jobs were started here and are not over."""
        self.starts: dict[str, int] = {}
        self.no_space = False
        self._broken: Exception | None = None
        """What ends the launcher before its time. Jobs are still followed."""
        self._tries: dict[str, tuple[int, int]] = {}
        """By folder name: starts in a row without progress, and the checkpoint at the last one."""
        self._not_before: dict[str, float] = {}
        """When a run that failed by what is around it may be tried again."""
        self._followed: set[str] = set()
        """Runs that were under way when this launcher saw them, whoever had started them."""
        self._released: dict[str, tuple[float, int]] = {}
        """When, and how often, jobs were released that Slurm had held, by task."""
        self._states: dict[str, RunState] = {}
        self._watch = lease.Watch()
        self.vanished: set[str] = set()
        """Folder names of runs whose folder was there and is not any more."""
        self._seen: set[str] = set()
        """Folder names of runs whose folder was there."""

    @property
    def sweep(self) -> Sweep:
        return self.work.sweep

    @property
    def folder(self) -> Path:
        return sweep_folder(self.sweep, self.runs_dir)

    def go(self) -> bool:
        """Run until nothing is left to do. False where it was interrupted.

        RunError where a disk is full, or the sweep's folder was renamed, removed or replaced. What
        ends it, whatever that is, asks the jobs of this machine to stop before.
        """
        complete = False
        with signals.handling(self._interrupt, _ENDING_SIGNALS):
            try:
                complete = self._go()
            except BrokenPipeError:  # whoever read the output (`| head`) has gone
                raise
            except Exception as error:
                self._broken = self._broken or error
                with contextlib.suppress(RunError, ConfigError, OSError):
                    self._stop()
        if isinstance(self._broken, OSError):
            self._check_folder()
            raise self._no_room(self._broken) from self._broken
        if self._broken is not None:
            raise self._broken
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
            save_answers(self.scheduler)
            self._release(states)
            if not (started or self._busy(states) or self._waiting(states) or self.signals):
                self.progress.update(self._shown, self.executor.slots, force=True)
                return True
            self.progress.update(self._shown, self.executor.slots)
            if not started:
                self._pause(max(PAUSE_S, _PAUSE_PER_LOOK * (time.monotonic() - begin)))

    def _check_folder(self) -> None:
        """RunError where the sweep's folder is not the one in which this launcher began. What the
        jobs do then is said, for their records cannot be read any more."""
        if self.held is None or not self.held.gone():
            return
        live = [s for name, s in self._states.items() if s.state in LIVE or name in self.active]
        jobs = ""
        if live and self.executor.outlive:
            tasks = sorted({state.job.task for state in live if state.job is not None})
            jobs = (
                f"; {len(live)} run(s) in Slurm end by themselves, those that run at once and "
                "those that wait when they begin"
            )
            if tasks:
                jobs += f" (scancel {' '.join(tasks)} ends them now)"
        elif live:
            jobs = f"; {len(live)} running run(s) end by themselves"
        raise lease.FolderGoneError(
            f"{self.folder}: was renamed, removed or replaced while "
            f"this command worked in it; nothing more is written there{jobs}: put the folder back "
            "and run the same command again to continue, or run it without the folder to begin "
            "anew"
        )

    def _has_vanished(self, state: RunState) -> bool:
        """Whether a run's folder was there and is not any more: then nothing makes it again."""
        name = state.run.folder_name
        if name not in self._seen or state.folder.is_dir():
            return False
        if name not in self.vanished:
            self.vanished.add(name)
            self.progress.say(
                f"{state.run.name}: its folder was renamed or removed while this command ran; put "
                "it back, or run the same command again, which goes on with what is stored of the "
                f"run or begins it anew: {state.folder}"
            )
        return True

    def _no_room(self, error: OSError) -> RunError:
        return RunError(
            f"no space (or not writable) under {self.runs_dir}: {error.strerror or error}; "
            "everything is resumable: make room and run the same command again"
        )

    def _set_aside(self, state: RunState) -> bool:
        """Look into all lines of a finished run, as `look` does not: where some are not those of
        the result, it is set aside, so that the run makes them again. Whether that was so."""
        result = read_result(state.folder)
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
        """All states, after what they mean for the source of work was done."""
        states = self._look_once()
        while self._broken is None and self.work.advance(states, self):
            states = self._look_once()
        return states

    def _look_once(self) -> list[RunState]:
        """All states; those of finished runs are remembered, for they do not change."""
        places = self.scheduler.job_states()
        states = []
        for run in self.sweep.runs:
            known = self._states.get(run.folder_name)
            if known is None or known.state != "finished":
                known = look(self.sweep, run, self.runs_dir, places, self._watch)
                if known.state == "finished" and self._set_aside(known):
                    known = look(self.sweep, run, self.runs_dir, places, self._watch)
                self._states[run.folder_name] = known
                if known.state in LIVE:
                    self._followed.add(run.folder_name)
                if known.attempts:
                    self._seen.add(run.folder_name)
            states.append(known)
        return states

    def _shown(self) -> list[RunState]:
        """`_look` for people: a job that was started here and has not come to its lease is under
        way, whatever the folder says of the attempts before it."""
        way: State = "queued" if self.executor.outlive else "running"
        return [
            replace(state, state=way, phase="starting")
            if state.run.folder_name in self.active and state.state not in (*LIVE, "finished")
            else state
            for state in self._look()
        ]

    def _reap(self, states: list[RunState]) -> None:
        """Take note of the jobs that are over, and say how they ended."""
        places, before = self.scheduler.job_states() if self.active else {}, len(self.active)
        for index, seen in enumerate(states):
            name = seen.run.folder_name
            if name not in self.active or not self.executor.over(seen):
                continue
            self.active.discard(name)
            state = look(self.sweep, seen.run, self.runs_dir, places, self._watch)
            self._states[name] = states[index] = state
            self.no_space = self.no_space or state.reason == "no-space"
            if self._has_vanished(state):
                continue
            self.progress.warnings([state])
            self.progress.ended(state)
        if len(self.active) < before:
            states[:] = self._look()

    def _busy(self, states: list[RunState]) -> set[str]:
        """Folder names of what is under way, whoever started it."""
        return {s.run.folder_name for s in states if s.state in LIVE} | self.active

    def _own(self, states: list[RunState]) -> set[str]:
        """The same without what another sweep has started, which has the same run."""
        others = {
            s.run.folder_name
            for s in states
            if s.attempts and not is_of(self.sweep.name, s.folder, s.attempts[-1])
        }
        return self.active | (self._busy(states) - others)

    def _waiting(self, states: list[RunState]) -> bool:
        """Whether a queue may yet take what it did not take now."""
        return any(
            (self.executor.outlive and self._wants(state)) or self._wants_later(state)
            for state in states
        )

    def _start_missing(self, states: list[RunState]) -> bool:
        """Fill the free slots. Whether anything changed."""
        busy = self._busy(states)
        wanted = [s for s in states if s.run.folder_name not in busy and self._wants(s)]
        if self.folders.take_stored([s.run for s in wanted if s.state == "waiting"]):
            return True
        if self.executor.slots is not None:
            elsewhere = {s.run.folder_name for s in states if s.in_queue} - self.active
            wanted = wanted[: max(0, self.executor.slots - len(busy - elsewhere))]
        started = False
        # A process is started while the others wait, a queue takes all at once.
        batches = [wanted] if self.executor.outlive else [[state] for state in wanted]
        for batch in filter(None, batches):
            if self.signals:
                break
            started = self._start(batch) or started
        return started

    def _wants(self, state: RunState) -> bool:
        """Whether a run that is not under way should be."""
        return self.work.wants(state.run) and self._may_start(state)

    def _may_start(self, state: RunState) -> bool:
        """The same, whatever the source of work says."""
        name = state.run.folder_name
        fresh = name not in self.starts and name not in self._followed
        tries, began_at = self._tries.get(name, (0, 0))
        if self._has_vanished(state):
            return False
        if self.no_space or (tries >= MAX_TRIES and newest_checkpoint(state.folder) <= began_at):
            return False
        match state.state:
            case "waiting":
                return True
            case "stopped":
                return fresh
            case "lost":
                # What was killed may do better at once, a server that was away after a while;
                # another failure is for the user to fix.
                if fresh or self.retry == "none":
                    return fresh and self.retry != "none"
                if state.reason == "run-error":
                    return time.monotonic() >= self._not_before.get(name, 0.0)
                return state.reason not in _FOR_THE_USER
            case "failed":
                return self.retry == "failed" and fresh
            case _:
                return False

    def _wants_later(self, state: RunState) -> bool:
        """Whether a run that failed by what is around it waits to be tried again."""
        name = state.run.folder_name
        return (
            (state.state, state.reason) == ("lost", "run-error")
            and self.retry != "none"
            and not self.no_space
            and name in self.starts
            and self._tries[name][0] < MAX_TRIES
        )

    def _start(self, states: list[RunState]) -> bool:
        """Start these runs, as many as are taken. Whether any was."""
        wanted = {}
        self._check_folder()
        for state in states:
            folder = self.folders.make(state.run)
            self._seen.add(state.run.folder_name)
            (folder / STOP).unlink(missing_ok=True)
            wanted[state.run.folder_name] = (state, self.folders.start(state.run, folder))
        if not self.executor.outlive:  # said before: an inline run takes its time
            for state in states:
                self._note(state)
        taken = self.executor.start([start for _, start in wanted.values()])
        for name in taken:
            if self.executor.outlive:
                self._note(wanted[name][0])
            self.active.add(name)
        return bool(taken)

    def _note(self, state: RunState) -> None:
        """Count a start, and say it."""
        name = state.run.folder_name
        tries, began_at = self._tries.get(name, (0, 0))
        checkpoint = newest_checkpoint(state.folder)
        self._tries[name] = (1 if checkpoint > began_at else tries + 1, checkpoint)
        self.starts[name] = self.starts.get(name, 0) + 1
        self._not_before[name] = time.monotonic() + RETRY_PAUSE_S * self._tries[name][0]
        self.progress.started(state.run, self.starts[name])

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
            # The queue is asked again only now and then, and shows the old state until then.
            if tries < MAX_TRIES and time.monotonic() - asked > 2 * self.scheduler.poll_s:
                self._released[task] = (time.monotonic(), tries + 1)
                with contextlib.suppress(RunError):  # asked again, as long as it is held
                    slurm.release([task])
                    self.progress.say(f"job {task} was held after a failed start: released")

    def _after_iteration(self) -> bool:
        """Called by an inline job, during which the launcher's own loop stands still."""
        try:
            self.progress.update(self._shown, self.executor.slots)
        except (ConfigError, RunError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            # What ends the launcher is no fault of the run in which it shows.
            self._broken = error
            self.signals += 1
        return self.signals > 0

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.signals and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PAUSE_S))

    # -- what a source of work asks

    def is_hopeless(self, state: RunState) -> bool:
        """Whether a run has failed, or was lost so often, that it is not started again."""
        # While its job is under way, its folder may still show how the one before ended.
        under_way = state.run.folder_name in self.active
        if under_way or self._may_start(state) or self._wants_later(state):
            return False
        if state.state != "lost":
            return state.state == "failed"
        if self.no_space or self.retry == "none":  # the same command continues
            return False
        tries, began_at = self._tries.get(state.run.folder_name, (0, 0))
        stuck = tries >= MAX_TRIES and newest_checkpoint(state.folder) <= began_at
        return state.reason in _LEADS_NOWHERE or (stuck and state.reason != "no-space")

    def end(self, live: Iterable[RunState]) -> None:
        """Ask living jobs to stop."""
        live = list(live)
        queued = {s.run.folder_name for s in live if s.state == "queued"}
        if queued:
            with contextlib.suppress(RunError):  # then it starts, and finds its stop file
                self.scheduler.cancel(queued)
        ask_to_stop([s.folder for s in live if s.folder.is_dir()])

    # -- stopping

    def _interrupt(self, number: int) -> None:
        self.signals += 1
        self.exit_code = self.exit_code or signals.exit_code(number)

    def _stop(self) -> bool:
        """Ask every running job to checkpoint and stop, and wait; jobs of a queue go on."""
        if self.held is not None and self.held.gone():
            return False
        states = self._look()
        running = self._own(states)
        if self.executor.outlive:
            if running:
                self.progress.say(
                    f"{len(running)} run(s) go on in Slurm without this command; the same command "
                    "follows them again, and --cancel ends them"
                )
            return False
        with contextlib.suppress(OSError):  # a disk too full to be asked ends the jobs by itself
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
            running = self._own(states)
            self.progress.update(self._shown, self.executor.slots)
        if running:
            self.progress.say(
                f"{len(running)} run(s) are still busy with an iteration and stop after it"
            )
        return False


_FOR_THE_USER = ("no-space", "no-progress", "finished")
"""Reasons of a loss that starting again at once would only repeat."""
_LEADS_NOWHERE = ("no-progress", "finished")
"""Reasons of a loss that starting again repeats, whoever fixes what is around it."""


def ask_to_stop(folders: list[Path]) -> None:
    """Ask the jobs of these runs to checkpoint and stop after their iteration."""
    for folder in folders:
        (folder / STOP).touch()
