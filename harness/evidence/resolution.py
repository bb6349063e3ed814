"""What a fixed number of seeds resolves: power, the smallest detectable difference, seeds needed.

Each comes with a range of 10 to 90 %: a standard deviation s on d degrees of freedom leaves
sigma^2 anywhere in d s^2 / chi2_d, and few seeds leave much (seven degrees of freedom: sigma from
0.76 s to 1.57 s, seeds needed from 0.6 to 2.5 times as many).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from harness.evidence.intervals import Interval
from harness.evidence.moderation import Spread
from harness.evidence.verdict import MIN_PAIRS

POWER = 0.8
RANGE = (0.1, 0.9)
MOST_SEEDS = 10**6
NODES = 400
"""Quantiles of the chi-squared distribution that stand for it in an integral."""


def chance_of_difference(
    effect: float, pairs: int, error: float = 0.05, degrees_of_freedom: float | None = None
) -> float:
    """Chance that the interval of `pairs` excludes zero; effect: true mean / sd (noncentral t).

    `error`: 1 - level of the interval. Degrees of freedom: pairs - 1 unless given.
    """
    df = pairs - 1 if degrees_of_freedom is None else degrees_of_freedom
    bound, shift = float(stats.t.isf(error / 2, df)), abs(effect) * math.sqrt(pairs)
    # The far tail underflows to NaN for large shifts, where it is nothing.
    far = float(np.nan_to_num(stats.nct.cdf(-bound, df, shift)))
    return float(stats.nct.sf(bound, df, shift)) + far


def chance_of_equality(
    margin: float, pairs: int, error: float = 0.05, degrees_of_freedom: float | None = None
) -> float:
    """Chance that the interval of `pairs` lies within +-margin when there is no difference.

    margin: in sd. E over u ~ chi2_df of max(0, 2 Phi(margin sqrt(n) - t sqrt(u / df)) - 1), the
    power of two one-sided tests (Schuirmann 1987), by quantiles of u.
    """
    df = pairs - 1 if degrees_of_freedom is None else degrees_of_freedom
    bound = float(stats.t.isf(error / 2, df))
    u = stats.chi2.ppf((np.arange(NODES) + 0.5) / NODES, df) / df if df < math.inf else 1.0
    room = margin * math.sqrt(pairs) - bound * np.sqrt(u)
    return float(np.mean(np.maximum(0.0, 2 * special.ndtr(room) - 1)))


def detectable_difference(
    spread: Spread, pairs: int, error: float = 0.05, chance: float = POWER
) -> Interval:
    """The smallest true difference that `pairs` show with probability `chance`, and its range.

    In the measure's units. NaN with fewer than three pairs.
    """
    if pairs < MIN_PAIRS:
        return Interval(math.nan, math.nan, math.nan, RANGE[1] - RANGE[0])
    effect = detectable_effect(pairs, error, chance, spread.degrees_of_freedom)
    return with_range(spread, lambda sd: effect * sd)


@lru_cache(maxsize=1024)
def detectable_effect(
    pairs: int, error: float, chance: float, degrees_of_freedom: float | None = None
) -> float:
    """The smallest |mean| / sd that `pairs` show with probability `chance`."""
    high = 1.0
    while chance_of_difference(high, pairs, error, degrees_of_freedom) < chance:
        high *= 2
    return float(
        optimize.brentq(
            lambda effect: chance_of_difference(effect, pairs, error, degrees_of_freedom) - chance,
            0.0,
            high,
        )
    )


def seeds_for_difference(
    spread: Spread, pairs: int, effect: float, error: float = 0.05, chance: float = POWER
) -> Interval:
    """The fewest seeds that show a true difference `effect` with probability `chance`.

    `effect` in the measure's units, named beforehand (a margin), not the difference that was
    observed, whose chance the range does not contain. `pairs`: those the spread was measured with;
    what moderation added to its degrees of freedom stays. Infinite above a million.
    """
    added = _added(spread, pairs)
    return with_range(
        spread,
        lambda sd: fewest(
            lambda n: chance_of_difference(effect / sd, n, error, n - 1 + added) >= chance
        ),
    )


def seeds_for_equality(
    spread: Spread, pairs: int, margin: float, error: float = 0.05, chance: float = POWER
) -> Interval:
    """The fewest seeds that show equality within +-margin with probability `chance`, where the arm
    does not differ; as `seeds_for_difference`."""
    added = _added(spread, pairs)
    return with_range(
        spread,
        lambda sd: fewest(
            lambda n: chance_of_equality(margin / sd, n, error, n - 1 + added) >= chance
        ),
    )


def _added(spread: Spread, pairs: int) -> float:
    return max(0.0, spread.degrees_of_freedom - (pairs - 1))


def with_range(spread: Spread, of_sd: Callable[[float], float]) -> Interval:
    """A quantity that grows with the standard deviation, at the measured one and at the 10 and
    90 % points of what the true one may be."""
    low, high = sd_range(spread)
    return Interval(of_sd(spread.sd), of_sd(low), of_sd(high), RANGE[1] - RANGE[0])


def sd_range(spread: Spread) -> tuple[float, float]:
    """sd sqrt(d / chi2_d) at the two ends of RANGE; never below the floor."""
    df = spread.degrees_of_freedom
    if math.isinf(df):
        return spread.sd, spread.sd
    low, high = (
        spread.sd * math.sqrt(df / float(stats.chi2.ppf(q, df))) for q in (RANGE[1], RANGE[0])
    )
    return max(low, min(spread.floor, spread.sd)), high


def fewest(enough: Callable[[int], bool]) -> float:
    """The smallest number of seeds, three or more, that is enough; infinite above a million."""
    low, high = MIN_PAIRS - 1, MIN_PAIRS
    while not enough(high):
        low, high = high, high * 2
        if high > MOST_SEEDS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)
