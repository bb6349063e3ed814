"""An estimate with its interval, and Student's interval of a mean."""

import math
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it; NaN where there is none."""

    estimate: float
    low: float
    high: float
    level: float
    """Chance that such an interval holds the truth: 0.95, or 0.8 for a range of 10 to 90 %."""

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval lies wholly above or below zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def within(self, margin: float) -> bool:
        """Whether the interval lies within +-margin."""
        return -margin <= self.low and self.high <= margin

    def holds(self, value: float) -> bool:
        """Whether the interval contains the value."""
        return self.low <= value <= self.high


def unknown(estimate: float, level: float) -> Interval:
    """An estimate without an interval."""
    return Interval(estimate, math.nan, math.nan, level)


def student(mean: float, sd: float, n: int, degrees_of_freedom: float, level: float) -> Interval:
    """mean +- t sd / sqrt(n), t the two-sided quantile at `level` (Student 1908).

    A level of 1 gives an interval without bounds.
    """
    half = float(stats.t.isf((1 - level) / 2, degrees_of_freedom)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, level)
