"""Draws a search's figures (matplotlib without pyplot), each from the table of trials."""

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.drawing import COLOURS, GREY, WIDTH, thousands
from harness.searching.confirm import pareto, reference
from harness.searching.records import SETTING
from mixgrpo.escape import shortened

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from harness.searching.file import Search

TRIED, BEST, OWN = COLOURS[0], COLOURS[1], COLOURS[2]


def whole_trials(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Those of which all seeds ran, each setting once."""
    return trials[(trials["state"] == "complete") & ~trials["free"]]


def front(search: "Search", trials: "pd.DataFrame", unit: str) -> Figure:
    """Reward against network evaluations and against seconds, with the Pareto front of each."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    done, own = whole_trials(trials), reference(trials)
    names = {"evaluations": "network evaluations of a run", "seconds": f"{unit} of a run"}
    for axes, (cost, name) in zip(panels, names.items(), strict=True):
        best = pareto(done, cost)
        on = done[done["number"].isin(best)].sort_values(cost)
        rest = done[~done["number"].isin(best)]
        axes.step(on[cost], on["reward"], where="post", color=BEST, linewidth=1.2)
        axes.plot(rest[cost], rest["reward"], "o", color=TRIED, alpha=0.75, label="tried")
        axes.plot(on[cost], on["reward"], "s", color=BEST, label="Pareto-optimal")
        shown = done[done["number"] == own]
        axes.plot(
            shown[cost],
            shown["reward"],
            "*",
            markersize=15,
            color=OWN,
            markeredgecolor="black",
            label="the reference",
        )
        _name_points(axes, on, cost)
        if search.budget is not None and getattr(search.budget, cost) is not None:
            axes.axvline(getattr(search.budget, cost), color=GREY, linestyle="--", label="budget")
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.margins(0.12)
    panels[0].xaxis.set_major_formatter(FuncFormatter(thousands))
    panels[0].set_ylabel(f"{search.measure} (mean over seeds)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def _name_points(axes: "Axes", points: "pd.DataFrame", cost: str) -> None:
    for number, x, y in zip(points["number"], points[cost], points["reward"], strict=True):
        axes.annotate(str(number), (x, y), (4, 5), textcoords="offset points", fontsize=8.5)


def history(search: "Search", trials: "pd.DataFrame") -> Figure:
    """The mean reward of each trial in the order they were asked for, and the best so far."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    done = whole_trials(trials)
    usable = done[done["feasible"]]
    over = done[~done["feasible"]]
    axes.step(
        usable["number"], usable["reward"].cummax(), where="post", color=BEST, label="best so far"
    )
    axes.plot(usable["number"], usable["reward"], "o", color=TRIED, label="all seeds ran")
    if len(over):
        axes.plot(over["number"], over["reward"], "x", color=TRIED, label="over the budget")
    given_up = trials[(trials["state"] == "pruned") & ~trials["free"]]
    seen = given_up[given_up["seeds"] > 0]
    axes.plot(seen["number"], seen["reward"], "v", color=GREY, label="given up, seeds so far")
    unseen = given_up[given_up["seeds"] == 0]
    if len(unseen):
        low = axes.get_ylim()[0]
        axes.plot(
            unseen["number"],
            [low] * len(unseen),
            "|",
            color=GREY,
            markersize=9,
            label="given up in its first runs",
        )
    own = done[done["number"] == reference(trials)]
    axes.plot(
        own["number"],
        own["reward"],
        "*",
        markersize=15,
        color=OWN,
        markeredgecolor="black",
        label="the reference",
    )
    axes.set_xlabel("trial")
    axes.set_ylabel(search.measure)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def importance(found: dict[str, dict[str, float]]) -> Figure:
    """Bars of each setting's importance, for reward and cost side by side."""
    names = list(next(iter(found.values())))
    figure = Figure(figsize=(WIDTH, 1.2 + 0.45 * len(names)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(found), sharey=True))
    for axes, (target, shares), colour in zip(panels, found.items(), COLOURS, strict=False):
        axes.barh(range(len(names)), [shares.get(name, 0.0) for name in names], color=colour)
        axes.set_title(f"for {target}")
        axes.set_xlabel("importance (shares of 1)")
        axes.grid(False, axis="y")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def slices(search: "Search", trials: "pd.DataFrame") -> Figure:
    """Reward against each setting by itself; later trials are darker."""
    columns = 3
    rows = math.ceil(len(search.space) / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    done, own = whole_trials(trials), reference(trials)
    for axes, one in zip(panels, search.space, strict=False):
        column = f"{SETTING}{one.key}"
        asked = done[done[column].notna()]
        if one.choices is not None:
            texts = [str(choice) for choice in one.choices]
            x = [float(texts.index(str(value))) for value in asked[column]]
            shown = [shortened(text, 13) for text in texts]
            slanted = max(map(len, texts)) > 3
            axes.set_xticks(
                range(len(texts)),
                shown,
                rotation=30 if slanted else 0,
                ha="right" if slanted else "center",
            )
            axes.set_xlim(-0.6, len(texts) - 0.4)
        else:
            x = [float(value) for value in asked[column]]
            if one.log:
                axes.set_xscale("log")
                low, high = one.bounds
                axes.set_xticks([low, math.sqrt(low * high), high])
                axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
                axes.minorticks_off()
                axes.set_xlim(low / 1.15, high * 1.15)
        colours = asked["number"] / max(1, int(trials["number"].max()))
        axes.scatter(x, asked["reward"], c=colours, cmap="Blues", vmin=-0.5, vmax=1.1, s=28)
        mine = [i for i, number in enumerate(asked["number"]) if number == own]
        for i in mine:
            axes.plot(
                x[i],
                asked["reward"].iloc[i],
                "*",
                markersize=13,
                color=OWN,
                markeredgecolor="black",
            )
        axes.set_xlabel(one.label)
    for index, axes in enumerate(panels):
        if index % columns == 0:
            axes.set_ylabel(search.measure)
    for axes in list(figure.axes)[len(search.space) :]:
        axes.set_visible(False)
    for index, axes in enumerate(figure.axes):
        if index % columns == 0 and index < len(search.space):
            axes.set_ylabel(search.measure)
    return figure
