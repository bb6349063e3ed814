"""Draws one figure each (matplotlib without pyplot: no window, no global state).

Drawn to be read at about 800 pixels' width. An arm has the same colour and marker everywhere
(Okabe-Ito: told apart by colour-blind readers and, by the marker, in grey). Captions, style and
files are `figures`' work.
"""

import io
import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis import HEALTH, PHASES, Analysis, ArmResult, by_arm, method_seconds
from harness.numbers import seconds
from harness.stats import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from harness.measurements import Samples
    from harness.results import Results

WIDTH = 8.0
"""Inches: with fonts of 10 points this is easily read at 800 pixels."""

MOST_ARMS = 24
"""A figure of more could not be read, and one of hundreds not be written."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PHASE_COLOURS = ("#3B4B6B", "#8F9BB3", "#C9B458", "#A2543A", "#C8C8C8")
GREY = "#555555"


@dataclass(frozen=True)
class _Mark:
    colour: str
    marker: str
    line: str


def _marks(analysis: Analysis) -> dict[str, _Mark]:
    """Colour, marker and line of each arm, by its place in the sweep: the same in every figure."""
    lines = ("-", "--", ":", "-.")
    return {
        arm.name: _Mark(
            COLOURS[i % len(COLOURS)],
            MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            lines[(i // len(COLOURS)) % len(lines)],
        )
        for i, arm in enumerate(analysis.sweep.arms)
    }


def _shown(analysis: Analysis) -> list[ArmResult]:
    drawn = set(drawn_arms(analysis))
    return [result for result in analysis.arms if result.arm.name in drawn]


def drawn_arms(analysis: Analysis) -> list[str]:
    """The arms in the figures, in the sweep's order: those with results, or, where they are more
    than MOST_ARMS, the reference and the first others."""
    found = [result.arm.name for result in analysis.arms if result.seeds]
    others = [name for name in found if name != analysis.sweep.reference]
    left_out = set(others[MOST_ARMS - (len(found) > len(others)) :])
    return [name for name in found if name not in left_out]


def _label(analysis: Analysis, result: ArmResult, width: int = 28) -> str:
    reference = result.arm.name == analysis.sweep.reference
    text = f"{result.arm.label} (reference)" if reference else result.arm.label
    return textwrap.fill(text, width)


def _rows(count: int, per_row: float = 0.5, rest: float = 1.0) -> Figure:
    return Figure(figsize=(WIDTH, rest + per_row * max(count, 2)), layout="constrained")


def _name_rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def differences(analysis: Analysis) -> Figure:
    """Forest plot of the paired differences to the reference, with the zero line."""
    marks = _marks(analysis)
    drawn = set(drawn_arms(analysis))
    shown = [c for c in analysis.compared if c.simultaneous.n and c.arm in drawn]
    figure = _rows(len(shown), per_row=0.62)
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1.2)
    for y, comparison in enumerate(shown):
        mark = marks[comparison.arm]
        values, base = analysis.by_name(comparison.arm).after, analysis.reference.after
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
    _name_rows(axes, [_label(analysis, analysis.by_name(c.arm)) for c in shown])
    reference = analysis.reference.arm.label
    axes.set_xlabel(textwrap.fill(f"difference in {analysis.measure} to {reference}", 80))
    return figure


def final(analysis: Analysis) -> Figure:
    """The measure after training: every seed, mean and interval, and the mean before."""
    marks, shown = _marks(analysis), _shown(analysis)
    figure = _rows(len(shown), per_row=0.62)
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
    _name_rows(axes, [_label(analysis, result) for result in shown])
    axes.set_xlabel(f"{analysis.measure} on held-out prompts")
    return figure


def learning(analysis: Analysis, results: "Results") -> Figure:
    """The measure over iterations, network evaluations and seconds."""
    marks, shown = _marks(analysis), _shown(analysis)
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    panels = figure.subplot_mosaic([["iteration", "iteration"], ["evaluations", "seconds"]])
    costs = by_arm(analysis.sweep, _costs(results))
    for panel, label in (
        ("iteration", "iterations"),
        ("evaluations", "network evaluations"),
        ("seconds", "seconds of training"),
    ):
        axes = panels[panel]
        for result in shown:
            curve = _curve(costs[result.arm.name], panel, f"reward_{analysis.measure}_mean")
            _plot_curve(axes, curve, marks[result.arm.name], _label(analysis, result))
        axes.set_xlabel(label)
        axes.margins(x=0.02)
    _whole_numbers(panels["iteration"])
    panels["evaluations"].xaxis.set_major_formatter(_thousands)
    panels["evaluations"].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    panels["seconds"].sharey(panels["evaluations"])
    for panel in ("iteration", "evaluations"):
        panels[panel].set_ylabel(analysis.measure)
    panels["seconds"].tick_params(labelleft=False)
    _legend(figure, panels["iteration"])
    return figure


def _costs(results: "Results") -> "pd.DataFrame":
    """The evaluations with what each run had spent until then: network evaluations and seconds."""
    import pandas as pd

    # A run's lines stand in the order of its iterations.
    spent = results.metrics[["arm", "seed", "iteration"]].assign(
        evaluations=results.metrics["evaluations_computed"], seconds=method_seconds(results.metrics)
    )
    columns = ["evaluations", "seconds"]
    spent[columns] = spent.groupby(["arm", "seed"], observed=True)[columns].cumsum()
    spent["iteration"] += 1  # what an evaluation counts is finished iterations
    evals = results.evals.drop(columns="seconds_total")  # of the evaluation itself
    spent = spent[spent["iteration"].isin(evals["iteration"].unique())]
    joined = pd.merge(evals, spent, on=["arm", "seed", "iteration"], how="left")
    before = joined["iteration"] == 0
    joined.loc[before, ["evaluations", "seconds"]] = 0.0
    return joined


def _curve(own: "pd.DataFrame", x: str, y: str) -> list[tuple[float, Any]]:
    """(mean of x, interval of y) per evaluation of an arm, over seeds."""
    if y not in own:
        return []
    curve = []
    for _, group in own.groupby("iteration", sort=True):
        found = mean_interval([float(v) for v in group[y]])
        if found.n:
            curve.append((float(group[x].mean()), found))
    return curve


def _plot_curve(axes: "Axes", curve: list[tuple[float, Any]], mark: _Mark, label: str) -> None:
    xs, ys = [x for x, _ in curve], [found.mean for _, found in curve]
    axes.plot(xs, ys, mark.line, marker=mark.marker, color=mark.colour, label=label)
    known = [(x, found.low, found.high) for x, found in curve if found.known]
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=mark.colour, alpha=0.13, linewidth=0)


def _legend(figure: Figure, axes: "Axes") -> None:
    """One legend above all panels, where it can lie on nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = next((n for n in range(len(labels), 1, -1) if _width(labels, n) <= 98), 1)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _width(labels: list[str], columns: int) -> int:
    """Characters that a legend of so many columns takes, its handles and gaps counted."""
    parts = np.array_split(labels, columns)  # as matplotlib fills a legend
    return sum(9 + max(len(line) for label in part for line in label.split("\n")) for part in parts)


def _whole_numbers(axes: "Axes") -> None:
    """No half iterations on the axis of a short run."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def _thousands(value: float, _: float) -> str:
    if value == 0:
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def heldout(analysis: Analysis, results: "Results") -> Figure:
    """Every reward on held-out prompts over iterations, one panel each."""
    marks, shown = _marks(analysis), _shown(analysis)
    rewards = (analysis.measure, *analysis.others)
    columns = min(len(rewards), 3)
    rows = math.ceil(len(rewards) / columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    evals = by_arm(analysis.sweep, results.evals)
    for axes, reward in zip(panels, rewards, strict=False):
        for result in shown:
            curve = _curve(evals[result.arm.name], "iteration", f"reward_{reward}_mean")
            _plot_curve(axes, curve, marks[result.arm.name], _label(analysis, result))
        kind = "trained" if reward in analysis.trained else "held out"
        axes.set_title(f"{reward} ({kind})")
        axes.set_xlabel("iterations")
        axes.margins(x=0.03)
        _whole_numbers(axes)
    for axes in panels[len(rewards) :]:
        axes.set_axis_off()
    _legend(figure, panels[0])
    return figure


def window(analysis: Analysis, results: "Results") -> Figure:
    """The window's position and extent over iterations, one panel per arm."""
    marks, shown = _marks(analysis), _shown(analysis)
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
        axes.set_title(_label(analysis, result, 44), loc="left", color=mark.colour)
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
        _whole_numbers(below[-1])
        below[-1].tick_params(labelbottom=True)
    return figure


def time(analysis: Analysis) -> Figure:
    """Seconds of each phase of an iteration, stacked; health apart, where it was measured."""
    shown = _shown(analysis)
    figure = _rows(len(shown), per_row=0.5, rest=1.3)
    axes = figure.subplots()
    left = np.zeros(len(shown))
    for phase, colour in zip(PHASES, PHASE_COLOURS, strict=True):
        values = np.array([result.phases[phase] for result in shown])
        axes.barh(range(len(shown)), values, left=left, color=colour, height=0.62, label=phase)
        left += values
    health = np.array([result.phases[HEALTH] for result in shown])
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
            f"{seconds(result.seconds.median)} s",
            (end, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, 1.12 * max(left, default=1.0))
    _name_rows(axes, [_label(analysis, result) for result in shown])
    axes.set_xlabel("seconds per iteration")
    _legend(figure, axes)
    return figure


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
                axes.set_title(textwrap.fill(prompt, 22), fontsize=10.5)
    return figure
