"""A search as a launcher's source of work: the runs of the trials under way.

The runs are ordinary ones, and starting, following, resuming and stopping them is the work of
`harness.launching.launcher`, over any executor. Which runs there are grows with the trials
(`trials`).
"""

from collections.abc import Callable
from pathlib import Path

from harness.launching.launcher import Launcher
from harness.runs.state import RunState
from harness.searching.file import Search
from harness.searching.runs import Curves, make_sweep
from harness.searching.study import Study
from harness.searching.trials import Trials
from harness.study.arms import Arm
from harness.study.spec import Run, Sweep

_TOGETHER = 2
"""This many seeds of a trial may run at once: with fewer there is no pair to test."""


class SearchWork:
    """The runs of a search, given the trials so far."""

    def __init__(
        self, search: Search, study: Study, runs_dir: Path, say: Callable[[str], None], again: bool
    ) -> None:
        """`again`: enqueued trials that failed are tried again."""
        self.search, self.folder = search, runs_dir.absolute() / search.name
        self._launcher: Launcher | None = None
        study.enqueue(again=again)
        curves = Curves(search, runs_dir)
        self.trials = Trials(search, study, curves, say, self._is_hopeless, self._end)
        self.sweep: Sweep = make_sweep(search)
        self._lay_out([], set())

    def wants(self, run: Run) -> bool:
        """Whether a run is one of a trial that is not being given up."""
        return self.trials.want(run)

    def advance(self, states: list[RunState], launcher: Launcher) -> bool:
        """Judge the trials under way and ask for more. Whether the runs may be others now."""
        self._launcher = launcher
        by_name = {state.run.folder_name: state for state in states}
        changed = self.trials.judge(by_name, stopping=launcher.signals > 0)
        if not launcher.signals and not launcher.retries.no_space:
            changed = self.trials.ask() or changed
        if changed:
            self._lay_out(states, launcher.active)
        return changed

    def _is_hopeless(self, state: RunState) -> bool:
        return self._launcher is not None and self._launcher.has_given_up(state)

    def _end(self, live: list[RunState]) -> None:
        if self._launcher is not None:
            self._launcher.end(live)

    def _lay_out(self, states: list[RunState], active: set[str]) -> None:
        """Which runs there are now: those of the trials under way, as far as their seeds go."""
        runs: list[tuple[int, int, Run]] = []
        finished = {s.run.folder_name for s in states if s.state == "finished"}
        for number, opened in self.trials.under_way.items():
            done = sum(run.folder_name in finished for run in opened.runs)
            for index, run in enumerate(opened.runs):
                there = (self.folder / run.folder_name).exists()
                if there or (not opened.dropped and index < max(_TOGETHER, done + 1)):
                    runs.append((index, number, run))
        # Of trials that are over, the jobs that the launcher has not seen end.
        known = {run.folder_name for _, _, run in runs}
        ending = [
            s.run for s in states if s.run.folder_name in active and s.run.folder_name not in known
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
