"""Draws a search's figures (matplotlib without pyplot), each from the table of trials."""

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.reporting.drawing import COLOURS, GREY, WIDTH, thousands
from harness.searching import records
from harness.searching.confirm import pareto, reference
from harness.searching.file import Search
from harness.searching.records import SETTING, whole_trials
from harness.searching.words import Told
from mixgrpo.text.escape import shortened

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from harness.reporting.figures import Picture


TRIED, BEST, OWN = COLOURS[0], COLOURS[1], COLOURS[2]


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


_MIN_IMPORTANCE = 8
"""Trials below which importances say nothing."""


def draw(told: Told) -> "list[Picture]":
    from harness.reporting.figures import picture
    from harness.reporting.plots import differences
    from harness.searching import plots

    search, trials, found = told.search, told.trials, []
    if told.confirmed is not None:
        analysis = told.confirmed
        found.append(
            picture(
                "confirmed",
                "The best on fresh seeds",
                f"The reward {analysis.measure} on held-out prompts, minus the reference's, paired "
                "by seed, with seeds that the search had not seen. Thick line: 95 % interval of "
                "this setting alone; thin line: the interval that holds for all of them together, "
                "which decides.",
                lambda: differences(analysis),
            )
        )
    if not len(whole_trials(trials)):
        return found
    found.append(
        picture(
            "front",
            "Reward against cost",
            "Each point is a setting with all seeds of the search. Numbers are trials. No other "
            "setting has both more reward and less cost than a Pareto-optimal one, as far as this "
            "search saw: with other seeds the front would be another.",
            lambda: plots.front(search, trials, told.unit),
        )
    )
    shares = _importances(search, trials)
    if shares:
        left_out = [one.label for one in search.space if one.unless]
        some = (
            f" Left out, because not every trial was asked for them: {', '.join(left_out)}."
            if left_out
            else ""
        )
        found.append(
            picture(
                "importances",
                "Which settings matter",
                "PED-ANOVA (Watanabe et al. 2023, Optuna's default): how much the values of a "
                "setting among the best tenth of the trials differ from those among all. It says "
                "where good settings lie within these ranges and among these few trials; it is no "
                f"effect and has no interval.{some}",
                lambda: plots.importance(shares),
            )
        )
    found.append(
        picture(
            "slices",
            "Settings one by one",
            "Reward over each setting by itself; later trials are darker, the star is the "
            "reference. The other settings differ from point to point, and the search went where "
            "rewards were high: a slope here is no effect.",
            lambda: plots.slices(search, trials),
        )
    )
    found.append(
        picture(
            "history",
            "The course of the search",
            "Mean reward by trial. The line rises by chance alone too: the best of more values is "
            "higher.",
            lambda: plots.history(search, trials),
        )
    )
    return found


def _importances(search: Search, trials: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Importance of each setting that every trial was asked for, by target; empty where unknown."""
    import optuna

    from harness.searching.records import whole_trials

    done = whole_trials(trials)
    ranges = [one for one in search.space if not one.unless]
    if len(done) < _MIN_IMPORTANCE or len(ranges) < 2:
        return {}
    found: dict[str, dict[str, float]] = {}
    targets = {"reward": 1.0} | dict.fromkeys(search.objectives[1:], -1.0)
    for target, sign in targets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            study = optuna.create_study(direction="maximize")
            for n, value in zip(done["number"], done[target], strict=True):
                asked = records.asked_of(search, trials, int(n))
                study.add_trial(
                    optuna.create_trial(
                        value=sign * float(value),
                        params={one.key: asked[one.key] for one in ranges},
                        distributions={one.key: one.distribution() for one in ranges},
                    )
                )
            try:
                shares = optuna.importance.get_param_importances(study)
            except (ValueError, RuntimeError):  # all values alike
                continue
        if not all(math.isfinite(share) for share in shares.values()):
            continue
        found[target] = {one.label: shares.get(one.key, 0.0) for one in ranges}
    return found
