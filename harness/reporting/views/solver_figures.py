"""The rows of the solver's error, and its two figures (`solver_error` says what they answer)."""

from typing import TYPE_CHECKING

from harness.reporting.drawing import (
    COLOURS,
    MARKERS,
    legend_above,
    log_heights,
    panels,
    whole_numbers,
)
from harness.stats import Interval, geometric

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOWS = {"ode": "by the ODE", "sde": "random"}


def over_seeds(rows: "pd.DataFrame") -> tuple[float, Interval]:
    """Evaluations saved and the error over seeds, each seed by the mean of its rows."""
    means = rows.groupby("seed")[["saved", "error"]].mean()
    return float(means["saved"].mean()), geometric(list(means["error"]))


def middle_share(by_seed: "pd.DataFrame") -> float:
    """The share nearest to the paper's 0.4."""
    shares = sorted(r for r in by_seed["ratio"].unique() if r < 1)
    return float(min(shares, key=lambda r: abs(r - 0.4)))


def pick(by_seed: "pd.DataFrame", **wanted: object) -> "pd.DataFrame":
    for key, value in wanted.items():
        by_seed = by_seed[by_seed[key] == value]
    return by_seed


def solvers(by_seed: "pd.DataFrame", position: str) -> list[tuple[str, str]]:
    """(order, history) of the solvers that were measured before or after the window."""
    thinned = by_seed[(by_seed["place"] == position) & (by_seed["ratio"] < 1)]
    kinds = set(zip(map(str, thinned["order"]), map(str, thinned["history"]), strict=True))
    return sorted(kinds)


def by_evaluations_saved(by_seed: "pd.DataFrame") -> "Figure":
    figure, panel = panels(2, 2, 6.8, sharey=True)
    images = pick(by_seed, model="trained", at="image")
    for of_window, (window, taken) in zip(panel, WINDOWS.items(), strict=True):
        for axes, position in zip(of_window, ("before", "after"), strict=True):
            _draw_solvers(axes, pick(images, window=window), by_seed, position, "saved")
            axes.set_title(f"{position} the window; its steps {taken}")
        of_window[0].set_ylabel("relative distance")
    for axes in panel[-1]:
        axes.set_xlabel("evaluations saved per image")
    legend_above(figure, panel[0, 1])
    return figure


def _draw_solvers(
    axes: "Axes", rows: "pd.DataFrame", by_seed: "pd.DataFrame", position: str, x: str
) -> None:
    """The error of every solver at a position of the grid over the column `x`: `saved`, a point for
    each share of the steps left, or `start`, a point for each first step of the window."""
    kinds = {at: solvers(by_seed, at) for at in ("before", "after")}
    orders = sorted({order for of_position in kinds.values() for order, _ in of_position})
    for order, history in kinds[position]:
        solver = pick(rows, place=position, order=order, history=history)
        points = [
            (saved if x == "saved" else float(of_point[x].mean()), error)
            for _, of_point in solver.groupby("ratio" if x == "saved" else x)
            for saved, error in [over_seeds(of_point)]
        ]
        points.sort(key=lambda point: point[0])
        colour = COLOURS[orders.index(order) % len(COLOURS)]
        anew = history == "restart"
        axes.errorbar(
            [at for at, _ in points],
            [error.mean for _, error in points],
            [
                [error.mean - error.low if error.known else 0.0 for _, error in points],
                [error.high - error.mean if error.known else 0.0 for _, error in points],
            ],
            color=colour,
            marker=MARKERS[orders.index(order) % len(COLOURS)],
            linestyle="--" if anew else "-",
            markerfacecolor="white" if anew else colour,
            capsize=2,
            label=f"order {order}{', begun anew' if anew else ''}",
        )
    log_heights(axes)


def by_position(by_seed: "pd.DataFrame") -> "Figure":
    figure, panel = panels(1, 2, 3.9, sharey=True)
    images = pick(by_seed, model="trained", at="image", window="sde", ratio=middle_share(by_seed))
    for axes, position in zip(panel[0], ("before", "after"), strict=True):
        _draw_solvers(axes, images, by_seed, position, "start")
        axes.set_title(f"{position} the window")
        axes.set_xlabel("window's first step")
        whole_numbers(axes)
    panel[0, 0].set_ylabel("relative distance")
    legend_above(figure, panel[0, 1])
    return figure
