"""Whether training stays stable: the gradient's norm, collapses, the largest fall of the reward."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis import Analysis, by_arm
from harness.drawing import (
    WIDTH,
    arm_label,
    arm_marks,
    legend_above,
    plot_curve,
    seed_curve,
    shown_arms,
    some_drawn,
    whole_numbers,
)
from harness.figures import picture
from harness.numbers import NOTHING, interval, number
from harness.stats import Interval, mean_interval, ratio_interval
from harness.tables import Table
from harness.views import View
from harness.views.words import label, listed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.results import Results

DIGITS = 4
PARTS = 30
"""The figure has so many points per arm: medians over as many parts of a run."""
TENTH = 10


@dataclass(frozen=True)
class Stability:
    """One arm's runs."""

    arm: str
    seeds: int
    begin: Interval
    """The gradient's norm: median over the first tenth of a run's iterations."""
    end: Interval
    growth: Interval
    """Last tenth over first, by seed: geometric mean."""
    collapsed: tuple[int, ...]
    """Seeds that ended below where they began, by more than chance."""
    failed: tuple[int, ...]
    """Seeds whose run failed; one whose numbers are not finite does."""
    fall: Interval
    """Largest fall of the measure from the best value until then."""
    worst: float


def stability(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where no run has finished."""
    found = judged(analysis, results)
    if not found:
        return None
    title = "How stable training is"
    caption = (
        "The gradient's norm before it is clipped, over iterations and over the position of the "
        "window: median of a run's iterations there, mean over seeds, and its 95 % interval as a "
        "band." + some_drawn(analysis)
    )
    return View(
        title,
        _sentences(analysis, found),
        (_table(analysis, found),),
        (picture("stability", title, caption, lambda: _figure(analysis, results)),),
    )


def judged(analysis: Analysis, results: "Results") -> list[Stability]:
    """Every arm with a finished run, in the sweep's order."""
    norms = by_arm(analysis.sweep, _ends(results.metrics))
    falls = by_arm(analysis.sweep, _falls(results.evals, f"reward_{analysis.measure}_mean"))
    found = []
    for result in analysis.arms:
        name = result.arm.name
        own, lost = norms[name], falls[name]
        if not result.seeds or not len(own):
            continue
        begin, end = (_by_seed(own, part) for part in ("begin", "end"))
        change = result.rewards[analysis.measure]
        chance = (change.before.high - change.before.low) / 2
        below = lost["first"] - lost["last"]
        # Not the other way round, so that NaN, a measure that is not finite, counts.
        collapsed = lost.loc[~(below <= (chance if math.isfinite(chance) else 0.0)), "seed"]
        found.append(
            Stability(
                arm=name,
                seeds=len(result.seeds),
                begin=mean_interval(list(begin.values())),
                end=mean_interval(list(end.values())),
                growth=ratio_interval(end, begin),
                collapsed=tuple(int(seed) for seed in collapsed),
                failed=tuple(
                    seed for a, seed, state in analysis.unfinished if (a, state) == (name, "failed")
                ),
                fall=mean_interval(list(lost["fall"])),
                worst=float(lost["fall"].max()),
            )
        )
    return found


def _ends(metrics: "pd.DataFrame") -> "pd.DataFrame":
    """The gradient's median norm in the first and last tenth of every run."""
    if "grad_norm" not in metrics:
        return metrics.iloc[:0]
    runs = metrics.groupby(["arm", "seed"], observed=True)
    total = runs["iteration"].transform("max") + 1
    tenth = np.maximum(1, total // TENTH)
    run = ["arm", "seed"]
    early, late = metrics["iteration"] < tenth, metrics["iteration"] >= total - tenth
    begin, end = (
        metrics[rows].groupby(run, observed=True)["grad_norm"].median() for rows in (early, late)
    )
    return begin.to_frame("begin").join(end.rename("end")).reset_index()


def _falls(evals: "pd.DataFrame", column: str) -> "pd.DataFrame":
    """First and last value of every run, and its largest fall from the best until then."""
    lines = evals[["arm", "seed", column]]
    run = ["arm", "seed"]
    best = lines.groupby(run, observed=True)[column].cummax()
    lines = lines.assign(fall=best - lines[column])
    runs = lines.groupby(run, observed=True)
    # head and tail, as first and last would skip what is not finite.
    first, last = (rows.set_index(run)[column] for rows in (runs.head(1), runs.tail(1)))
    falls = runs["fall"].max().to_frame("fall")
    return falls.assign(first=first, last=last).reset_index()


def _by_seed(own: "pd.DataFrame", column: str) -> dict[int, float]:
    return {int(s): float(v) for s, v in zip(own["seed"], own[column], strict=True)}


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, found: list[Stability]) -> tuple[str, ...]:
    broken = [s for s in found if s.collapsed or s.failed]
    if not broken:
        first = f"None of {sum(s.seeds for s in found)} runs collapsed or failed."
    else:
        parts = [f"{label(analysis, s.arm)} {_broken(s)}" for s in broken]
        first = f"Runs that collapsed or failed: {listed(parts)}."
    worst = max(found, key=lambda s: s.worst)
    sentences = [
        first,
        f"The largest fall of {analysis.measure} from its best was {number(worst.worst)}, in "
        f"{label(analysis, worst.arm)}.",
    ]
    grown = sorted((s for s in found if s.growth.known), key=lambda s: s.growth.mean)
    if grown:
        ends = [grown[0], *grown[1:][-1:]]
        parts = [f"{interval(s.growth, 2)} times in {label(analysis, s.arm)}" for s in ends]
        sentences.append(
            "From the first tenth of the iterations to the last, the gradient's norm became "
            f"{' to '.join(parts)}."
        )
    return tuple(sentences)


def _broken(s: Stability) -> str:
    said = f"{len(s.collapsed)} of {s.seeds + len(s.failed)}"
    return said + (f" and {len(s.failed)} failed" if s.failed else "")


def _table(analysis: Analysis, found: list[Stability]) -> Table:
    rows = [
        (
            label(analysis, s.arm),
            interval(s.begin, DIGITS),
            interval(s.end, DIGITS),
            interval(s.growth, 2),
            f"{len(s.collapsed)} of {s.seeds}",
            str(len(s.failed)) if s.failed else NOTHING,
            interval(s.fall),
            number(s.worst),
        )
        for s in found
    ]
    return Table(
        f"The gradient's norm and the falls of {analysis.measure}",
        (
            *("arm", "norm, first tenth", "norm, last tenth", "last / first"),
            *("collapsed", "failed", "largest fall, mean", "worst seed"),
        ),
        tuple(rows),
        "Norm: before it is clipped, median of the iterations of a run, mean over seeds [95 % "
        "interval]; last / first by seed, geometric mean. Collapsed: "
        f"{analysis.measure} on held-out prompts ended below its value before training by more "
        "than half the width of the arm's interval of that value, or was not finite. Largest "
        "fall: from the best evaluation until then; chance alone makes it more than zero.",
    )


def _figure(analysis: Analysis, results: "Results") -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    marks, shown = arm_marks(analysis), shown_arms(analysis)
    figure = Figure(figsize=(WIDTH, 3.6 + 0.12 * len(shown)), layout="constrained")
    over_iterations, over_places = figure.subplots(1, 2, sharey=True)
    columns = ["arm", "seed", "iteration", "window_start", "grad_norm"]
    own = by_arm(analysis.sweep, results.metrics[columns])
    for result in shown:
        lines, mark = own[result.arm.name], marks[result.arm.name]
        length = max(1, -(-(int(lines["iteration"].max()) + 1) // PARTS))
        name = arm_label(analysis, result)
        middle = (lines["iteration"] // length) * length + (length - 1) / 2
        for axes, x in ((over_iterations, middle), (over_places, lines["window_start"])):
            medians = lines.groupby([x.rename("x"), "seed"])["grad_norm"].median()
            # The curve is taken by its column `iteration`.
            curve = medians.reset_index().rename(columns={"x": "iteration"})
            plot_curve(axes, seed_curve(curve, "iteration", "grad_norm"), mark, name)
    for axes, name in ((over_iterations, "iterations"), (over_places, "window's first step")):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(name)
        axes.margins(x=0.03)
        whole_numbers(axes)
    over_iterations.set_ylabel("norm of the gradient")
    legend_above(figure, over_iterations)
    return figure
