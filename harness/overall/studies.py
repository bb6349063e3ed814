"""Every study as the overall report needs it, read from the measurements kept with its report.

Reads no run folder: what a study's own report was made of lies beside it, so that the overall
report is the same from a fresh clone. Of the large tables it reads the columns that it uses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.analyse import Analysis, analyse
from harness.analysis.columns import is_reward
from harness.analysis.kept import has_frames, read_kept
from harness.analysis.results import Results
from harness.analysis.seconds import core_time
from harness.reporting.findings import others_compared
from harness.reporting.views.budget import EqualCost, at_equal_cost
from harness.reporting.views.view import answer, make_views
from harness.runs.source import MADE
from harness.stats import MIN_SEEDS
from harness.study.spec import Sweep

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("arm", "seed", "iteration")
WANTED = {
    "metrics": lambda c: c in (*KEYS, "evaluations_computed") or c.startswith("seconds_"),
    "evaluations": lambda c: c in (*KEYS, "seconds_total") or is_reward(c),
}
"""Columns of the large tables that questions, cost and times need; further views need all."""


@dataclass(frozen=True)
class Study:
    """A sweep with what its finished runs say and what they took."""

    sweep: Sweep
    analysis: Analysis
    machines: tuple[str, ...]
    runs: "pd.DataFrame"
    """One line per finished run: arm, seed, hash, seconds of training by the clock, seconds_core
    of one core (NaN where not known), seconds_evaluation, evaluations of the network:
    what the run computed itself, without its first `shared` iterations, which are a copy of another
    run's; all of them where it is `copied` as a whole."""
    answer: str
    """What answers the question where the comparison of the arms does not (`Sweep.answered_by`);
    empty where that does."""
    is_answered: bool
    """Whether there is what this is made from."""
    said: tuple[str, ...]
    """What the study's other views say, in one line each."""
    at_equal_cost: EqualCost
    of_other_rewards: str
    """Where arms train on different rewards: in which of the others they are significantly
    different from the reference. Empty elsewhere, and where in none."""

    @property
    def folder(self) -> str:
        """Of its report, beside the overall one."""
        return self.sweep.report_name

    @property
    def is_complete(self) -> bool:
        return not self.analysis.unfinished


def is_study(sweep: Sweep) -> bool:
    """Whether a sweep asks anything: one of fewer than three seeds is for trying things out."""
    return len(sweep.seeds) >= MIN_SEEDS


def has_measurements(sweep: Sweep, reports: Path) -> bool:
    folder = reports / sweep.report_name
    return has_frames(folder) and (folder / MADE).exists()


def read_study(sweep: Sweep, reports: Path) -> Study:
    """The study whose report lies in `reports`. ConfigError where that is another configuration's,
    RunError where it cannot be read."""
    results, probes = read_kept(sweep, reports / sweep.report_name, {} if sweep.views else WANTED)
    analysis = analyse(sweep, results)
    views = make_views(analysis, results, probes, sweep.views)
    others = [view for view in views if view.name != sweep.answered_by]
    return Study(
        sweep=sweep,
        analysis=analysis,
        machines=tuple(machine.words for machine in results.machines),
        runs=_cost_of_runs(results),
        answer=answer(views, sweep.answered_by),
        is_answered=len(others) < len(views),
        said=tuple(view.in_one_line for view in others),
        at_equal_cost=at_equal_cost(analysis, results),
        of_other_rewards=others_compared(analysis)
        if len({arm.trained for arm in analysis.arms}) > 1
        else "",
    )


def _cost_of_runs(results: Results) -> "pd.DataFrame":
    """See `Study.runs`."""
    import pandas as pd

    keys = ["arm", "seed"]
    finished = results.finished
    own = finished[[*keys, "hash", "iterations"]].assign(
        seconds=finished["seconds_total"],
        evaluations=finished["evaluations_computed"],
        shared=0,
        arm=finished["arm"].astype(str),
    )
    if "shared" in finished:
        own["shared"] = finished["shared"].fillna(0).astype(int)
        own["seconds"] -= finished["shared_seconds"].fillna(0.0)
    begins = own.set_index(keys)["shared"]

    def sums(frame: "pd.DataFrame", column: str, copied: bool, judged: bool) -> "pd.DataFrame":
        """What a column's copied lines sum up to by run, or those that it made itself."""
        lines = frame[[*keys, "iteration", column]].assign(arm=frame["arm"].astype(str))
        first = begins.reindex(pd.MultiIndex.from_frame(lines[keys])).fillna(0).to_numpy()
        # The evaluation after the last copied iteration was copied too.
        there = (lines["iteration"] < first) | (
            judged & (lines["iteration"] == first) & (first > 0)
        )
        lines[column] = lines[column].where(there == copied, 0)
        return lines.groupby(keys, sort=True)[column].sum().rename("sum").reset_index()

    def of_runs(part: "pd.DataFrame") -> "pd.Series[float]":
        return pd.merge(own[keys], part, on=keys, how="left")["sum"].set_axis(own.index)

    if own["shared"].any():
        copies = sums(results.metrics, "evaluations_computed", copied=True, judged=False)
        own["evaluations"] -= of_runs(copies).fillna(0)
    own["seconds_evaluation"] = of_runs(
        sums(results.evaluations, "seconds_total", False, judged=True)
    )
    own["seconds_core"] = (
        of_runs(sums(results.metrics, "seconds_cpu", copied=False, judged=False))
        if core_time(results)
        else float("nan")
    )
    return own.assign(copied=own["shared"] >= own.pop("iterations"))
