"""Draws one figure each (matplotlib without pyplot: no window, no global state).

Drawn to be read at about 800 pixels' width. What they share is `drawing`'s; captions, style and
files are `figures`' work.
"""

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis import columns
from harness.analysis.analyse import Analysis
from harness.analysis.columns import ITERATION, RUN, SEED, WINDOW_SIZE, WINDOW_START
from harness.analysis.results import by_arm
from harness.analysis.seconds import HEALTH, PHASES, at_evaluations
from harness.reporting.drawing import (
    BAND,
    GREY,
    WIDTH,
    Mark,
    arm_label,
    arm_marks,
    drawn_arms,
    hide_rest,
    legend_above,
    name_rows,
    panels,
    plot_curves,
    plot_interval,
    rows_figure,
    shown_arms,
    thousands,
    whole_numbers,
    wrapped,
)
from harness.text import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.analysis.results import Results
    from harness.analysis.samples import Samples

PHASE_COLOURS = ("#3B4B6B", "#8F9BB3", "#C9B458", "#A2543A", "#C8C8C8")


def differences(analysis: Analysis) -> Figure:
    """Forest plot of the paired differences to the reference, with the zero line."""
    marks, drawn = arm_marks(analysis), set(drawn_arms(analysis))
    shown = [c for c in analysis.compared if c.simultaneous.n and c.arm in drawn]
    figure, axes = rows_figure(len(shown), per_row=0.62)
    axes.axvline(0, color=GREY, linewidth=1.2)
    for y, comparison in enumerate(shown):
        if comparison.margin is not None:
            axes.barh(y, 2 * comparison.margin, left=-comparison.margin, color=BAND, height=1.0)
        mark = marks[comparison.arm]
        values, base = (analysis.by_name(c).after for c in (comparison.arm, comparison.reference))
        style = {"color": mark.colour, "solid_capstyle": "butt"}
        plot_interval(axes, y, comparison.simultaneous, linewidth=1.2, **style)
        plot_interval(axes, y, comparison.difference, linewidth=4.0, **style)
        axes.plot(
            *(comparison.difference.mean, y, mark.marker),
            color=mark.colour,
            markersize=9,
            markeredgecolor="white",
        )
        of_seeds = [values[seed] - base[seed] for seed in comparison.seeds]
        _plot_seeds(axes, y, of_seeds, mark, markersize=4, alpha=0.6)
    name_rows(axes, [arm_label(analysis, analysis.by_name(c.arm)) for c in shown])
    reference = analysis.sweep.reference_label
    axes.set_xlabel(wrapped(f"difference in {analysis.measure} to {reference}", 80))
    return figure


def _plot_seeds(axes: "Axes", y: float, values: list[float], mark: Mark, **style: Any) -> None:
    """A small mark for each seed, below the row's own."""
    axes.plot(
        *(values, [y + 0.28] * len(values), mark.marker),
        color=mark.colour,
        markeredgewidth=0,
        **style,
    )


def final(analysis: Analysis) -> Figure:
    """The measure after training: every seed, mean and interval, and the mean before."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    figure, axes = rows_figure(len(shown), per_row=0.62)
    for y, result in enumerate(shown):
        mark, change = marks[result.arm.name], result.rewards[analysis.measure]
        axes.plot(
            *(change.before.mean, y, mark.marker),
            markerfacecolor="white",
            markeredgecolor=mark.colour,
            markersize=7,
        )
        style = {"color": mark.colour, "solid_capstyle": "butt", "alpha": 0.55}
        plot_interval(axes, y, change.after, linewidth=4, **style)
        axes.plot(change.after.mean, y, "|", color=mark.colour, markersize=16, markeredgewidth=2.4)
        _plot_seeds(axes, y, list(result.after.values()), mark, markersize=5, alpha=0.8)
    name_rows(axes, [arm_label(analysis, result) for result in shown])
    axes.set_xlabel(f"{analysis.measure} on held-out prompts")
    return figure


def learning(analysis: Analysis, results: "Results") -> Figure:
    """The measure over iterations, network evaluations and seconds."""
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    panel = figure.subplot_mosaic([["iteration", "iteration"], ["evaluations", "seconds"]])
    costs = by_arm(analysis.sweep, at_evaluations(results))
    for x, label in (
        ("iteration", "iterations"),
        ("evaluations", "network evaluations"),
        ("seconds", f"seconds of {'a core' if analysis.core_time else 'training'}"),
    ):
        plot_curves(panel[x], analysis, costs, x, columns.reward(analysis.measure))
        panel[x].set_xlabel(label)
        panel[x].margins(x=0.02)
    whole_numbers(panel["iteration"])
    panel["evaluations"].xaxis.set_major_formatter(thousands)
    panel["evaluations"].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panel["seconds"].sharey(panel["evaluations"])
    for x in ("iteration", "evaluations"):
        panel[x].set_ylabel(analysis.measure)
    panel["seconds"].tick_params(labelleft=False)
    legend_above(figure, panel["iteration"])
    return figure


def heldout(analysis: Analysis, results: "Results") -> Figure:
    """Every reward on held-out prompts over iterations, one panel each."""
    rewards = (analysis.measure, *analysis.others)
    across = min(len(rewards), 3)
    rows = math.ceil(len(rewards) / across)
    figure, panel = panels(rows, across, 0.7 + 2.7 * rows, sharex=True)
    evaluations = by_arm(analysis.sweep, results.evaluations)
    for axes, reward in zip(panel.ravel(), rewards, strict=False):
        plot_curves(axes, analysis, evaluations, ITERATION, columns.reward(reward))
        training = [reward in result.trained for result in analysis.arms]
        kind = "trained" if all(training) else "trained in some" if any(training) else "held out"
        axes.set_title(f"{reward} ({kind})")
        axes.set_xlabel("iterations")
        axes.margins(x=0.03)
        whole_numbers(axes)
    hide_rest(panel, len(rewards))
    legend_above(figure, panel[0, 0])
    return figure


def window(analysis: Analysis, results: "Results") -> Figure:
    """The window's position and extent over iterations, one panel per arm."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    across = 1 if len(shown) < 3 else 2
    rows = max(1, math.ceil(len(shown) / across))
    figure, panel = panels(rows, across, 0.6 + 1.75 * rows, sharex=True, sharey=True)
    lines = by_arm(analysis.sweep, results.metrics[[*RUN, ITERATION, WINDOW_START, WINDOW_SIZE]])
    for axes, result in zip(panel.ravel(), shown, strict=False):
        mark, of_arm = marks[result.arm.name], lines[result.arm.name]
        one = of_arm[of_arm[SEED] == result.seeds[0]].sort_values(ITERATION)
        m = np.append(one[ITERATION], len(one))
        first = np.append(one[WINDOW_START], one[WINDOW_START].iloc[-1])
        last = first + int(one[WINDOW_SIZE].iloc[0]) - 1
        # Half a step on both sides, so that a window of one step is seen too.
        axes.fill_between(
            m, first - 0.5, last + 0.5, step="post", color=mark.colour, alpha=0.3, linewidth=0
        )
        axes.step(m, first, where="post", color=mark.colour, linewidth=1.8)
        axes.set_title(arm_label(analysis, result, 44), loc="left", color=mark.colour)
        axes.margins(x=0)
    steps = max(run.config.sampler.steps for run in analysis.sweep.runs)
    panel[0, 0].set_ylim(-0.7, steps - 0.3)
    for axes in panel[:, 0]:
        axes.set_ylabel("step")
    hide_rest(panel, len(shown))
    for column in panel.T:
        lowest = [axes for axes in column if axes.axison][-1]
        lowest.set_xlabel("iterations")
        whole_numbers(lowest)
        lowest.tick_params(labelbottom=True)
    return figure


def time(analysis: Analysis) -> Figure:
    """Seconds of each phase of an iteration, stacked; health apart, where it was measured."""
    shown = shown_arms(analysis)
    figure, axes = rows_figure(len(shown), per_row=0.5, rest=1.3)
    left = np.zeros(len(shown))
    for phase, colour in zip(PHASES, PHASE_COLOURS, strict=True):
        values = np.array([result.cost.phases[phase] for result in shown])
        axes.barh(range(len(shown)), values, left=left, color=colour, height=0.62, label=phase)
        left += values
    health = np.array([result.cost.phases[HEALTH] for result in shown])
    if (health > 0).any():
        axes.barh(
            range(len(shown)),
            health,
            left=left,
            color="white",
            edgecolor=GREY,
            linewidth=0.8,
            hatch="////",
            height=0.62,
            label="health (not counted)",
        )
        left += health
    for y, (result, end) in enumerate(zip(shown, left, strict=True)):
        axes.annotate(
            f"{seconds(result.cost.seconds.median)} s",
            (end, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, 1.12 * max(left, default=1.0))
    name_rows(axes, [arm_label(analysis, result) for result in shown])
    of_core = " (one core's time)" if analysis.core_time else ""
    axes.set_xlabel(f"seconds per iteration{of_core}")
    legend_above(figure, axes)
    return figure


def prompt_title(prompt: str) -> str:
    """A prompt above its picture, in as many lines as there is room for."""
    return wrapped(prompt, 22)


def pictures(samples: "Samples") -> Figure:
    """Before above after, one column per prompt, pixels enlarged without smoothing."""
    from PIL import Image

    count = len(samples.prompts)
    across = min(count, 4)
    blocks = math.ceil(count / across)
    figure, panel = panels(2 * blocks, across, blocks * 4.6)
    hide_rest(panel, 0)
    for k, prompt in enumerate(samples.prompts):
        block, column = divmod(k, across)
        for row, (name, pictures) in enumerate(
            (("before", samples.before), ("after", samples.after))
        ):
            axes = panel[2 * block + row, column]
            with Image.open(io.BytesIO(pictures[k])) as image:
                axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
            if column == 0:
                axes.text(
                    -0.06, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right"
                )
            if row == 0:
                axes.set_title(prompt_title(prompt), fontsize=10.5)
    return figure
