"""The figures of the report of a search, each with what it shows and what it does not."""

import math
import warnings
from typing import TYPE_CHECKING

from harness.searching import records
from harness.searching.file import Search
from harness.searching.words import Told

if TYPE_CHECKING:
    import pandas as pd

    from harness.figures import Picture

_MIN_IMPORTANCE = 8
"""Trials below which importances say nothing."""


def draw(told: Told) -> "list[Picture]":
    from harness.figures import picture
    from harness.plots import differences
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
    if not len(plots.whole_trials(trials)):
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

    from harness.searching.plots import whole_trials

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
