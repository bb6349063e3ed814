"""A search's figures, each drawn from the table of trials (matplotlib without pyplot).

Importances are Optuna's. Its figures (`optuna.visualization.matplotlib`, 5.0) are not used: that of
importances for two objectives sorts each one's bars by itself and names all of them by the last
one's order, that of slices has labels that overlap, and none shows the reference or what was given
up.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.reporting.drawing import COLOURS, GREY, WIDTH, legend_above, thousands
from harness.reporting.figures import Picture, picture
from harness.reporting.plots import differences
from harness.searching.confirm import pareto, reference
from harness.searching.outcome import Outcome
from harness.searching.records import SETTING, asked_of, choice_of, rows_of, whole_trials
from harness.searching.space import suggest
from harness.searching.storage import quiet
from mixgrpo.text.escape import shortened

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TRIED, BEST, REFERENCE = COLOURS[:3]
_MIN_IMPORTANCE = 8
"""Trials below which importances say nothing."""


def draw(outcome: Outcome) -> list[Picture]:
    """All figures, in the order a reader wants them. Those without data are left out."""
    analysis, done = outcome.confirmed, whole_trials(outcome.trials)
    pictures = []
    if analysis is not None:
        caption = (
            f"The reward {analysis.measure} on held-out prompts, minus the reference's, paired by "
            "seed, with seeds that the search had not seen. Thick line: 95 % interval of this "
            "setting alone; thin line: the interval that holds for all of them together, which "
            "decides."
        )
        title = "The best on fresh seeds"
        pictures.append(picture("confirmed", title, caption, lambda: differences(analysis)))
    enough = len(done) >= _MIN_IMPORTANCE and len(outcome.search.space) > 1
    return pictures + [
        picture(make.__name__, title, caption, partial(make, outcome))
        for make, title, caption in _FIGURES
        if len(done) and (enough or make is not importances)
    ]


def front(outcome: Outcome) -> Figure:
    """Reward against network evaluations and against seconds, with the Pareto front of each."""
    search, done = outcome.search, whole_trials(outcome.trials)
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = {"evaluations": "network evaluations of a run", "seconds": f"{outcome.unit} of a run"}
    for axes, (cost, name) in zip(panels, names.items(), strict=True):
        best = done[done["number"].isin(pareto(done, cost))].sort_values(cost)
        axes.step(best[cost], best["reward"], where="post", color=BEST, linewidth=1.2)
        _points(axes, done.drop(best.index), cost, "o", TRIED, "tried", alpha=0.75)
        _points(axes, best, cost, "s", BEST, "Pareto-optimal")
        _star(axes, outcome, cost)
        for number, x, y in zip(best["number"], best[cost], best["reward"], strict=True):
            axes.annotate(str(number), (x, y), (4, 5), textcoords="offset points", fontsize=8.5)
        bound = getattr(search.budget, cost, None)
        if bound is not None:
            axes.axvline(bound, color=GREY, linestyle="--", label="budget")
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.margins(0.12)
    panels[0].xaxis.set_major_formatter(FuncFormatter(thousands))
    panels[0].set_ylabel(f"{search.measure} (mean over seeds)")
    legend_above(figure, panels[0])
    return figure


def history(outcome: Outcome) -> Figure:
    """The mean reward of each trial in the order they were asked for, and the best so far."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    trials, done = outcome.trials, whole_trials(outcome.trials)
    usable, best = done[done["feasible"]], done[done["feasible"]]["reward"].cummax()
    axes.step(usable["number"], best, where="post", color=BEST, label="best so far")
    _points(axes, usable, "number", "o", TRIED, "all seeds ran")
    _points(axes, done[~done["feasible"]], "number", "x", TRIED, "over the budget")
    given_up = trials[(trials["state"] == "pruned") & ~trials["free"]]
    seen = given_up["seeds"] > 0
    _points(axes, given_up[seen], "number", "v", GREY, "given up, seeds so far")
    unseen = given_up[~seen].assign(reward=axes.get_ylim()[0])
    _points(axes, unseen, "number", "|", GREY, "given up in its first runs", markersize=9)
    _star(axes, outcome, "number")
    axes.set_xlabel("trial")
    axes.set_ylabel(outcome.search.measure)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, axes)
    return figure


def slices(outcome: Outcome) -> Figure:
    """Reward against each setting by itself; later trials are darker."""
    space, columns = outcome.search.space, min(3, len(outcome.search.space))
    rows = math.ceil(len(space) / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    latest = max(1, int(outcome.trials["number"].max()))
    for axes, one in zip(panels.flat, space, strict=False):
        column = f"{SETTING}{one.key}"
        seen = outcome.trials[outcome.trials[column].notna()]
        if one.choices is not None:
            texts = [str(choice) for choice in one.choices]
            seen = seen.assign(**{column: [choice_of(one, value) for value in seen[column]]})
            slant = {"rotation": 30, "ha": "right"} if max(map(len, texts)) > 3 else {}
            axes.set_xticks(range(len(texts)), [shortened(text, 13) for text in texts], **slant)
            axes.set_xlim(-0.6, len(texts) - 0.4)
        elif one.log:
            low, high = one.bounds
            axes.set_xscale("log")
            axes.set_xticks([low, math.sqrt(low * high), high])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2g}"))
            axes.minorticks_off()
            axes.set_xlim(low / 1.15, high * 1.15)
        done = whole_trials(seen)
        shades = {"c": done["number"] / latest, "cmap": "Blues", "vmin": -0.5, "vmax": 1.1}
        axes.scatter(done[column].astype(float), done["reward"], s=28, **shades)
        _star(axes, outcome, column, done, 13)
        axes.set_xlabel(one.label)
    for axes in panels[:, 0]:
        axes.set_ylabel(outcome.search.measure)
    for axes in panels.flat[len(space) :]:
        axes.set_visible(False)
    return figure


def importances(outcome: Outcome) -> Figure:
    """Bars of each setting's importance, for reward and cost side by side."""
    space, goals = outcome.search.space, ["reward", *outcome.search.objectives[1:]]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.4 * len(space)), layout="constrained")
    panels = figure.subplots(1, len(goals), sharey=True, squeeze=False)[0]
    with quiet():
        from optuna import create_study, create_trial
        from optuna.importance import get_param_importances
        from optuna.trial import FixedTrial

        for axes, goal, colour in zip(panels, goals, COLOURS, strict=False):
            study = create_study(direction="maximize" if goal == "reward" else "minimize")
            for row in rows_of(whole_trials(outcome.trials)).values():
                trial = FixedTrial(asked_of(outcome.search, row))
                suggest(space, trial)
                kinds = trial.distributions
                study.add_trial(
                    create_trial(value=row[goal], params=trial.params, distributions=kinds)
                )
            of = get_param_importances(study)
            shares = [of.get(one.key, 0.0) for one in space]
            axes.bar_label(axes.barh(range(len(space)), shares, color=colour), fmt=" %.2f")
            axes.set(title=f"for {goal}", xlabel="importance (shares of 1)")
            axes.margins(x=0.15)
            axes.grid(False, axis="y")
    panels[0].set_yticks(range(len(space)), [one.label for one in space])
    panels[0].invert_yaxis()
    return figure


def _points(
    axes: "Axes", trials: "pd.DataFrame", x: str, mark: str, colour: str, label: str, **more: Any
) -> None:
    if len(trials):
        axes.plot(trials[x], trials["reward"], mark, color=colour, label=label, **more)


def _star(
    axes: "Axes",
    outcome: Outcome,
    x: str,
    trials: "pd.DataFrame | None" = None,
    size: float = 15,
) -> None:
    """Marks the reference, where it is among the trials."""
    done = whole_trials(outcome.trials) if trials is None else trials
    row = done[done["number"] == reference(outcome.trials)]
    edge = {"markersize": size, "markeredgecolor": "black"}
    _points(axes, row, x, "*", REFERENCE, "the reference", **edge)


_FIGURES = (
    (
        front,
        "Reward against cost",
        "Each point is a setting with all seeds of the search. Numbers are trials. No other "
        "setting has both more reward and less cost than a Pareto-optimal one, as far as this "
        "search saw: with other seeds the front would be another.",
    ),
    (
        importances,
        "Which settings matter",
        "PED-ANOVA (Watanabe et al. 2023, Optuna's default): how much the values of a setting "
        "among the best tenth of the trials differ from those among all that were asked for it. "
        "It says where good settings lie within these ranges and among these few trials; it is no "
        "effect and has no interval.",
    ),
    (
        slices,
        "Settings one by one",
        "Reward over each setting by itself; later trials are darker, the star is the reference. "
        "The other settings differ from point to point, and the search went where rewards were "
        "high: a slope here is no effect.",
    ),
    (
        history,
        "The course of the search",
        "Mean reward by trial. The line rises by chance alone too: the best of more values is "
        "higher.",
    ),
)
"""What draws a figure, its title and its caption, in the order a reader wants them."""
