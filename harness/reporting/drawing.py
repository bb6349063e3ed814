"""What figures have in common: the arms' colours, which arms are drawn, rows, legends, bands.

An arm has the same colour and marker everywhere (Okabe-Ito: told apart by colour-blind readers and,
by the marker, in grey).
"""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.analysis.analyse import Analysis, ArmResult
from harness.stats import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WIDTH = 8.0
"""Inches: with fonts of 10 points this is easily read at 800 pixels."""

MOST_ARMS = 24
"""A figure of more could not be read, and one of hundreds not be written."""

MOST_CHARACTERS = 140
"""Of a label or a prompt, about as many are drawn."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"


@dataclass(frozen=True)
class Mark:
    colour: str
    marker: str
    line: str


def arm_marks(analysis: Analysis) -> dict[str, Mark]:
    """Colour, marker and line of each arm, by its place in the sweep: the same in every figure."""
    lines = ("-", "--", ":", "-.")
    return {
        arm.name: Mark(
            COLOURS[i % len(COLOURS)],
            MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            lines[(i // len(COLOURS)) % len(lines)],
        )
        for i, arm in enumerate(analysis.sweep.arms)
    }


def shown_arms(analysis: Analysis) -> list[ArmResult]:
    """The results of `drawn_arms`."""
    drawn = set(drawn_arms(analysis))
    return [result for result in analysis.arms if result.arm.name in drawn]


def drawn_arms(analysis: Analysis) -> list[str]:
    """The arms in the figures, in the sweep's order: those with results, or, where they are more
    than MOST_ARMS, the reference and the first others."""
    found = [result.arm.name for result in analysis.arms if result.seeds]
    others = [name for name in found if name != analysis.sweep.reference]
    left_out = set(others[MOST_ARMS - (len(found) > len(others)) :])
    return [name for name in found if name not in left_out]


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


def rows_figure(count: int, per_row: float = 0.5, rest: float = 1.0) -> Figure:
    """A figure with a row for each of `count` arms."""
    return Figure(figsize=(WIDTH, rest + per_row * max(count, 2)), layout="constrained")


def name_rows(axes: "Axes", names: list[str]) -> None:
    """Names in place of numbers on the vertical axis, the first row on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def seed_curve(own: "pd.DataFrame", x: str, y: str) -> list[tuple[float, Any]]:
    """(mean of x, interval of y) per evaluation of an arm, over seeds."""
    if y not in own:
        return []
    curve = []
    for _, group in own.groupby("iteration", sort=True):
        found = mean_interval([float(v) for v in group[y]])
        if found.n:
            curve.append((float(group[x].mean()), found))
    return curve


def plot_curve(axes: "Axes", curve: list[tuple[float, Any]], mark: Mark, label: str) -> None:
    """Means over seeds as a line, their intervals as a band."""
    xs, ys = [x for x, _ in curve], [found.mean for _, found in curve]
    if label.startswith("_"):  # matplotlib would keep it out of the legend
        label = f" {label}"
    axes.plot(xs, ys, mark.line, marker=mark.marker, color=mark.colour, label=label)
    known = [(x, found.low, found.high) for x, found in curve if found.known]
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=mark.colour, alpha=0.13, linewidth=0)


def legend_above(figure: Figure, axes: "Axes") -> None:
    """One legend above all panels, where it can lie on nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = next((n for n in range(len(labels), 1, -1) if _width(labels, n) <= 98), 1)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _width(labels: list[str], columns: int) -> int:
    """Characters that a legend of so many columns takes, its handles and gaps counted."""
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
