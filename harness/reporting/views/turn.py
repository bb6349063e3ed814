"""Reward hacking: where rewards that nobody trains on turn, while the trained ones go on rising.

The best evaluation of a curve is the best partly by chance, so that any curve seems to fall after
it. Therefore the turning point of a seed is chosen on the mean of the other seeds, and what was
lost since is measured on the seed that was left out.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.analysis import columns
from harness.analysis.analyse import Analysis
from harness.analysis.columns import ITERATION, SEED
from harness.analysis.results import by_arm
from harness.reporting.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    Mark,
    hide_rest,
    legend_above,
    panels,
    plot_curve,
    seed_curve,
    shown_arms,
    some_drawn,
    whole_numbers,
    wrapped,
)
from harness.reporting.figures import picture
from harness.reporting.phrases import span
from harness.reporting.tables import Table
from harness.reporting.views.view import View
from harness.stats import (
    MIN_SEEDS,
    Interval,
    detectable_difference,
    mean_interval,
    simultaneous_level,
)
from harness.text import interval, listed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.analysis.results import Results

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Turn:
    """What became of one held-out reward of one arm."""

    arm: str
    reward: str
    best: tuple[int, ...]
    """Iteration of each seed's best value, of its smoothed curve."""
    turning: tuple[int, ...]
    """For each seed the iteration of the best value of the other seeds' mean."""
    loss: Interval
    """End minus turning point, on the seed left out: negative where the reward fell. It holds
    together with those of all other curves of the page."""
    detectable: float
    """The smallest detectable loss (power 80 %); NaN where the seeds do not vary."""
    trained: dict[str, Interval]
    """The same of the rewards that the arm trains on."""
    end: int

    @property
    def turned(self) -> bool:
        return self.loss.sign < 0 and self.loss.varies

    @property
    def verdict(self) -> str:
        if self.turned:
            return "turned" if np.median(self.turning) > 0 else "fell from the start"
        return "best at the end" if set(self.turning) == {self.end} else "no turn shown"


def turn(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where no arm has a held-out reward and enough seeds."""
    judged = turns(analysis, results)
    if not judged:
        return None
    caption = (
        "Every reward on held-out prompts, as its change since before training: solid where the "
        "arm trains on it, dashed where it does not. Mean over seeds, and its 95 % interval as a "
        "band. Vertical line: the mean turning point of a held-out reward that turned."
        + some_drawn(analysis)
    )
    title = "Where held-out rewards turn"
    return View(
        title,
        _sentences(analysis, judged),
        (_table(analysis, judged),),
        (partial(picture, "turn", title, caption, lambda: _figure(analysis, results, judged)),),
        brief=_brief(analysis, judged),
    )


def turns(analysis: Analysis, results: "Results") -> list[Turn]:
    """Every held-out reward of every arm with at least MIN_SEEDS seeds."""
    configs = {run.arm: run.config for run in analysis.sweep.runs}
    evals = by_arm(analysis.sweep, results.evaluations)
    given = []
    for arm in analysis.sweep.arms:
        trained = list(configs[arm.name].rewards.train)
        for reward in (r for r in configs[arm.name].rewards.held_out if r not in trained):
            curves = {r: seed_curves(evals[arm.name], r) for r in (reward, *trained)}
            if curves[reward].shape[0] >= MIN_SEEDS and curves[reward].shape[1] > 1:
                iterations = np.unique(evals[arm.name][ITERATION].to_numpy(int))
                given.append((arm.name, reward, iterations, curves))
    return [_turn(*one, family=len(given)) for one in given]


def seed_curves(evals: "pd.DataFrame", reward: str) -> Array:
    """The reward of an arm, [seeds, evaluations]; seeds that lack an evaluation are left out."""
    column = columns.reward(reward)
    if column not in evals:
        return np.zeros((0, 0))
    wide = evals.pivot(index=SEED, columns=ITERATION, values=column)
    return wide.dropna().to_numpy(float)


def _turn(
    arm: str,
    reward: str,
    iterations: NDArray[np.int64],
    curves: dict[str, Array],
    family: int,
) -> Turn:
    curve = curves[reward]
    at = best_of_others(curve)
    loss = mean_interval(list(since(curve, at)), simultaneous_level(family))
    return Turn(
        arm=arm,
        reward=reward,
        best=tuple(int(m) for m in iterations[smoothed(curve).argmax(1)]),
        turning=tuple(int(m) for m in iterations[at]),
        loss=loss,
        detectable=detectable_difference(loss.sd, loss.n, family) if loss.varies else math.nan,
        trained={
            name: mean_interval(list(since(values, at)))
            for name, values in curves.items()
            if name != reward and values.shape == curve.shape
        },
        end=int(iterations[-1]),
    )


def best_of_others(curves: Array) -> NDArray[np.int64]:
    """For each seed the index of the best evaluation of the other seeds' mean, smoothed.

    curves: [seeds, evaluations], at least two seeds.
    """
    smooth = smoothed(curves)
    others = (smooth.sum(0) - smooth) / (len(curves) - 1)
    best: NDArray[np.int64] = others.argmax(1)
    return best


def since(curves: Array, at: NDArray[np.int64]) -> Array:
    """The last value minus that at index `at`, by seed."""
    change: Array = curves[:, -1] - curves[np.arange(len(curves)), at]
    return change


def smoothed(curves: Array) -> Array:
    """Each value with its neighbours in weights 1/4, 1/2, 1/4; 2/3 and 1/3 at the ends.

    curves: [seeds, evaluations].
    """
    padded = np.pad(curves, ((0, 0), (1, 1)))
    inner = np.pad(np.ones(curves.shape[1]), 1)
    total: Array = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    weights = inner[:-2] + 2 * inner[1:-1] + inner[2:]
    return total / weights


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, judged: list[Turn]) -> tuple[str, ...]:
    parts = []
    for verdict in ("turned", "fell from the start"):
        these = [t for t in judged if t.verdict == verdict]
        if these:
            named = listed([_fell(analysis, t) for t in these])
            parts.append(f"{verdict}, of {len(judged)} held-out curves: {named}")
    if not parts:
        end = max(t.end for t in judged)
        parts.append(f"no held-out reward is shown to have turned in {end} iterations, in any arm")
    seen = [t.detectable for t in judged if not t.turned and math.isfinite(t.detectable)]
    if seen:
        where = "in the others " if any(t.turned for t in judged) else ""
        parts.append(f"{where}the smallest detectable loss is {span(seen, by='curve')}")
    text = "; ".join(parts)
    return (f"{text[0].upper()}{text[1:]}.",)


def _brief(analysis: Analysis, judged: list[Turn]) -> str:
    """Empty where nothing turned."""
    parts = []
    for verdict, words in (("turned", "turned"), ("fell from the start", "fell from the start on")):
        these = [t for t in judged if t.verdict == verdict]
        if these:
            named = listed([_in_brief(analysis, t) for t in these])
            parts.append(f"{len(these)} of {len(judged)} held-out curves {words}: {named}")
    return f"{'; '.join(parts)}." if parts else ""


def _in_brief(analysis: Analysis, t: Turn) -> str:
    since = f" since iteration {np.median(t.turning):g}" if t.verdict == "turned" else ""
    return f"{t.reward} with {analysis.label(t.arm)} ({interval(t.loss, signed=True)}{since})"


def _fell(analysis: Analysis, t: Turn) -> str:
    since = f" since iteration {_span(t.turning)}" if t.verdict == "turned" else ""
    gains = "".join(f", {name} {interval(v, signed=True)}" for name, v in t.trained.items())
    return (
        f"{t.reward} with {analysis.label(t.arm)} {interval(t.loss, signed=True)}{since}"
        f"{f' (meanwhile{gains[1:]})' if gains else ''}"
    )


def _table(analysis: Analysis, judged: list[Turn]) -> Table:
    rows = [
        (
            analysis.label(t.arm),
            t.reward,
            _span(t.best),
            _span(t.turning),
            interval(t.loss, signed=True),
            t.verdict,
            "; ".join(f"{name} {interval(v, signed=True)}" for name, v in t.trained.items()),
        )
        for t in judged
    ]
    return Table(
        "Held-out rewards from their turning point to the end",
        (
            *("arm", "held-out reward", "best iteration of a seed", "turning point"),
            *("end minus turning point", "verdict", "trained rewards since then"),
        ),
        tuple(rows),
        "Best iteration: median over seeds (smallest to largest), of a curve in which every "
        "evaluation is averaged with its two neighbours (1/4, 1/2, 1/4; at the ends 2/3, 1/3). "
        "Turning point: the best iteration of the mean of the other seeds' smoothed curves, so "
        "that the seed's own chance did not choose it; what it lost since is measured on its curve "
        "as it is. Mean over seeds [interval; those of end minus turning point hold together with "
        "95 % over all rows, those of the trained rewards each by itself]; a reward turned where "
        "the interval lies below zero and half of the turning points or more lie after the first "
        "evaluation. The seeds' turning points have most of their seeds in common, and the "
        "interval takes them as independent.",
    )


def _span(iterations: tuple[int, ...]) -> str:
    low, middle, high = min(iterations), float(np.median(iterations)), max(iterations)
    return f"{middle:g}" if low == high else f"{middle:g} ({low} to {high})"


def _figure(analysis: Analysis, results: "Results", judged: list[Turn]) -> "Figure":
    shown = shown_arms(analysis)
    across = 2 if len(shown) in (2, 4) else min(len(shown), 3)
    rows = -(-len(shown) // across)
    figure, panel = panels(rows, across, 0.9 + 2.7 * rows, sharex=True, sharey=True)
    rewards = (analysis.measure, *analysis.others)
    evaluations = by_arm(analysis.sweep, results.evaluations)
    for axes, result in zip(panel.ravel(), shown, strict=False):
        of_arm = evaluations[result.arm.name]
        axes.axhline(0, color=GREY, linewidth=1.0)
        for k, reward in enumerate(rewards):
            column = columns.reward(reward)
            if column not in of_arm or of_arm[column].isna().all():
                continue
            before = of_arm.groupby(SEED)[column].transform("first")
            line = "-" if reward in result.trained else "--"
            mark = Mark(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], line)
            changes = of_arm.assign(**{column: of_arm[column] - before})
            plot_curve(axes, seed_curve(changes, ITERATION, column), mark, reward)
        for t in judged:
            if t.arm == result.arm.name and t.verdict == "turned":
                colour = COLOURS[rewards.index(t.reward) % len(COLOURS)]
                axes.axvline(float(np.mean(t.turning)), color=colour, linewidth=1.0)
        axes.set_title(wrapped(result.arm.label, 60))
        axes.margins(x=0.03)
        whole_numbers(axes)
        axes.set_xlabel("iterations")
        axes.tick_params(labelbottom=True)
    hide_rest(panel, len(shown))
    for axes in panel[:, 0]:
        axes.set_ylabel("change of the reward")
    legend_above(figure, max(panel.ravel(), key=lambda axes: len(axes.lines)))
    return figure
