"""Runs a search: starts the runs of its trials, follows them, ends those that are given up.

The runs are ordinary ones, and starting, following, resuming and stopping them is the work of
`harness.launching.launcher`, over any executor. Which runs there are grows with the trials
(`trials`): what died goes on from its checkpoint, what lives is followed.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from harness.launching.dispatch import Executor
from harness.launching.job import MAX_TRIES
from harness.launching.launcher import Launcher, Retry, ask_to_stop
from harness.launching.screen import Progress
from harness.launching.sharing import Sharing
from harness.runs.folder import newest_checkpoint
from harness.runs.store import RunState
from harness.searching.file import Search
from harness.searching.runs import Curves, make_sweep
from harness.searching.study import Study
from harness.searching.trials import Trials
from harness.slurm.submissions import Scheduler
from harness.study.arms import Arm
from harness.study.spec import Run
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.lease import Lease

_TOGETHER = 2
"""So many seeds of a trial may run at once: with fewer there is no pair to test."""
_LEADS_NOWHERE = ("no-progress", "finished")
"""Reasons of a loss that starting again repeats, whoever mends what is around it."""


class SearchLauncher(Launcher):
    """Owns a search while it runs. Use it with the lease of its folder held."""

    def __init__(
        self,
        search: Search,
        study: Study,
        runs_dir: Path,
        progress: Progress,
        make_executor: Callable[[Callable[[], bool]], Executor],
        scheduler: Scheduler,
        retry: Retry = "lost",
        held: Lease | None = None,
    ) -> None:
        super().__init__(
            make_sweep(search), runs_dir, progress, make_executor, scheduler, retry, held=held
        )
        self.search = search
        self._looked_for: set[str] = set()
        """Folder names of the runs that were looked for in other sweeps."""
        self._broken: Exception | None = None
        """What ends the search before its time: the storage or a disk. Jobs are still followed."""
        study.enqueue(again=retry == "failed")
        curves = Curves(search, runs_dir)
        self.trials = Trials(search, study, curves, progress.say, self._hopeless, self._end)
        self._lay_out([])

    def go(self) -> bool:
        """Run until nothing is left to do. False where it was interrupted.

        RunError where the storage or a disk fails: jobs of this machine are stopped before.
        """
        try:
            complete = super().go()
        except BrokenPipeError:  # whoever read the output (`| head`) has gone
            raise
        except Exception as error:
            self._broken = self._broken or error
            self._stop()
            complete = False
        if isinstance(self._broken, OSError):
            raise self._no_room(self._broken) from self._broken
        if self._broken is not None:
            raise self._broken
        return complete

    # -- hooks of the launcher

    def _look(self) -> list[RunState]:
        """All states, after what they mean for the trials was done."""
        states = super()._look()
        while self._broken is None and self._advance(states):
            self._lay_out(states)
            states = super()._look()
            if self._copy_finished_elsewhere(states):
                states = super()._look()
        return states

    def _reap(self, states: list[RunState]) -> None:
        """Also do what the end of a job means for its trial."""
        before = len(self.active)
        super()._reap(states)
        if len(self.active) < before:
            states[:] = self._look()

    def _wants(self, state: RunState) -> bool:
        return self.trials.want(state.run) and super()._wants(state)

    def _after_iteration(self) -> bool:
        """What breaks the search is no fault of the inline run in which it shows."""
        try:
            return super()._after_iteration()
        except (ConfigError, RunError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            self._broken = error
            self.signals += 1
            return True

    # -- trials

    def _advance(self, states: list[RunState]) -> bool:
        """Judge the trials under way and ask for more. Whether the runs may be others now."""
        by_name = {state.run.folder_name: state for state in states}
        changed = self.trials.judge(by_name, stopping=self.signals > 0)
        if not self.signals and not self.no_space:
            changed = self.trials.ask() or changed
        return changed

    def _hopeless(self, state: RunState) -> bool:
        """Whether a run has failed, or was lost so often, that it is not started again."""
        # While its job is under way, its folder may still show how the one before ended.
        under_way = state.run.folder_name in self.active
        if under_way or super()._wants(state) or self._wants_later(state):
            return False
        if state.state != "lost":
            return state.state == "failed"
        if self.no_space or self.retry == "none":  # the same command continues
            return False
        tries, began_at = self._tries.get(state.run.folder_name, (0, 0))
        stuck = tries >= MAX_TRIES and newest_checkpoint(state.folder) <= began_at
        return state.reason in _LEADS_NOWHERE or (stuck and state.reason != "no-space")

    def _end(self, live: list[RunState]) -> None:
        """Ask living jobs to stop."""
        queued = {s.run.folder_name for s in live if s.state == "queued"}
        if queued:
            with contextlib.suppress(RunError):  # then it starts, and finds its stop file
                self.scheduler.cancel(queued)
        ask_to_stop([s.folder for s in live if s.folder.is_dir()])

    # -- runs

    def _copy_finished_elsewhere(self, states: list[RunState]) -> bool:
        """Take over runs that another sweep has finished; each is looked for once."""
        new = [
            state
            for state in states
            if state.state == "waiting" and state.run.folder_name not in self._looked_for
        ]
        self._looked_for |= {state.run.folder_name for state in new}
        if new:
            Sharing(self.sweep, self.runs_dir).copy_finished(new, self.progress.say)
        return bool(new)

    def _lay_out(self, states: list[RunState]) -> None:
        """Which runs there are now: those of the trials under way, as far as their seeds go."""
        runs: list[tuple[int, int, Run]] = []
        finished = {s.run.folder_name for s in states if s.state == "finished"}
        for place, opened in self.trials.under_way.items():
            done = sum(run.folder_name in finished for run in opened.runs)
            for index, run in enumerate(opened.runs):
                there = (self.runs_dir / self.search.name / run.folder_name).is_dir()
                if there or (not opened.dropped and index < max(_TOGETHER, done + 1)):
                    runs.append((index, place, run))
        # Of trials that are over, the jobs that the launcher has not seen end.
        known = {run.folder_name for _, _, run in runs}
        ending = [
            s.run
            for s in states
            if s.run.folder_name in self.active and s.run.folder_name not in known
        ]
        # First seeds first: they may spare the others.
        self.sweep = make_sweep(
            self.search,
            tuple(
                Arm(opened.runs[0].arm, opened.runs[0].arm, dict(opened.trial.asked or {}))
                for opened in self.trials.under_way.values()
            ),
            (*(run for _, _, run in sorted(runs, key=lambda one: one[:2])), *ending),
        )
