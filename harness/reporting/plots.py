"""Draws one figure each (matplotlib without pyplot: no window, no global state).

Drawn to be read at about 800 pixels' width. What they share is `drawing`'s; captions, style and
files are `figures`' work.
"""

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.analyse import Analysis
from harness.analysis.results import by_arm
from harness.analysis.seconds import HEALTH, PHASES, at_evaluations
from harness.reporting.drawing import (
    GREY,
    WIDTH,
    arm_label,
    arm_marks,
    drawn_arms,
    legend_above,
    name_rows,
    plot_curve,
    rows_figure,
    seed_curve,
    shown_arms,
    thousands,
    whole_numbers,
    wrapped,
)
from harness.text import seconds

if TYPE_CHECKING:
    from harness.analysis.results import Results
    from harness.analysis.samples import Samples

PHASE_COLOURS = ("#3B4B6B", "#8F9BB3", "#C9B458", "#A2543A", "#C8C8C8")


def differences(analysis: Analysis) -> Figure:
    """Forest plot of the paired differences to the reference, with the zero line."""
    marks = arm_marks(analysis)
    drawn = set(drawn_arms(analysis))
    shown = [c for c in analysis.compared if c.simultaneous.n and c.arm in drawn]
    figure = rows_figure(len(shown), per_row=0.62)
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1.2)
    for y, comparison in enumerate(shown):
        mark = marks[comparison.arm]
        values, base = (analysis.by_name(c).after for c in (comparison.arm, comparison.reference))
        for interval, width in ((comparison.simultaneous, 1.2), (comparison.difference, 4.0)):
            if interval.known:
                axes.plot(
                    [interval.low, interval.high],
                    [y, y],
                    color=mark.colour,
                    linewidth=width,
                    solid_capstyle="butt",
                )
        axes.plot(
            comparison.difference.mean,
            y,
            mark.marker,
            color=mark.colour,
            markersize=9,
            markeredgecolor="white",
        )
        axes.plot(
            [values[seed] - base[seed] for seed in comparison.seeds],
            [y + 0.28] * len(comparison.seeds),
            mark.marker,
            color=mark.colour,
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
        )
    name_rows(axes, [arm_label(analysis, analysis.by_name(c.arm)) for c in shown])
    reference = analysis.sweep.reference_label
    axes.set_xlabel(wrapped(f"difference in {analysis.measure} to {reference}", 80))
    return figure


def final(analysis: Analysis) -> Figure:
    """The measure after training: every seed, mean and interval, and the mean before."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    figure = rows_figure(len(shown), per_row=0.62)
    axes = figure.subplots()
    for y, result in enumerate(shown):
        mark, change = marks[result.arm.name], result.rewards[analysis.measure]
        axes.plot(
            change.before.mean,
            y,
            mark.marker,
            markerfacecolor="white",
            markeredgecolor=mark.colour,
            markersize=7,
        )
        if change.after.known:
            axes.plot(
                [change.after.low, change.after.high],
                [y, y],
                color=mark.colour,
                linewidth=4,
                solid_capstyle="butt",
                alpha=0.55,
            )
        axes.plot(change.after.mean, y, "|", color=mark.colour, markersize=16, markeredgewidth=2.4)
        values = list(result.after.values())
        axes.plot(
            values,
            [y + 0.28] * len(values),
            mark.marker,
            color=mark.colour,
            markersize=5,
            alpha=0.8,
            markeredgewidth=0,
        )
    name_rows(axes, [arm_label(analysis, result) for result in shown])
    axes.set_xlabel(f"{analysis.measure} on held-out prompts")
    return figure


def learning(analysis: Analysis, results: "Results") -> Figure:
    """The measure over iterations, network evaluations and seconds."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    panels = figure.subplot_mosaic([["iteration", "iteration"], ["evaluations", "seconds"]])
    costs = by_arm(analysis.sweep, at_evaluations(results))
    for panel, label in (
        ("iteration", "iterations"),
        ("evaluations", "network evaluations"),
        ("seconds", f"seconds of {'a core' if analysis.core_time else 'training'}"),
    ):
        axes = panels[panel]
        for result in shown:
            curve = seed_curve(costs[result.arm.name], panel, f"reward_{analysis.measure}_mean")
            plot_curve(axes, curve, marks[result.arm.name], arm_label(analysis, result))
        axes.set_xlabel(label)
        axes.margins(x=0.02)
    whole_numbers(panels["iteration"])
    panels["evaluations"].xaxis.set_major_formatter(thousands)
    panels["evaluations"].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panels["seconds"].sharey(panels["evaluations"])
    for panel in ("iteration", "evaluations"):
        panels[panel].set_ylabel(analysis.measure)
    panels["seconds"].tick_params(labelleft=False)
    legend_above(figure, panels["iteration"])
    return figure


def heldout(analysis: Analysis, results: "Results") -> Figure:
    """Every reward on held-out prompts over iterations, one panel each."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    rewards = (analysis.measure, *analysis.others)
    columns = min(len(rewards), 3)
    rows = math.ceil(len(rewards) / columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    evals = by_arm(analysis.sweep, results.evaluations)
    for axes, reward in zip(panels, rewards, strict=False):
        for result in shown:
            curve = seed_curve(evals[result.arm.name], "iteration", f"reward_{reward}_mean")
            plot_curve(axes, curve, marks[result.arm.name], arm_label(analysis, result))
        training = [reward in result.trained for result in analysis.arms]
        kind = "trained" if all(training) else "trained in some" if any(training) else "held out"
        axes.set_title(f"{reward} ({kind})")
        axes.set_xlabel("iterations")
        axes.margins(x=0.03)
        whole_numbers(axes)
    for axes in panels[len(rewards) :]:
        axes.set_axis_off()
    legend_above(figure, panels[0])
    return figure


def window(analysis: Analysis, results: "Results") -> Figure:
    """The window's position and extent over iterations, one panel per arm."""
    marks, shown = arm_marks(analysis), shown_arms(analysis)
    columns = 1 if len(shown) < 3 else 2
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(WIDTH, 0.6 + 1.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    needed = ["iteration", "window_start", "window_size"]
    lines = by_arm(analysis.sweep, results.metrics[["arm", "seed", *needed]])
    for axes, result in zip(panels.ravel(), shown, strict=False):
        mark, own = marks[result.arm.name], lines[result.arm.name]
        own = own[own["seed"] == result.seeds[0]].sort_values("iteration")
        m = np.append(own["iteration"], len(own))
        first = np.append(own["window_start"], own["window_start"].iloc[-1])
        last = first + int(own["window_size"].iloc[0]) - 1
        # Half a step on both sides, so that a window of one step is seen too.
        axes.fill_between(
            m, first - 0.5, last + 0.5, step="post", color=mark.colour, alpha=0.3, linewidth=0
        )
        axes.step(m, first, where="post", color=mark.colour, linewidth=1.8)
        axes.set_title(arm_label(analysis, result, 44), loc="left", color=mark.colour)
        axes.margins(x=0)
    steps = max(run.config.sampler.steps for run in analysis.sweep.runs)
    panels[0, 0].set_ylim(-0.7, steps - 0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("step")
    for axes in panels.ravel()[len(shown) :]:
        axes.set_axis_off()
    for index in range(columns):
        below = [axes for axes in panels[:, index] if axes.axison]
        below[-1].set_xlabel("iterations")
        whole_numbers(below[-1])
        below[-1].tick_params(labelbottom=True)
    return figure


def time(analysis: Analysis) -> Figure:
    """Seconds of each phase of an iteration, stacked; health apart, where it was measured."""
    shown = shown_arms(analysis)
    figure = rows_figure(len(shown), per_row=0.5, rest=1.3)
    axes = figure.subplots()
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
    columns = min(count, 4)
    blocks = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, blocks * 4.6), layout="constrained")
    panels = figure.subplots(2 * blocks, columns, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    for k, prompt in enumerate(samples.prompts):
        block, column = divmod(k, columns)
        for row, (name, pictures) in enumerate(
            (("before", samples.before), ("after", samples.after))
        ):
            axes = panels[2 * block + row, column]
            with Image.open(io.BytesIO(pictures[k])) as image:
                axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
            if column == 0:
                axes.text(
                    -0.06, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right"
                )
            if row == 0:
                axes.set_title(prompt_title(prompt), fontsize=10.5)
    return figure
