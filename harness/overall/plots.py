"""The three figures of the overall report: questions, front, sensitivity."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.comparison import Comparison
from harness.overall.front import Point, front
from harness.overall.questions import Question
from harness.overall.studies import Study
from harness.reporting.drawing import (
    BAND,
    COLOURS,
    GREY,
    MOST_ARMS,
    name_rows,
    panels,
    plot_interval,
    rows_figure,
    thousands,
    wrapped,
)
from mixgrpo.text.escape import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LABELS = {"seconds": "seconds of training per run", "evaluations": "network evaluations per run"}


def questions(asked: Sequence[Question]) -> Figure:
    """The largest effect of every question with its interval, and what was detectable."""
    shown = [q for q in asked if q.effect is not None]
    figure, axes = rows_figure(len(shown), per_row=0.52)
    axes.axvline(0, color=GREY, linewidth=1.2)
    names = []
    for y, question in enumerate(shown):
        effect = question.effect
        assert effect is not None
        if math.isfinite(effect.detectable):
            axes.barh(y, 2 * effect.detectable, left=-effect.detectable, color=BAND, height=0.66)
        _effect(axes, y, effect, COLOURS[0], size=8)
        reference = question.study.analysis.sweep.reference_label
        pair = wrapped(f"{question.effect_label} vs {reference}", 40)
        names.append(f"{question.study.sweep.name}\n{pair}")
    name_rows(axes, names)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_xlabel("difference in held-out reward after training")
    return figure


def _effect(axes: "Axes", y: float, effect: Comparison, colour: str, size: float) -> None:
    """Mean and simultaneous interval: a full mark where it excludes zero, an open one else."""
    plot_interval(axes, y, effect.simultaneous, color=colour, linewidth=1.6)
    significant = effect.verdict in ("better", "worse")
    axes.plot(
        *(effect.simultaneous.mean, y, "o"),
        color=colour,
        markersize=size,
        markerfacecolor=colour if significant else "white",
        markeredgewidth=1.6,
    )


def pareto(points: Sequence[Point]) -> Figure:
    """Reward against both costs, with the front of the means as a step line."""
    figure, panel = panels(2, 1, 8.2 + 0.17 * len(points))
    studies = list(dict.fromkeys(point.study for point in points))
    for axes, cost in zip(panel[:, 0], ("seconds", "evaluations"), strict=True):
        best = front(points, cost)
        priced = [p for p in points if cost in p.cost]
        if best:
            right = 1.04 * max(p.cost[cost].mean for p in priced)
            xs = [*(p.cost[cost].mean for p in best), right]
            ys = [*(p.reward.mean for p in best), best[-1].reward.mean]
            axes.step(xs, ys, where="post", color=GREY, linewidth=1.2, linestyle="--", zorder=1)
        for number, point in enumerate(points, start=1):
            if cost not in point.cost:
                continue
            colour = COLOURS[studies.index(point.study) % len(COLOURS)]
            x, reward = point.cost[cost].mean, point.reward
            axes.plot([x, x], [reward.low, reward.high], color=colour, linewidth=1.3, alpha=0.7)
            axes.plot(
                x,
                reward.mean,
                "o",
                color=colour,
                markersize=8,
                markerfacecolor=colour if point in best else "white",
                markeredgewidth=1.5,
            )
            axes.annotate(
                str(number),
                (x, reward.mean),
                xytext=(6, 4) if number % 2 else (-6, -11),
                ha="left" if number % 2 else "right",
                textcoords="offset points",
                fontsize=8.5,
                color=colour,
            )
        axes.set_xlabel(LABELS[cost])
        axes.set_ylabel("held-out reward")
    for axes, form in zip(panel[:, 0], ("{x:g}", thousands), strict=True):
        axes.set_xscale("log")  # the methods' costs are a factor apart, their variants' are not
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(form)
        axes.xaxis.set_minor_formatter(NullFormatter())
    _key(figure, points, studies)
    return figure


def _key(figure: Figure, points: Sequence[Point], studies: list[str]) -> None:
    """The numbers' meaning below the panels, in the colours of their studies."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[studies.index(p.study) % len(COLOURS)], marker="o", ls="")
        for p in points
    ]
    labels = [shortened(f"{k}  {p.label}", 52) for k, p in enumerate(points, start=1)]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)


def sensitivity(studies: Sequence[Study]) -> Figure:
    """Every arm's difference to its study's reference, study by study, on one axis."""
    groups = [(study, sensitive_arms(study)) for study in studies]
    rows = sum(len(arms) + 1 for _, arms in groups)
    figure, axes = rows_figure(max(rows, 6), per_row=0.27)
    names, y = [], 0
    heads = []
    for index, (study, arms) in enumerate(groups):
        colour = COLOURS[index % (len(COLOURS) - 1)]
        noise = seed_noise(study)
        if math.isfinite(noise):
            axes.fill_between(
                [-noise, noise], y - 0.5, y + len(arms) + 0.5, color=BAND, linewidth=0, zorder=0
            )
        heads.append(y)
        names.append(f"{study.sweep.name}: against {study.sweep.reference_label}")
        for offset, effect in enumerate(arms, start=1):
            _effect(axes, y + offset, effect, colour, size=6)
            names.append(study.analysis.label(effect.arm))
        y += len(arms) + 1
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    name_rows(axes, [textwrap.shorten(name, 56) for name in names])
    axes.tick_params(axis="y", labelsize=8.5)
    for head in heads:
        axes.get_yticklabels()[head].set_fontweight("bold")
        axes.axhline(head - 0.5, color="#BBBBBB", linewidth=0.7)
    axes.set_xlabel("difference in held-out reward after training")
    axes.xaxis.set_major_locator(MaxNLocator(7))
    return figure


def sensitive_arms(study: Study) -> list[Comparison]:
    """Comparisons of arms that differ from the reference in settings of the method.

    None where arms stand on bases of their own (methods), train on other rewards or are other
    models: those are no hyper-parameters.
    """
    arms = {arm.name: arm for arm in study.sweep.arms}
    if any(arm.base is not None for arm in arms.values()):
        return []
    comparisons = []
    for comparison in study.analysis.compared:
        own, base = (arms[name].settings for name in (comparison.arm, comparison.reference))
        differing = {key for key in {*own, *base} if own.get(key) != base.get(key)}
        other = any(key.startswith(("rewards.", "model.")) for key in differing)
        if comparison.simultaneous.n and not other:
            comparisons.append(comparison)
    return comparisons[:MOST_ARMS]


def seed_noise(study: Study) -> float:
    """Standard deviation over seeds of a run's reward after training, pooled over the arms."""
    values = [list(r.after.values()) for r in study.analysis.arms if len(r.after) > 1]
    freedom = sum(len(v) - 1 for v in values)
    if not freedom:
        return math.nan
    return math.sqrt(sum((len(v) - 1) * float(np.var(v, ddof=1)) for v in values) / freedom)
