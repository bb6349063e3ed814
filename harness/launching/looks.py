"""A sweep with looks as a launcher's source of work: the runs that it needs at present.

With fixed seeds all runs are wanted at once (`harness.launching.launcher.SweepWork`). Here they
grow after each look (`harness.planning.standing`): on Slurm each look is one submission.
"""

from pathlib import Path

from harness.launching.launcher import Launcher
from harness.launching.retry import seems_over
from harness.planning.standing import Settled, Standing, stand
from harness.planning.words import news
from harness.runs.state import RunState, look_at_all, sweep_folder
from harness.study.spec import Run, Sweep


class LooksWork:
    """The runs of a sweep with looks, or of a part of it, that are needed until now."""

    def __init__(self, whole: Sweep, part: Sweep, runs_dir: Path) -> None:
        self.whole, self._part, self.runs_dir = whole, part, runs_dir
        first = look_at_all(whole, runs_dir)
        # What has ended badly may run again: only the launcher knows what it has given up.
        self.standing = self._stand(first, lambda state: state.state == "finished")
        self.sweep = self.standing.part_of(part)

    def wants(self, run: Run) -> bool:
        """Whether the run is needed now: `sweep` has no others."""
        return True

    def advance(self, states: list[RunState], launcher: Launcher) -> bool:
        """Make the look at which all runs have ended. Whether it asks for more."""

        def settled(state: RunState) -> bool:
            return state.state == "finished" or launcher.has_given_up(state)

        if launcher.signals or not all(settled(state) for state in states):
            return False
        jobs = launcher.scheduler.job_states()
        before = self.standing
        self.standing = self._stand(look_at_all(self.whole, self.runs_dir, jobs), settled)
        for text in news(self.whole, before, self.standing):
            launcher.progress.say(text)
        grown = self.standing.runs > before.runs
        self.sweep = self.standing.part_of(self._part)
        return grown

    def _stand(self, states: list[RunState], settled: Settled) -> Standing:
        folder = sweep_folder(self.whole, self.runs_dir)
        return stand(self.whole, states, settled, folder)


def seen(sweep: Sweep, runs_dir: Path) -> Standing:
    """Where a sweep with looks stands, for whoever starts nothing."""
    states = look_at_all(sweep, runs_dir)
    return stand(sweep, states, seems_over, sweep_folder(sweep, runs_dir))
