"""Every study as the overall report needs it, read from the measurements kept with its report.

Reads no run folder: what a study's own report was made of lies beside it, so that the overall
report is the same from a fresh clone. Of the large tables it reads the columns that it uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.analyse import Analysis, analyse
from harness.analysis.columns import RUN
from harness.analysis.kept import has_frames, read_kept
from harness.analysis.results import Results, begun
from harness.analysis.seconds import core_time
from harness.comparison import Comparison
from harness.reporting.views.budget import at_equal_cost
from harness.reporting.views.view import answer, make_views
from harness.runs.source import MADE
from harness.stats import MIN_SEEDS
from harness.study.spec import Sweep

if TYPE_CHECKING:
    import pandas as pd

KEYS = (*RUN, columns.ITERATION)
WANTED = {
    "metrics": lambda c: c in (*KEYS, columns.EVALUATIONS) or c.startswith(columns.seconds("")),
    "evaluations": lambda c: c in (*KEYS, columns.SECONDS) or columns.is_reward(c),
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
    at_equal_cost: Mapping[str, Mapping[str, Comparison]]
    """How the arms compare at equal `evaluations` and `seconds` (`budget.at_equal_cost`)."""

    @property
    def folder(self) -> str:
        """Of its report, beside the overall one."""
        return self.sweep.report_name


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
    results = begun(sweep, results)
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
    )


def _cost_of_runs(results: Results) -> "pd.DataFrame":
    """See `Study.runs`."""
    finished = results.finished
    runs = finished[[*RUN, columns.HASH, columns.ITERATIONS]].assign(
        seconds=finished[columns.SECONDS],
        evaluations=finished[columns.EVALUATIONS],
        shared=0,
        arm=finished[columns.ARM].astype(str),
    )
    if columns.SHARED in finished:
        runs["shared"] = finished[columns.SHARED].fillna(0).astype(int)
        runs["seconds"] -= finished[columns.SHARED_SECONDS].fillna(0.0)
    if runs["shared"].any():
        copied = _sums(results.metrics, columns.EVALUATIONS, runs, copied=True)
        runs["evaluations"] -= copied.fillna(0)
    runs["seconds_evaluation"] = _sums(results.evaluations, columns.SECONDS, runs, evaluations=True)
    runs["seconds_core"] = (
        _sums(results.metrics, columns.SECONDS_CPU, runs) if core_time(results) else float("nan")
    )
    return runs.assign(copied=runs["shared"] >= runs.pop(columns.ITERATIONS))


def _sums(
    frame: "pd.DataFrame",
    column: str,
    runs: "pd.DataFrame",
    copied: bool = False,
    evaluations: bool = False,
) -> "pd.Series[float]":
    """The sum of a column over each run's lines that are copies of another run's, or that are
    not."""
    import pandas as pd

    lines = frame[[*RUN, columns.ITERATION, column]].assign(arm=frame[columns.ARM].astype(str))
    lines = lines.merge(runs[[*RUN, "shared"]], on=RUN)
    # The evaluation after the last copied iteration was copied too.
    first = lines["shared"] + (evaluations & (lines["shared"] > 0))
    lines[column] = lines[column].where((lines[columns.ITERATION] < first) == copied, 0)
    sums = lines.groupby(RUN)[column].sum().rename("sum").reset_index()
    return pd.merge(runs[RUN], sums, on=RUN, how="left")["sum"].set_axis(runs.index)
