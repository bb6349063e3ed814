"""What figures have in common: the arms' colours, which arms are drawn, rows, legends, bands.

An arm has the same colour and marker everywhere (Okabe-Ito: colour-blind readers can distinguish
them, and the markers do so in grey).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.analysis.analyse import Analysis, ArmResult
from harness.analysis.columns import ITERATION
from harness.stats import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

WIDTH = 8.0
"""Inches: with fonts of 10 points this is easily read at 800 pixels."""

MOST_ARMS = 24
"""A figure of more could not be read, and one of hundreds not be written."""

MOST_CHARACTERS = 140
"""Of a label or a prompt, about as many are drawn."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
BAND = "#DDE3EA"
"""What is worth nothing, or too small to be seen."""


@dataclass(frozen=True)
class Mark:
    colour: str
    marker: str
    line: str


def arm_marks(analysis: Analysis) -> dict[str, Mark]:
    """Colour, marker and line of each arm, by its place in the sweep: the same in every figure."""
    return marks([arm.name for arm in analysis.sweep.arms])


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """Colour, marker and line by name, each by its place among the names."""
    lines = ("-", "--", ":", "-.")
    return {
        name: Mark(
            COLOURS[i % len(COLOURS)],
            MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            lines[(i // len(COLOURS)) % len(lines)],
        )
        for i, name in enumerate(names)
    }


def shown_arms(analysis: Analysis) -> list[ArmResult]:
    """The results of `drawn_arms`."""
    drawn = set(drawn_arms(analysis))
    return [result for result in analysis.arms if result.arm.name in drawn]


def drawn_arms(analysis: Analysis) -> list[str]:
    """The arms in the figures, in the sweep's order: those with results, or, where they are more
    than MOST_ARMS, the reference and the first others."""
    finished = [result.arm.name for result in analysis.arms if result.seeds]
    others = [name for name in finished if name != analysis.sweep.reference]
    left_out = set(others[MOST_ARMS - (len(finished) > len(others)) :])
    return [name for name in finished if name not in left_out]


def some_drawn(analysis: Analysis) -> str:
    """The end of a caption where not all arms are drawn; empty where they are."""
    drawn = len(drawn_arms(analysis))
    if drawn == sum(bool(result.seeds) for result in analysis.arms):
        return ""
    return f" Of {len(analysis.arms)} arms, {drawn} are drawn; the tables have all."


def arm_label(analysis: Analysis, result: ArmResult, width: int = 28) -> str:
    """What a figure calls an arm, in lines of `width` characters."""
    reference = result.arm.name == analysis.sweep.reference
    text = f"{result.arm.label} (reference)" if reference else result.arm.label
    # A value stays in the line of its name.
    return wrapped(text.replace(" = ", "\xa0=\xa0"), width).replace("\xa0", " ")


def wrapped(text: str, width: int) -> str:
    """`text` in lines of `width` characters; an ellipsis stands for what no figure has room for."""
    lines = max(3, MOST_CHARACTERS // width)
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def panels(
    rows: int, columns: int, height: float, **shared: Any
) -> "tuple[Figure, NDArray[np.object_]]":
    """A figure as wide as the page, `height` inches high, and its axes, [rows, columns]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def rows_figure(count: int, per_row: float = 0.5, rest: float = 1.0) -> "tuple[Figure, Axes]":
    """A figure with a row for each of `count` arms."""
    figure, axes = panels(1, 1, rest + per_row * max(count, 2))
    return figure, axes[0, 0]


def hide_rest(axes: "NDArray[np.object_]", used: int) -> None:
    """Nothing is drawn in the panels after the first `used`."""
    for unused in axes.ravel()[used:]:
        unused.set_axis_off()


def name_iterations_and_positions(iterations: "Axes", positions: "Axes") -> None:
    """What a quantity is drawn over in two panels."""
    for axes, name in ((iterations, "iterations"), (positions, "window's first step")):
        axes.set_xlabel(name)
        axes.margins(x=0.03)
        whole_numbers(axes)


def name_rows(axes: "Axes", names: list[str]) -> None:
    """Names in place of numbers on the vertical axis, the first row on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def seed_curve(
    rows: "pd.DataFrame", x: str, y: str, by: str = ITERATION
) -> list[tuple[float, Interval]]:
    """(mean of x, interval of y) over the seeds of one arm, for each value of the column `by`."""
    if y not in rows:
        return []
    curve = []
    for _, group in rows.groupby(by, sort=True):
        mean = mean_interval([float(v) for v in group[y]])
        if mean.n:
            curve.append((float(group[x].mean()), mean))
    return curve


def plot_curve(
    axes: "Axes", curve: Sequence[tuple[float, Interval]], mark: Mark, label: str
) -> None:
    """Means over seeds as a line, their intervals as a band."""
    if label.startswith("_"):  # matplotlib would keep it out of the legend
        label = f" {label}"
    xs, ys = [x for x, _ in curve], [mean.mean for _, mean in curve]
    axes.plot(xs, ys, mark.line, marker=mark.marker, color=mark.colour, label=label)
    known = [(x, mean.low, mean.high) for x, mean in curve if mean.known]
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=mark.colour, alpha=0.13, linewidth=0)


def plot_curves(
    axes: "Axes",
    analysis: Analysis,
    rows: "Mapping[str, pd.DataFrame]",
    x: str,
    y: str,
    by: str = ITERATION,
) -> float:
    """The `seed_curve` of every arm that is drawn; the lowest mean of any. `rows`: by arm."""
    marks, lowest = arm_marks(analysis), math.inf
    for result in shown_arms(analysis):
        curve = seed_curve(rows[result.arm.name], x, y, by)
        plot_curve(axes, curve, marks[result.arm.name], arm_label(analysis, result))
        lowest = min([lowest, *(mean.mean for _, mean in curve)])
    return lowest


def plot_interval(axes: "Axes", y: float, interval: Interval, **style: Any) -> None:
    """A horizontal line from the interval's low to its high end; nothing where it has none."""
    if interval.known:
        axes.plot([interval.low, interval.high], [y, y], **style)


def legend_above(figure: Figure, axes: "Axes") -> None:
    """One legend above all panels, where it can lie on nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = next((n for n in range(len(labels), 1, -1) if _width(labels, n) <= 98), 1)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _width(labels: list[str], columns: int) -> int:
    """Characters that a legend of this many columns takes, its handles and gaps counted."""
    parts = np.array_split(labels, columns)  # as matplotlib fills a legend
    return sum(9 + max(len(line) for label in part for line in label.split("\n")) for part in parts)


def whole_numbers(axes: "Axes") -> None:
    """No half iterations on the axis of a short run."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def log_heights(axes: "Axes") -> None:
    """A logarithmic axis upwards, with its numbers written out at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def thousands(value: float, _: float = 0.0) -> str:
    """A large number in thousands (k), millions (M) or billions (G)."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
