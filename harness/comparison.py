"""Compares arms with a reference: what may be said of them where they ran with the same seeds.

Everything is paired by seed, because arms with the same seed share prompts and noise.

**What decides a verdict** (`harness.evidence.verdict`): the simultaneous t interval of the paired
difference, whose error is divided by the number of comparisons (Bonferroni) and whose spread is
raised by that of the other arms where an arm's own is small by chance
(`harness.evidence.moderation`). Equal: it lies within the margin. Better or worse: else, where it
excludes zero. So a figure and a verdict cannot disagree, and the chance of any false verdict among
the arms of one report is at most 5 %; gains, other rewards, times and other budgets have 5 % each
of their own. Beside it stand the Holm-adjusted p of the same t test, which is never larger than
what the interval implies, and the sign-flip test, which assumes nothing but symmetry. With n seeds
the sign-flip p cannot be below 2 / 2^n (0.0625 for five), so for few seeds it cannot decide
anything by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from harness.evidence import verdict
from harness.evidence.intervals import student
from harness.evidence.moderation import Spread, moderate
from harness.evidence.resolution import POWER, detectable_effect
from harness.evidence.sequential import Decision, sequential_p
from harness.evidence.verdict import Verdict, simultaneous_level
from harness.stats import LEVEL, MIN_SEEDS, Interval, paired_differences

MOST_FLIPS = 10_000
"""All 2^n sign flips are tried where they are no more than these (13 seeds), else as many random
ones."""

Reason = Literal["interval", "identical", "no spread", "too few pairs", "not looked at"]
"""What a verdict rests on: the interval; scores that are the same with every seed, which are equal;
or why there is nothing to rest on. Not looked at: its first look is under way."""

Pairs = Mapping[str, tuple[dict[int, float], tuple[int, ...]]]
"""By arm: the paired differences by seed, and the seeds that had to be left out."""


@dataclass(frozen=True)
class Comparison:
    """One arm minus the reference, paired by seed."""

    arm: str
    reference: str
    seeds: tuple[int, ...]
    """Seeds that both have with finite values: the pairs."""
    left_out: tuple[int, ...]
    """Seeds that only one of them has, or that are not finite."""
    family: int
    """Comparisons that share the error: those with enough pairs."""
    difference: Interval
    """Mean of the paired differences with its own 95 % interval."""
    simultaneous: Interval
    """The same mean with the interval that holds for all comparisons together. It decides. Its `sd`
    is that of the spread."""
    spread: Spread
    """The standard deviation that both intervals use, and its degrees of freedom."""
    margin: float | None
    """Differences up to this are worth nothing; None where no margin is known: never equal."""
    p: float
    """This and the other p values are NaN where nothing can be tested: too few pairs, or pairs
    that do not differ from each other."""
    p_holm: float
    p_sign_flip: float
    p_sign_flip_holm: float
    detectable: float
    """The smallest true difference with an 80 % chance of better or worse, at this spread; NaN
    where nothing can be tested."""
    verdict: Verdict
    reason: Reason

    @property
    def tested(self) -> bool:
        """Whether the verdict rests on an interval."""
        return self.reason == "interval"


@dataclass(frozen=True)
class Looks:
    """What was decided at growing numbers of seeds (`harness.planning.standing.looks_made`)."""

    seeds: tuple[int, ...]
    """In the order in which they are run."""
    decisions: Mapping[str, tuple[Decision, ...]]
    """Of the looks at each arm; none where it was not looked at yet."""


def compare(
    values: Mapping[str, Mapping[int, float]],
    reference: str | Mapping[str, str],
    margins: Mapping[str, float | None] | None = None,
    looks: Looks | None = None,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compare every arm with its reference: `values[arm][seed]`, higher is better.

    `reference`: the arm that all are compared with, or by arm the one that it is compared with, for
    a reference itself. `margins`: by reference, the difference that is worth nothing. `looks`: of
    seeds that went on until it was decided; verdict, interval, margin and p are those of an arm's
    last look. `level`: of all intervals together; the looks have their own.
    """
    references = dict.fromkeys(values, reference) if isinstance(reference, str) else reference
    arms = [arm for arm in values if arm != references[arm]]
    pairs = {arm: paired_differences(values[arm], values.get(references[arm], {})) for arm in arms}
    of_arm_margin = {arm: margins.get(references[arm]) if margins else None for arm in arms}
    if looks is None:
        judged, p = _at_once(pairs, of_arm_margin, level)
    else:
        judged, p = _at_last_look(looks, of_arm_margin)
        pairs = {arm: (_looked_at(looks, arm, of), rest) for arm, (of, rest) in pairs.items()}
    differences = {arm: list(of_arm.values()) for arm, (of_arm, _) in pairs.items()}
    family = max(1, sum(len(of_arm) >= MIN_SEEDS for of_arm in differences.values()))
    p_flip = {
        # With looks it would have to allow for looking often, as the others do.
        arm: sign_flip_p(differences[arm])
        if of_arm.reason == "interval" and looks is None
        else math.nan
        for arm, of_arm in judged.items()
    }
    p_holm, p_flip_holm = holm(p), holm(p_flip)
    return {
        arm: Comparison(
            arm=arm,
            reference=references[arm],
            seeds=tuple(pairs[arm][0]),
            left_out=pairs[arm][1],
            family=family,
            difference=_interval(of_arm, LEVEL),
            simultaneous=_interval(of_arm, of_arm.level),
            spread=of_arm.spread,
            margin=of_arm.margin,
            p=p[arm],
            p_holm=p_holm[arm],
            p_sign_flip=p_flip[arm],
            p_sign_flip_holm=p_flip_holm[arm],
            detectable=_detectable(of_arm),
            verdict=of_arm.verdict,
            reason=of_arm.reason if looks is None or looks.decisions[arm] else "not looked at",
        )
        for arm, of_arm in judged.items()
    }


def _at_once(
    pairs: Pairs, margins: Mapping[str, float | None], together: float
) -> tuple[dict[str, verdict.Comparison], dict[str, float]]:
    """The verdict of every arm with all its pairs, and its p."""
    differences = {arm: list(of_arm.values()) for arm, (of_arm, _) in pairs.items()}
    family = sum(len(of_arm) >= MIN_SEEDS for of_arm in differences.values())
    level, spreads = simultaneous_level(family, together), moderate(differences)
    judged = {
        arm: verdict.compare(of_arm, margin=margins[arm], level=level, spread=spreads[arm])
        for arm, of_arm in differences.items()
    }
    return judged, {arm: _p(of_arm) for arm, of_arm in judged.items()}


def _at_last_look(
    looks: Looks, margins: Mapping[str, float | None]
) -> tuple[dict[str, verdict.Comparison], dict[str, float]]:
    """The same at the last look at each arm."""
    judged: dict[str, verdict.Comparison] = {}
    p: dict[str, float] = {}
    for arm, made in looks.decisions.items():
        if not made:
            judged[arm], p[arm] = verdict.compare([], margin=margins[arm]), math.nan
            continue
        judged[arm] = made[-1].comparison
        of_looks = [_p(decision.comparison) for decision in made]
        seen = [(decision.look.seeds, decision.look.pairs) for decision in made]
        known = all(map(math.isfinite, of_looks))
        p[arm] = sequential_p(of_looks, seen, len(looks.seeds)) if known else math.nan
    return judged, p


def _looked_at(looks: Looks, arm: str, pairs: dict[int, float]) -> dict[int, float]:
    """The pairs of an arm that its last look saw."""
    made = looks.decisions[arm]
    seen = looks.seeds[: made[-1].look.seeds] if made else ()
    return {seed: pairs[seed] for seed in seen if seed in pairs}


def _interval(of_arm: verdict.Comparison, level: float) -> Interval:
    mean, n, spread = of_arm.mean, of_arm.pairs, of_arm.spread
    if of_arm.reason == "too few pairs":
        return Interval(mean, math.nan, math.nan, spread.sd, n, level)
    # One value with every seed: no width, and no evidence.
    if of_arm.reason in ("identical", "no spread"):
        return Interval(mean, mean, mean, 0.0, n, level)
    found = student(mean, spread.sd, n, spread.degrees_of_freedom, level)
    return Interval(mean, found.low, found.high, spread.sd, n, level)


def _p(of_arm: verdict.Comparison) -> float:
    """Two-sided p of the t test with the arm's spread; NaN where there is no interval."""
    if of_arm.reason != "interval":
        return math.nan
    spread = of_arm.spread
    t = abs(of_arm.mean) * math.sqrt(of_arm.pairs) / spread.sd
    return float(2 * stats.t.sf(t, spread.degrees_of_freedom))


def _detectable(of_arm: verdict.Comparison) -> float:
    if of_arm.reason != "interval":
        return math.nan
    spread, error = of_arm.spread, 1 - of_arm.level
    return spread.sd * detectable_effect(of_arm.pairs, error, POWER, spread.degrees_of_freedom)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip test on the mean of paired differences.

    Exact where all flips are tried. Else random flips from a fixed seed, with the +1 correction, so
    that p is never 0. NaN with too few pairs.
    """
    if len(differences) < MIN_SEEDS:
        return math.nan
    tested = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=MOST_FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (Holm 1979). NaN stays NaN and does not count."""
    tested = sorted((value, name) for name, value in p.items() if math.isfinite(value))
    adjusted = dict.fromkeys(p, math.nan)
    running = 0.0
    for rank, (value, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * value))
        adjusted[name] = running
    return adjusted
