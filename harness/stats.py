"""Intervals and tests for few seeds: what may be said about arms that ran with the same seeds.

Per arm a Student t interval (a bootstrap of five seeds covers 82 % where it says 95 %). Against
the reference everything is paired by seed, because arms with the same seed share prompts and noise.

**What decides a verdict** (`harness.evidence.verdict`): the simultaneous t interval of the paired
difference, whose error is divided by the number of comparisons (Bonferroni) and whose spread is
raised by that of the other arms where an arm's own is small by chance
(`harness.evidence.moderation`). Better or worse: it excludes zero. Equal: it lies within the
margin. So a figure and a verdict cannot disagree, and the chance of any false verdict among the
arms of one report is at most 5 %; gains, other rewards, times and other budgets have 5 % each of
their own. Beside it stand the Holm-adjusted p of the same t test, which is never larger than what
the interval implies, and the sign-flip test, which assumes nothing but symmetry. With n seeds the
sign-flip p cannot be below 2 / 2^n (0.0625 for five), so for few seeds it cannot decide anything by
itself.

Fewer than `MIN_SEEDS` seeds give no interval and no p. Nothing here knows of files, arms' settings
or figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import stats

from harness.evidence import verdict
from harness.evidence.intervals import student
from harness.evidence.moderation import Spread, moderate
from harness.evidence.resolution import POWER, detectable_effect
from harness.evidence.sequential import Decision, sequential_p
from harness.evidence.verdict import MIN_PAIRS, Verdict
from harness.evidence.verdict import simultaneous_level as simultaneous_level

MIN_SEEDS = MIN_PAIRS
"""Below this no interval is given and nothing is concluded."""
LEVEL = 0.95
MOST_FLIPS = 10_000
"""All 2^n sign flips are tried where they are no more than these (13 seeds), else as many random
ones."""

Reason = Literal["interval", "identical", "no spread", "too few pairs", "not looked at"]
"""What a verdict rests on: the interval; scores that are the same with every seed, which are equal;
or why there is nothing to rest on. Not looked at: its first look is under way."""


Pairs = Mapping[str, tuple[dict[int, float], tuple[int, ...]]]
"""By arm: the paired differences by seed, and the seeds that had to be left out."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its Student t interval.

    `low` and `high` are NaN where fewer than MIN_SEEDS finite values were given; `dropped` counts
    the values that were not finite.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int
    level: float = LEVEL
    dropped: int = 0

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def varies(self) -> bool:
        """Whether the values differ at all: where they do not, they say nothing about chance."""
        return self.sd > 0

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval lies wholly above or below zero, else 0."""
        if not self.known:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


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


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and Student t interval of values that are independent (one per seed).

    Equal values give an interval of no width. Values that are not finite are dropped and counted.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1: {level}")
    given = np.asarray(values, dtype=float)
    finite = given[np.isfinite(given)]
    n, dropped = len(finite), len(given) - len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0, level, dropped)
    mean = float(finite.mean())
    sd = _sd(finite)
    if n < MIN_SEEDS:
        return Interval(mean, math.nan, math.nan, sd, n, level, dropped)
    half = _t_quantile(n - 1, (1 - level) / 2) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n, level, dropped)


def ratio_interval(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> Interval:
    """Geometric mean of the ratios paired by seed, with a t interval taken on the logarithm.

    For times, whose errors are multiplicative. Only seeds that both have enter; `sd` is that of
    the logarithms.
    """
    both = sorted(values.keys() & reference.keys())
    return geometric([values[seed] / reference[seed] for seed in both], level)


def paired_differences(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> tuple[dict[int, float], tuple[int, ...]]:
    """values - reference for the seeds that both have, and the seeds that had to be left out."""
    pairs = {
        seed: values[seed] - reference[seed]
        for seed in sorted(set(values) & set(reference))
        if math.isfinite(values[seed]) and math.isfinite(reference[seed])
    }
    return pairs, tuple(sorted((set(values) | set(reference)) - set(pairs)))


def paired_interval(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> Interval:
    """Interval of values - reference over the seeds that both have: a gain, after minus before."""
    pairs, left_out = paired_differences(values, reference)
    return replace(mean_interval(list(pairs.values()), level), dropped=len(left_out))


@dataclass(frozen=True)
class Looks:
    """What was decided at growing numbers of seeds (`harness.planning.standing.looks_made`)."""

    seeds: tuple[int, ...]
    """In the order in which they are run."""
    decisions: Mapping[str, tuple[Decision, ...]]
    """Of the looks at each arm; none where it was not looked at yet."""


def shown_gain(change: Interval) -> float | None:
    """The mean of a change where its interval lies above zero; None where no gain is shown."""
    return change.mean if change.sign > 0 else None


def compare(
    values: Mapping[str, Mapping[int, float]],
    reference: str | Mapping[str, str],
    margins: Mapping[str, float | None] | None = None,
    looks: Looks | None = None,
) -> dict[str, Comparison]:
    """Compare every arm with its reference: `values[arm][seed]`, higher is better.

    `reference`: the arm that all are compared with, or by arm the one that it is compared with, for
    a reference itself. `margins`: by reference, the difference that is worth nothing. `looks`: of
    seeds that went on until it was decided; verdict, interval, margin and p are those of an arm's
    last look.
    """
    references = dict.fromkeys(values, reference) if isinstance(reference, str) else reference
    arms = [arm for arm in values if arm != references[arm]]
    pairs = {arm: paired_differences(values[arm], values.get(references[arm], {})) for arm in arms}
    of_arm_margin = {arm: margins.get(references[arm]) if margins else None for arm in arms}
    if looks is None:
        judged, p = _at_once(pairs, of_arm_margin)
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
    pairs: Pairs, margins: Mapping[str, float | None]
) -> tuple[dict[str, verdict.Comparison], dict[str, float]]:
    """The verdict of every arm with all its pairs, and its p."""
    differences = {arm: list(of_arm.values()) for arm, (of_arm, _) in pairs.items()}
    family = sum(len(of_arm) >= MIN_SEEDS for of_arm in differences.values())
    level, spreads = simultaneous_level(family), moderate(differences)
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
    if of_arm.reason in (
        "identical",
        "no spread",
    ):  # one value with every seed: no width, and no evidence
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


def detectable_difference(sd: float, n: int, family: int = 1) -> float:
    """The smallest true difference that n values show with 80 % probability among `family` tests.

    NaN with too few values. `sd` is theirs.
    """
    if n < MIN_SEEDS:
        return math.nan
    return detectable_effect(n, (1 - LEVEL) / family, POWER) * sd


@lru_cache(maxsize=256)
def _t_quantile(df: int, tail: float) -> float:
    return float(stats.t.isf(tail, df))


def _sd(values: Any) -> float:
    """Sample standard deviation; exactly 0 for values that differ by rounding alone."""
    if len(values) < 2:
        return math.nan
    sd = float(values.std(ddof=1))
    return 0.0 if sd <= 1e-12 * float(np.abs(values).max()) else sd


def geometric(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Geometric mean with its interval; `sd` is that of the logarithms. Values that are not above
    zero are dropped and counted."""
    return exponential(mean_interval([math.log(v) if v > 0 else math.nan for v in values], level))


def exponential(logarithm: Interval) -> Interval:
    """The interval of a value from that of its logarithm."""
    mean, low, high = (math.exp(x) for x in (logarithm.mean, logarithm.low, logarithm.high))
    return replace(logarithm, mean=mean, low=low, high=high)


def side(ratio: Interval) -> int:
    """+1 or -1 where the interval of a ratio lies wholly above or below 1, else 0."""
    if not (ratio.known and ratio.varies):
        return 0
    return 1 if ratio.low > 1 else -1 if ratio.high < 1 else 0
