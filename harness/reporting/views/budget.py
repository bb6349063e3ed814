"""Equal budgets: the measure at equal iterations, equal network evaluations and equal seconds.

A setting whose iterations are cheap has done more of them by the time that another has spent the
same. So every run is read at the largest budget that all of them reached, and the arms are compared
there as they are after training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis import columns
from harness.analysis.analyse import Analysis
from harness.analysis.columns import ARM, ITERATION, RUN
from harness.analysis.seconds import at_evaluations
from harness.comparison import Comparison, compare
from harness.reporting.drawing import (
    GREY,
    arm_label,
    arm_marks,
    drawn_arms,
    name_rows,
    panels,
    plot_interval,
    some_drawn,
    thousands,
)
from harness.reporting.figures import Picture, picture
from harness.reporting.findings import not_timed_together
from harness.reporting.phrases import compared
from harness.reporting.tables import Table, difference_cell
from harness.reporting.views.view import View
from harness.text import NOTHING, seconds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.analysis.results import Results

SAME = 1e-9
"""Relative difference up to which two runs have made the same number of evaluations."""


@dataclass(frozen=True)
class Budget:
    """An equal amount that every run has spent, and how the arms compare there."""

    kind: str
    """`iteration`, `evaluations` or `seconds`."""
    amount: float
    """The most that every run spent."""
    comparisons: dict[str, Comparison]
    iterations: dict[str, float]
    """Mean iterations that an arm has done by then."""

    def words(self, analysis: Analysis) -> str:
        if self.kind == "iteration":
            return f"{self.amount:.0f} iterations"
        if self.kind == "evaluations":
            return f"{thousands(float(f'{self.amount:.3g}'))} evaluations"
        return f"{seconds(self.amount)} s{' of one core' if analysis.core_time else ''}"


def budget(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where there is nothing to compare or nothing was evaluated."""
    budgets = _budgets(analysis, results)
    if not budgets:
        return None
    return View(
        "At equal budgets",
        _sentences(analysis, budgets),
        (_table(analysis, budgets),),
        _pictures(analysis, budgets),
    )


def at_equal_cost(analysis: Analysis, results: "Results") -> dict[str, dict[str, Comparison]]:
    """How the arms compare at equal `evaluations` and equal `seconds`, where that is known;
    without evaluations where all iterations make as many."""
    budgets = _budgets(analysis, results)
    return {b.kind: b.comparisons for b in budgets if b.kind != "iteration"}


def _budgets(analysis: Analysis, results: "Results") -> list[Budget]:
    spent = at_evaluations(results)
    if not analysis.compared or not len(spent):
        return []
    kinds = ["iteration", "seconds"] if _alike(spent) else ["iteration", "evaluations", "seconds"]
    budgets = [_at_equal(analysis, spent, kind) for kind in kinds]
    return [b for b in budgets if any(c.simultaneous.n for c in b.comparisons.values())]


def _alike(spent: "pd.DataFrame") -> bool:
    """Whether all runs have made the same number of evaluations at each iteration."""
    made = spent.groupby(ITERATION)["evaluations"].agg(["min", "max"])
    return bool((made["max"] - made["min"] <= SAME * made["max"]).all())


def _at_equal(analysis: Analysis, spent: "pd.DataFrame", kind: str) -> Budget:
    measure = columns.reward(analysis.measure)
    amount = float(spent.groupby(RUN, observed=True)[kind].max().min())
    read = interpolated(spent, kind, amount, [measure, ITERATION])
    values: dict[str, dict[int, float]] = {arm.name: {} for arm in analysis.sweep.arms}
    for arm, seed, value in zip(*(read[c] for c in (*RUN, measure)), strict=True):
        if kind != "seconds" or analysis.timed_together(str(arm), int(seed)):
            values[str(arm)][int(seed)] = float(value)
    done = read.groupby(ARM, observed=True)[ITERATION].mean()
    return Budget(
        kind,
        amount,
        compare(values, analysis.sweep.references, analysis.margins),
        {str(arm): float(value) for arm, value in done.items()},
    )


def interpolated(
    spent: "pd.DataFrame", kind: str, amount: float, wanted: list[str]
) -> "pd.DataFrame":
    """The columns `wanted` of every run where it has spent `amount`, linear between evaluations.

    `spent`: rows by run in the order of the iterations. A run that never spent so much is left out;
    NaN where an evaluation next to that point is not finite.
    """
    within = spent[kind] <= amount
    below = spent[within].groupby(RUN, observed=True).tail(1)
    above = spent[spent[kind] >= amount].groupby(RUN, observed=True).head(1)
    pairs = below.merge(above, on=RUN, suffixes=("", "_above"))
    names = {c: c if c in RUN else f"{c}_above" for c in (kind, *wanted)}
    gap = (pairs[names[kind]] - pairs[kind]).to_numpy(float)
    part = np.divide(amount - pairs[kind], gap, out=np.zeros(len(pairs)), where=gap > 0)
    read = pairs[RUN].copy()
    for column in wanted:
        step = (pairs[names[column]] - pairs[column]) * part
        # Exactly at an evaluation, the next one counts for nothing, whatever it is.
        read[column] = pairs[column] + step.where(part > 0, 0.0)
    return read


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, budgets: list[Budget]) -> tuple[str, ...]:
    phrases = [f"at {b.words(analysis)} {compared(analysis, b.comparisons)}" for b in budgets]
    first = f"Read at the largest budget that every run reached: {'; '.join(phrases)}."
    if any(b.kind == "evaluations" for b in budgets):
        return (first,)
    return (
        first,
        "All runs make the same number of evaluations in each iteration: at equal evaluations "
        "stands what stands at equal iterations.",
    )


def _table(analysis: Analysis, budgets: list[Budget]) -> Table:
    columns = ["arm"]
    for b in budgets:
        columns.append(f"at {b.words(analysis)}")
        if b.kind != "iteration":
            columns.append("iterations by then")
    rows = []
    for result in analysis.arms:
        name = result.arm.name
        row = [analysis.name_in_table(name)]
        for b in budgets:
            row.append(difference_cell(b.comparisons[name]) if name in b.comparisons else NOTHING)
            if b.kind != "iteration":
                row.append(f"{b.iterations[name]:.1f}" if name in b.iterations else NOTHING)
        rows.append(tuple(row))
    return Table(
        f"{analysis.measure} at equal budgets, compared with {analysis.sweep.reference_label}",
        tuple(columns),
        tuple(rows),
        "Arm minus reference on held-out prompts, paired by seed, with the interval that holds for "
        "all arms of a column together with 95 %; better and worse stand where it excludes zero. "
        "Between two evaluations of a run its measure is interpolated linearly, which reads a "
        "curve that flattens too low there, so that an arm read between its evaluations stands a "
        "little too low beside one read at an evaluation. Seconds are those of training "
        f"({analysis.seconds_in_words}), without evaluation and health. "
        f"{not_timed_together(analysis)}".rstrip(),
    )


def _pictures(analysis: Analysis, budgets: list[Budget]) -> tuple[Callable[[], Picture], ...]:
    caption = (
        f"Difference in {analysis.measure} to {analysis.sweep.reference_label} at equal budgets, "
        "paired by seed, with the interval that holds for all arms together. Right of zero: better "
        "than the reference." + some_drawn(analysis)
    )
    title = "At equal budgets"
    return (partial(picture, "budget", title, caption, lambda: _figure(analysis, budgets)),)


def _figure(analysis: Analysis, budgets: list[Budget]) -> "Figure":
    marks = arm_marks(analysis)
    shown = [name for name in drawn_arms(analysis) if not analysis.is_reference(name)]
    height = 1.2 + 0.42 * max(len(shown), 2)
    figure, panel = panels(1, len(budgets), height, sharex=True, sharey=True)
    for axes, b in zip(panel[0], budgets, strict=True):
        axes.axvline(0, color=GREY, linewidth=1.2)
        for y, name in enumerate(shown):
            mark, difference = marks[name], b.comparisons[name].simultaneous
            plot_interval(axes, y, difference, color=mark.colour, linewidth=2.2)
            if difference.n:
                axes.plot(
                    *(difference.mean, y, mark.marker),
                    color=mark.colour,
                    markersize=8,
                    markeredgecolor="white",
                )
        axes.set_title(b.words(analysis))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    name_rows(panel[0, 0], [arm_label(analysis, analysis.by_name(name), 24) for name in shown])
    figure.supxlabel(f"difference in {analysis.measure}", fontsize=10.5)
    return figure
