"""Whether an effect depends on what the arms are compared within, such as the size of the model.

For a sweep with `within`: an arm's difference to its own reference, less the same difference for
the first value. An effect that is seen for one value and not for another is no such difference.
"""

from typing import TYPE_CHECKING, Any

from harness.analysis.analyse import Analysis
from harness.comparison import Comparison, compare
from harness.reporting.phrases import verdict_words, worth
from harness.reporting.tables import Table
from harness.reporting.views.view import View
from harness.stats import paired_differences
from harness.text import interval, listed, number, p_value

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results

WORDS = {"better": "larger", "worse": "smaller"}


def interaction(
    analysis: Analysis, results: "Results", probes: "pd.DataFrame | None"
) -> View | None:
    """None where nothing is compared within groups, or only one."""
    comparisons = interactions(analysis)
    if not comparisons:
        return None
    first = analysis.reference.arm.label
    different = [c for c in comparisons.values() if c.verdict in ("better", "worse")]
    tested = [c for c in comparisons.values() if c.tested]
    if different:
        which = [
            f"{analysis.label(c.arm)} ({interval(c.simultaneous, signed=True)})" for c in different
        ]
        answer = f"The effect differs from the one in the group of {first} in {listed(which)}."
    elif tested:
        equal = [c for c in tested if c.verdict == "equal"]
        rest = len(tested) - len(equal)
        answer = f"No effect is shown to differ from the same one in the group of {first}"
        if equal:
            answer += f"; {len(equal)} of {len(tested)} differ by less than {worth(equal)}"
        if rest:
            detectable = number(max(c.detectable for c in tested))
            answer += (
                f"; {rest} of {len(tested)} {'is' if rest == 1 else 'are'} undecided (smallest "
                f"detectable difference between effects {detectable})"
            )
        answer += "."
    else:
        answer = "Whether effects differ cannot be concluded: too few seeds."
    rows = tuple(
        (
            analysis.label(c.arm),
            analysis.label(c.reference),
            str(len(c.seeds)),
            interval(c.simultaneous, signed=True),
            p_value(c.p_holm),
            number(c.detectable),
            WORDS.get(c.verdict) or verdict_words(c),
        )
        for c in comparisons.values()
    )
    table = Table(
        f"Differences between effects on {analysis.measure}",
        (
            *("effect of", "against the effect of", "seeds", "difference", "p (t, Holm)"),
            *("smallest detectable difference", "verdict"),
        ),
        rows,
        "An effect is an arm minus the reference of its own group, paired by seed. The difference "
        "between two effects is paired by seed as well; its interval holds for all rows together "
        "with 95 %.",
    )
    return View("Whether effects depend on the group", (answer,), (table,), ())


def interactions(analysis: Analysis) -> dict[str, Comparison]:
    """By arm of every group but the first: its effect against the first group's same effect."""
    sweep = analysis.sweep
    if not sweep.within:
        return {}
    settings = {arm.name: arm.settings for arm in sweep.arms}
    first = sweep.reference
    others = sorted({r for r in sweep.references.values() if r != first})
    if not others:
        return {}
    (key,) = {k for r in others for k in settings[r] if settings[r][k] != settings[first].get(k)}

    def rest(arm: str) -> list[tuple[str, Any]]:
        return sorted((k, repr(v)) for k, v in settings[arm].items() if k != key)

    effects = {
        c.arm: paired_differences(
            analysis.by_name(c.arm).after, analysis.by_name(c.reference).after
        )[0]
        for c in analysis.compared
    }
    of_first = {str(rest(arm)): arm for arm in effects if sweep.references[arm] == first}
    against = {
        arm: twin if (twin := of_first.get(str(rest(arm)))) and twin != arm else arm
        for arm in effects
    }
    margins = {arm: analysis.margins[sweep.references[arm]] for arm in effects}
    return compare(effects, against, margins)
