"""What several views take of values above zero: means and ratios on the logarithm.

Errors, KL divergences and times vary by their own size, so that a Student interval stands on their
logarithms.
"""

import math
from collections.abc import Mapping, Sequence

from harness.stats import LEVEL, Interval, mean_interval


def geometric(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Geometric mean with its interval; `sd` is that of the logarithms. Values that are not above
    zero are dropped and counted."""
    return exponential(mean_interval([math.log(v) if v > 0 else math.nan for v in values], level))


def ratio(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> Interval:
    """Geometric mean of values over reference, paired by seed."""
    both = sorted(values.keys() & reference.keys())
    return geometric([values[seed] / reference[seed] for seed in both], level)


def exponential(found: Interval) -> Interval:
    """Of an interval on the logarithm, that of the value itself."""
    mean, low, high = (math.exp(x) for x in (found.mean, found.low, found.high))
    return Interval(mean, low, high, found.sd, found.n, found.level, found.dropped)


def side(found: Interval) -> int:
    """+1 or -1 where a ratio's interval lies wholly above or below 1, else 0."""
    if not (found.known and found.varies):
        return 0
    return 1 if found.low > 1 else -1 if found.high < 1 else 0
