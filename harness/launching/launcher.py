"""Makes the run folders match the sweep file: starts what is missing, follows it, stops cleanly.

Decides only from what the folders and the scheduler show, so it can be killed and started again at
any time, and picks up jobs that an earlier launcher left running. One launcher at a time works on a
sweep.
"""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.launching.dispatch import Executor, Start
from harness.launching.job import MAX_TRIES
from harness.launching.screen import Progress
from harness.launching.sharing import Sharing
from harness.launching.trunk import Trunk
from harness.runs.folder import STOP, newest_checkpoint
from harness.runs.store import LIVE, RunState, State, look, look_at_all, read_result, sweep_folder
from harness.slurm import commands as slurm
from harness.slurm import submissions
from harness.slurm.submissions import Place, Scheduler
from harness.study.spec import Sweep
from mixgrpo.compute import signals
from mixgrpo.errors import RunError
from mixgrpo.files import lease
from mixgrpo.files.records import DamagedFileError, check_lines
from mixgrpo.runs.folder import is_finished

Retry = Literal["none", "lost", "failed"]
"""What runs again: nothing that ended by itself, infrastructure failures, exceptions as well."""

LAUNCHER = "launcher"
"""The folder in a sweep's folder with the lease of its launcher."""
STOP_PATIENCE_S = 120.0
"""How long a launcher waits for its jobs to finish their iteration and checkpoint."""
PAUSE_S = 0.25
RETRY_PAUSE_S = float(os.environ.get("MIXGRPO_RETRY_SECONDS", "60"))
"""A run whose reward cannot be reached, or whose disk fails, is tried again after so long, and
after twice as long the next time."""
_MOST_OF_THE_TIME = 4
"""A look at many runs takes a while: it is followed by a pause so many times as long."""

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Launcher:
    """Owns a sweep while it runs. Use it with the sweep's lease held (`own`, `wait_for_lease`)."""

    def __init__(
        self,
        sweep: Sweep,
        runs_dir: Path,
        progress: Progress,
        make_executor: Callable[[Callable[[], bool]], Executor],
        scheduler: Scheduler,
        retry: Retry = "lost",
        sharing: Sharing | None = None,
        held: lease.Lease | None = None,
    ) -> None:
        """`make_executor` is given what an inline job asks after every iteration. Without `sharing`
        every run is computed from its beginning. `held` is the sweep's lease."""
        # Absolute: code that an inline run calls may change the working directory.
        self.sweep, self.runs_dir, self.progress = sweep, runs_dir.absolute(), progress
        self.retry = retry
        self.scheduler, self.sharing, self.held = scheduler, sharing, held
        self.executor = make_executor(self._after_iteration)
        self.signals = 0
        self.exit_code = 0
        """That of the signal which interrupted it."""
        self.active: set[str] = set()
        """Folder names of the runs whose jobs were started here and are not over."""
        self.starts: dict[str, int] = {}
        self.no_space = False
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
        self._said: set[str] = set()
        """Why runs start from zero, as far as it was said."""
        self._trunks: dict[str, Trunk] = {}
        """From where runs start that have nothing yet, as it was seen last."""

    def go(self) -> bool:
        """Run until nothing is left to do. False where it was interrupted.

        RunError where a disk is full, or the sweep's folder was renamed, removed or replaced.
        """
        with signals.handling(self._interrupt, _ENDING_SIGNALS):
            self._copy_finished()
            while True:
                begin = time.monotonic()
                self._check_folder()
                states = self._look()
                self._check_folder()
                self._reap(states)
                self.progress.warnings(states)
                if self.signals:
                    return self._stop()
                try:
                    started = self._start_missing(states)
                    if self.sharing is not None:
                        self.sharing.release(states)
                    submissions.tidy(self.scheduler)
                    self._release(states)
                except BrokenPipeError:  # whoever read the output (`| head`) has gone
                    raise
                except OSError as error:
                    self._check_folder()
                    self._stop()
                    raise self._no_room(error) from error
                if not (started or self._busy(states) or self._waiting(states) or self.signals):
                    self.progress.update(self._shown, self.executor.slots, force=True)
                    return True
                self.progress.update(self._shown, self.executor.slots)
                if not started:
                    self._pause(max(PAUSE_S, _MOST_OF_THE_TIME * (time.monotonic() - begin)))

    def _check_folder(self) -> None:
        """RunError where the sweep's folder is not the one in which this launcher began. What the
        jobs do then is said, for their records cannot be read any more."""
        if self.held is None or not self.held.gone():
            return
        live = [s for name, s in self._states.items() if s.state in LIVE or name in self.active]
        jobs = ""
        if live and self.executor.outlive:
            tasks = sorted({state.place.task for state in live if state.place is not None})
            jobs = (
                f"; {len(live)} run(s) in Slurm end by themselves, those that run at once and "
                "those that wait when they begin"
            )
            if tasks:
                jobs += f" (scancel {' '.join(tasks)} ends them now)"
        elif live:
            jobs = f"; {len(live)} running run(s) end by themselves"
        raise lease.FolderGoneError(
            f"{sweep_folder(self.sweep, self.runs_dir)}: was renamed, removed or replaced while "
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
                f"it back, or run the same command again to begin the run anew: {state.folder}"
            )
        return True

    def _no_room(self, error: OSError) -> RunError:
        return RunError(
            f"no space (or not writable) under {self.runs_dir}: {error.strerror or error}; "
            "everything is resumable: make room and run the same command again"
        )

    def _copy_finished(self) -> None:
        """Take over the runs that are finished under another name."""
        if self.sharing is None:
            return
        try:
            self.sharing.copy_finished(self._look(), self.progress.say, lambda: bool(self.signals))
        except OSError as error:
            raise self._no_room(error) from error

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
        """All states; those of finished runs are remembered, for they do not change."""
        places = self.scheduler.places()
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
        places = self.scheduler.places() if self.active else {}
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

    def _busy(self, states: list[RunState]) -> set[str]:
        """Folder names of what is under way, whoever started it."""
        return {s.run.folder_name for s in states if s.state in LIVE} | self.active

    def _waiting(self, states: list[RunState]) -> bool:
        """Whether a queue may yet take what it did not take now."""
        return any(
            (self.executor.outlive and self._wants(state)) or self._wants_later(state)
            for state in states
        )

    def _start_missing(self, states: list[RunState]) -> bool:
        """Fill the free slots. Whether anything was started."""
        busy = self._busy(states)
        wanted = [s for s in states if s.run.folder_name not in busy and self._wants(s)]
        wanted = self._without_waiting(wanted, states, busy)
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

    def _without_waiting(
        self, wanted: list[RunState], states: list[RunState], busy: set[str]
    ) -> list[RunState]:
        """Those of the wanted runs that need not wait for another one's checkpoint, by their seed.

        Those for which others wait come before the rest of their seed, and before all others when
        these are too few to fill the slots: no slot is idle later, when only such a one is left.
        """
        if self.sharing is None or not wanted:
            return wanted
        self._trunks = self.sharing.plan(
            states,
            lambda s: s.run.folder_name in busy or self._wants(s) or self._wants_later(s),
        )
        for text in self.sharing.why_from_zero():
            if text not in self._said:
                self._said.add(text)
                self.progress.say(text)
        waits = {name for name, trunk in self._trunks.items() if not trunk.ready}
        sources = {self._trunks[name].source for name in waits}
        able = [state for state in wanted if state.run.folder_name not in waits]
        seeds = {seed: index for index, seed in enumerate(self.sweep.seeds)}
        others = sum(state.run.folder_name not in sources for state in able)
        few = others < (self.executor.slots or 0)

        def order(state: RunState) -> tuple[int, int]:
            seed, other = seeds[state.run.seed], state.run.folder_name not in sources
            return (other, seed) if few else (seed, other)

        return sorted(able, key=order)

    def _wants(self, state: RunState) -> bool:
        """Whether a run that is not under way should be."""
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
                # another failure is for the user to mend.
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
            folder = sweep_folder(self.sweep, self.runs_dir) / state.run.folder_name
            folder.mkdir(exist_ok=True)
            self._seen.add(state.run.folder_name)
            (folder / STOP).unlink(missing_ok=True)
            start = Start(state.run, folder)
            if self.sharing is not None:
                start = self.sharing.start(state.run, folder, self._trunks)
                if start.trunk is not None and self.sharing.is_other_length(start.trunk.name):
                    self.progress.say(
                        f"{state.run.name}: continues {start.trunk.name} after its "
                        f"{start.trunk_iterations} iterations"
                    )
            wanted[state.run.folder_name] = (state, start)
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
            state.place.task
            for state in states
            if state.place is not None
            and state.place.standing == "queued"
            and submissions.LAUNCH_FAILED in state.place.reason
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
        self.progress.update(self._shown, self.executor.slots)
        return self.signals > 0

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.signals and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PAUSE_S))

    # -- stopping

    def _interrupt(self, number: int) -> None:
        self.signals += 1
        self.exit_code = self.exit_code or signals.exit_code(number)

    def _stop(self) -> bool:
        """Ask every running job to checkpoint and stop, and wait; jobs of a queue go on."""
        if self.held is not None and self.held.gone():
            return False
        states = self._look()
        running = self._busy(states)
        if self.executor.outlive:
            if running:
                self.progress.say(
                    f"{len(running)} run(s) go on in Slurm without this command; the same command "
                    "follows them again, and --cancel ends them"
                )
            waiting = sum(not trunk.ready for trunk in self._trunks.values())
            if waiting:
                self.progress.say(
                    f"{waiting} run(s) wait for the checkpoint of another and are not in the queue "
                    "yet; the same command hands them over (with --detach in the background)"
                )
            return False
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
            states = self._look()
            self._reap(states)
            running = self._busy(states)
            self.progress.update(self._shown, self.executor.slots)
        if running:
            self.progress.say(
                f"{len(running)} run(s) are still busy with an iteration and stop after it"
            )
        return False


_FOR_THE_USER = ("no-space", "no-progress", "finished")
"""Reasons of a loss that starting again at once would only repeat."""


# ---- one launcher at a time ------------------------------------------------------------------


def own(sweep: Sweep, runs_dir: Path, begin: bool = True) -> lease.Lease | None:
    """The sweep's lease, or None where another launcher holds it.

    With `begin` the sweep's folder is made; without, FileNotFoundError where it is not there.
    """
    folder = sweep_folder(sweep, runs_dir)
    if begin:
        folder.mkdir(parents=True, exist_ok=True)
    held = lease.acquire(folder / LAUNCHER)
    if held is not None:
        held.ends_process = False  # the launcher looks by itself, and says what its jobs do
    return held


def owner(sweep: Sweep, runs_dir: Path) -> str:
    """Who holds the sweep's lease, in words."""
    return lease.holder(sweep_folder(sweep, runs_dir) / LAUNCHER)


def wait_for_lease(
    sweep: Sweep, runs_dir: Path, progress: Progress, places: Callable[[], dict[str, Place]]
) -> lease.Lease:
    """Follow the launcher that owns the sweep until it is gone. Interrupted by a signal.

    FolderGoneError where the sweep's folder is not the one any more that was followed.
    """
    folder = sweep_folder(sweep, runs_dir)
    followed = _identity(folder)
    noted: list[int] = []
    progress.warnings(look_at_all(sweep, runs_dir, places()))
    with signals.handling(noted.append, _ENDING_SIGNALS):
        while True:
            same = followed is not None and _identity(folder) == followed
            try:
                held = own(sweep, runs_dir, begin=False) if same else None
            except FileNotFoundError:  # renamed between the two
                same, held = False, None
            if not same:
                raise lease.FolderGoneError(
                    f"{folder}: was renamed, removed or replaced while this command followed it; "
                    "nothing was started: put it back and run the same command again to continue, "
                    "or run it without the folder to begin anew"
                )
            if held is not None:
                break
            if noted:
                raise signals.Interrupted(noted[0])
            progress.update(lambda: look_at_all(sweep, runs_dir, places()), None)
            time.sleep(PAUSE_S)
    progress.warnings(look_at_all(sweep, runs_dir, places()))
    return held


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays the same of a folder while it is the same; None where it is not there."""
    try:
        seen = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return seen.st_dev, seen.st_ino


# ---- stopping ---------------------------------------------------------------------------------


def ask_to_stop(folders: list[Path]) -> None:
    """Ask the jobs of these runs to checkpoint and stop after their iteration."""
    for folder in folders:
        (folder / STOP).touch()
