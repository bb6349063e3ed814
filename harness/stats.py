"""Intervals of few seeds: of a mean, of a difference paired by seed, of a ratio.

A Student t interval of the mean over seeds: a bootstrap of five seeds covers 82 % where it says
95 %. Fewer than `MIN_SEEDS` seeds give none. How arms are compared is in `harness.comparison`.
Nothing here knows of files, arms' settings or figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from harness.evidence.resolution import POWER, detectable_effect
from harness.evidence.verdict import MIN_PAIRS
from harness.evidence.verdict import simultaneous_level as simultaneous_level

MIN_SEEDS = MIN_PAIRS
"""Below this no interval is given and nothing is concluded."""
LEVEL = 0.95


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


def shown_gain(change: Interval) -> float | None:
    """The mean of a change where its interval lies above zero; None where no gain is shown."""
    return change.mean if change.sign > 0 else None


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
