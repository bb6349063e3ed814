"""Whether training stays stable: the gradient's norm, collapses, the largest fall of the reward."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis import columns
from harness.analysis.analyse import Analysis
from harness.analysis.columns import ARM, GRADIENT_NORM, ITERATION, RUN, WINDOW_START
from harness.analysis.results import by_arm, by_seed
from harness.reporting.drawing import (
    legend_above,
    log_heights,
    name_iterations_and_positions,
    panels,
    plot_curves,
    shown_arms,
    some_drawn,
)
from harness.reporting.figures import picture
from harness.reporting.phrases import span
from harness.reporting.tables import Table
from harness.reporting.views.turn import best_of_others, seed_curves, since
from harness.reporting.views.view import View
from harness.stats import (
    MIN_SEEDS,
    Interval,
    detectable_difference,
    mean_interval,
    ratio_interval,
    simultaneous_level,
)
from harness.text import NOTHING, interval, listed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from harness.analysis.results import Results

DIGITS = 4
PARTS = 30
"""Points per arm in the figure: medians over as many equal parts of a run."""
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
    halved: tuple[int, ...]
    """Seeds that lost more than half of their best gain; those of `below` are among them."""
    below: tuple[int, ...]
    """Seeds that ended below where they began."""
    failed: tuple[int, ...]
    """Seeds whose run failed; one whose numbers are not finite does."""
    since_best: Interval
    """End minus the best evaluation of the other seeds' mean, by seed; simultaneous over the arms.
    Unlike a seed's own best it was not chosen by that seed's chance."""
    detectable: float
    """The smallest detectable loss since then (power 80 %); NaN where not known."""
    fall: Interval
    """Largest fall of the measure from the best value until then."""


def stability(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where no run has finished."""
    if not any(result.seeds for result in analysis.arms):
        return None
    stabilities = judged(analysis, results)
    title = "How stable training is"
    caption = (
        "The gradient's norm before it is clipped, over iterations and over the position of the "
        "window: median of a run's iterations there, mean over seeds, and its 95 % interval as a "
        "band." + some_drawn(analysis)
    )
    sentences = _sentences(analysis, stabilities)
    return View(
        title,
        sentences,
        (_table(analysis, stabilities),),
        (partial(picture, "stability", title, caption, lambda: _figure(analysis, results)),),
        brief=" ".join(dict.fromkeys((sentences[0], sentences[-1]))),
    )


def judged(analysis: Analysis, results: "Results") -> list[Stability]:
    """Every arm with a finished or a failed run, in the sweep's order."""
    norms = by_arm(analysis.sweep, _ends(results.metrics))
    falls = by_arm(analysis.sweep, _falls(results.evaluations, columns.reward(analysis.measure)))
    evals = by_arm(analysis.sweep, results.evaluations)
    lost = {
        result.arm.name: _since_best(seed_curves(evals[result.arm.name], analysis.measure))
        for result in analysis.arms
    }
    family = max(1, sum(len(values) >= MIN_SEEDS for values in lost.values()))
    stabilities = []
    for result in analysis.arms:
        name = result.arm.name
        failed = [s for arm, s, state in analysis.unfinished if (arm, state) == (name, "failed")]
        if not result.seeds and not failed:
            continue
        begin, end = (by_seed(norms[name], part) for part in ("begin", "end"))
        of_arm = falls[name]
        # Negated, so that NaN (a measure that is not finite) counts as a loss.
        below = ~(of_arm["last"] >= of_arm["first"])
        halved = ~(of_arm["best"] - of_arm["last"] <= (of_arm["best"] - of_arm["first"]) / 2)
        loss = mean_interval(lost[name], simultaneous_level(family))
        stabilities.append(
            Stability(
                arm=name,
                seeds=len(result.seeds),
                begin=mean_interval(list(begin.values())),
                end=mean_interval(list(end.values())),
                growth=ratio_interval(end, begin),
                halved=tuple(int(seed) for seed in of_arm.loc[halved, columns.SEED]),
                below=tuple(int(seed) for seed in of_arm.loc[below, columns.SEED]),
                failed=tuple(failed),
                since_best=loss,
                detectable=detectable_difference(loss.sd, loss.n, family)
                if loss.varies
                else math.nan,
                fall=mean_interval(list(of_arm["fall"])),
            )
        )
    return stabilities


def _since_best(curves: "NDArray[np.float64]") -> list[float]:
    if len(curves) < MIN_SEEDS:
        return []
    return list(since(curves, best_of_others(curves)))


def _ends(metrics: "pd.DataFrame") -> "pd.DataFrame":
    """The gradient's median norm in the first and last tenth of every run."""
    if GRADIENT_NORM not in metrics:
        return metrics.iloc[:0].assign(begin=0.0, end=0.0)
    total = metrics.groupby(RUN, observed=True)[ITERATION].transform("max") + 1
    tenth = np.maximum(1, total // TENTH)
    early, late = metrics[ITERATION] < tenth, metrics[ITERATION] >= total - tenth
    begin, end = (
        metrics[rows].groupby(RUN, observed=True)[GRADIENT_NORM].median() for rows in (early, late)
    )
    return begin.to_frame("begin").join(end.rename("end")).reset_index()


def _falls(evals: "pd.DataFrame", column: str) -> "pd.DataFrame":
    """First, best and last value of every run, and its largest fall from the best until then."""
    lines = evals[[*RUN, column]]
    best = lines.groupby(RUN, observed=True)[column].cummax()
    lines = lines.assign(fall=best - lines[column])
    runs = lines.groupby(RUN, observed=True)
    # head and tail, as first and last would skip what is not finite.
    first, last = (rows.set_index(RUN)[column] for rows in (runs.head(1), runs.tail(1)))
    falls = runs["fall"].max().to_frame("fall")
    return falls.assign(first=first, last=last, best=runs[column].max()).reset_index()


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, stabilities: list[Stability]) -> tuple[str, ...]:
    sentences = [_counts(analysis, stabilities)]
    lost = [s for s in stabilities if s.since_best.sign < 0 and s.since_best.varies]
    rest = [s.detectable for s in stabilities if s not in lost and math.isfinite(s.detectable)]
    parts = []
    if lost:
        arms = [f"{analysis.label(s.arm)} ({interval(s.since_best, signed=True)})" for s in lost]
        parts.append(
            f"after the best evaluation of the other seeds it was lost again in {listed(arms)}"
        )
    if rest:
        where = "in the others" if lost else "after the best evaluation of the other seeds"
        parts.append(
            f"{where} no loss is shown; the smallest detectable loss is {span(rest, by='arm')}"
        )
    if parts:
        sentences.append(f"Of {analysis.measure}, {'; '.join(parts)}.")
    grown = sorted((s for s in stabilities if s.growth.known), key=lambda s: s.growth.mean)
    if grown:
        ends = [grown[0], *grown[1:][-1:]]
        growths = [f"{interval(s.growth, 2)} times in {analysis.label(s.arm)}" for s in ends]
        sentences.append(
            "From the first tenth of the iterations to the last, the gradient's norm became "
            f"{' to '.join(growths)}."
        )
    return tuple(sentences)


def _counts(analysis: Analysis, stabilities: list[Stability]) -> str:
    """How many runs lost what they had gained or failed, in one sentence."""
    runs = sum(s.seeds + len(s.failed) for s in stabilities)
    broken = [s for s in stabilities if s.halved or s.failed]
    if not broken:
        return (
            f"None of {runs} runs failed, ended below where it began in {analysis.measure}, or "
            "lost more than half of its best gain."
        )
    halved, below, failed = (
        sum(len(part) for part in parts)
        for parts in zip(*((s.halved, s.below, s.failed) for s in stabilities), strict=True)
    )
    text = (
        f"Of {runs} runs, {failed} failed and {halved} lost more than half of their best gain in "
        f"{analysis.measure}, of which {below} ended below where they began: "
        f"{listed([_broken(analysis, s) for s in broken])}"
    )
    short = [analysis.label(s.arm) for s in broken if s.failed and s.seeds]
    if short:
        text += f"; of {listed(short)} the surviving seeds alone are compared"
    return f"{text}."


def _broken(analysis: Analysis, s: Stability) -> str:
    runs, parts = s.seeds + len(s.failed), []
    if s.failed:
        parts.append(f"{len(s.failed)} failed")
    if s.halved:
        below = f", {len(s.below)} of them below its beginning" if s.below else ""
        parts.append(f"{len(s.halved)} lost it{below}")
    return f"{analysis.label(s.arm)} (of {runs}: {'; '.join(parts)})"


def _table(analysis: Analysis, stabilities: list[Stability]) -> Table:
    rows = [
        (
            analysis.label(s.arm),
            str(s.seeds + len(s.failed)),
            str(len(s.failed)) if s.failed else NOTHING,
            str(len(s.halved)) if s.halved else NOTHING,
            str(len(s.below)) if s.below else NOTHING,
            interval(s.since_best, signed=True),
            interval(s.fall),
            interval(s.begin, DIGITS),
            interval(s.end, DIGITS),
            interval(s.growth, 2),
        )
        for s in stabilities
    ]
    return Table(
        f"What was lost of {analysis.measure}, and the gradient's norm",
        (
            *("arm", "runs", "failed", "lost over half its gain", "ended below its beginning"),
            *("end minus best of the others", "largest fall, mean"),
            *("norm, first tenth", "norm, last tenth", "last / first"),
        ),
        tuple(rows),
        f"Runs: finished and failed ones; of an arm with failures all other columns are of the "
        "surviving seeds only, which may be the better ones. Lost over half its gain: from its "
        f"best evaluation of {analysis.measure} on held-out prompts to the end, more than half of "
        "what it had gained until the best; chance alone makes some runs do so. Ended below its "
        "beginning: these are among them; so is a run that ended not finite. End minus best of "
        "the others: from the best evaluation of the mean of the other seeds, smoothed, so that "
        "its own chance did not choose it, mean over seeds [interval that holds for all arms "
        "together with 95 %]. Largest fall: from the best evaluation until then; chance alone "
        "makes it more than zero. Norm: before it is clipped, median of the iterations of a run, "
        "mean over seeds [95 % interval]; last / first by seed, geometric mean.",
    )


def _figure(analysis: Analysis, results: "Results") -> "Figure":
    height = 3.6 + 0.12 * len(shown_arms(analysis))
    figure, panel = panels(1, 2, height, sharey=True)
    metrics = results.metrics[[*RUN, ITERATION, WINDOW_START, GRADIENT_NORM]]
    last = metrics.groupby(ARM, observed=True)[ITERATION].transform("max").astype(int)
    length = np.maximum(1, -(-(last + 1) // PARTS))
    middle = (metrics[ITERATION] // length) * length + (length - 1) / 2
    for axes, x in ((panel[0, 0], middle), (panel[0, 1], metrics[WINDOW_START])):
        runs = metrics.assign(x=x).groupby([*RUN, "x"], observed=True)
        medians = by_arm(analysis.sweep, runs[GRADIENT_NORM].median().reset_index())
        plot_curves(axes, analysis, medians, "x", GRADIENT_NORM, by="x")
        log_heights(axes)
    name_iterations_and_positions(*panel[0])
    panel[0, 0].set_ylabel("norm of the gradient")
    legend_above(figure, panel[0, 0])
    return figure
