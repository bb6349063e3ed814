"""The four verdicts on one arm: better, worse, equal, undecided.

One interval decides and is the one that is printed: better or worse where it excludes zero, equal
where it lies within +-margin. So a figure and a verdict cannot disagree, and a false claim of any
of the three kinds needs an interval that misses the truth. An interval that excludes zero within
the margin is equal: the difference is real and not worth the margin (`Comparison.sign` tells).

    compare([0.031, 0.018, 0.027, 0.022, 0.035], margin=0.01).verdict    # "better"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.evidence.intervals import Interval, student, unknown
from harness.evidence.moderation import Spread, plain

MIN_PAIRS = 3
"""Below this no interval is given and nothing is concluded."""
LEAST_SPREAD = 1e-3
"""A standard deviation below this fraction of the mean is no measurement of chance: rounding, a tie
or a defect makes it, and its t statistic exceeds a thousand. With a known floor it is not asked."""

Verdict = Literal["better", "worse", "equal", "undecided"]
Reason = Literal["interval", "identical", "too few pairs", "no spread"]
"""What the verdict rests on: the interval; differences that are 0 with every seed, which are equal;
or why there is nothing to rest on."""


@dataclass(frozen=True)
class Comparison:
    """One arm minus the reference, paired by seed, in the measure's units; higher is better."""

    interval: Interval
    """Of the mean paired difference, at the level that decides."""
    pairs: int
    spread: Spread
    """Standard deviation and degrees of freedom that the interval uses."""
    margin: float | None
    """Differences up to this are worth nothing; None: never equal."""
    verdict: Verdict
    reason: Reason

    @property
    def mean(self) -> float:
        """The mean paired difference."""
        return self.interval.estimate

    @property
    def level(self) -> float:
        """The level of the interval."""
        return self.interval.level

    @property
    def sign(self) -> int:
        """+1 or -1 where the interval that decides excludes zero, whatever the margin; else 0."""
        return self.interval.sign if self.reason == "interval" else 0


def compare(
    differences: Sequence[float],
    *,
    margin: float | None = None,
    level: float = 0.95,
    spread: Spread | None = None,
) -> Comparison:
    """The verdict on paired differences [n], at `level` (`simultaneous_level` for several arms).

    `spread`: of these differences, from `moderation.moderate` or `plain(differences, floor)`;
    without one, that of the differences alone. With fewer than three pairs, or with a spread too
    small to be a measurement (`LEAST_SPREAD`), undecided, and `reason` says so. Raises ValueError
    for differences that are not finite, a level outside (0, 1] or a margin that is not above 0.
    """
    values = np.asarray(differences, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"paired differences must be finite: {differences}")
    if not 0 < level <= 1:
        raise ValueError(f"a level lies between 0 and 1: {level}")
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin is above 0: {margin}")
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    spread = plain(differences) if spread is None else spread
    if n < MIN_PAIRS:
        return Comparison(unknown(mean, level), n, spread, margin, "undecided", "too few pairs")
    if (
        spread.floor == 0 and not values.any()
    ):  # as of arms that are configured differently and compute the same
        return Comparison(unknown(0.0, level), n, spread, margin, "equal", "identical")
    if spread.floor == 0 and spread.sd <= LEAST_SPREAD * float(np.abs(values).max()):
        return Comparison(unknown(mean, level), n, spread, margin, "undecided", "no spread")
    interval = student(mean, spread.sd, n, spread.degrees_of_freedom, level)
    return Comparison(interval, n, spread, margin, verdict_of(interval, margin), "interval")


def verdict_of(interval: Interval, margin: float | None) -> Verdict:
    """What an interval of a difference says."""
    if margin is not None and interval.within(margin):
        return "equal"
    return {1: "better", -1: "worse", 0: "undecided"}[interval.sign]  # type: ignore[return-value]


def simultaneous_level(comparisons: int, level: float = 0.95) -> float:
    """The level of each of several intervals that hold together with `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, comparisons)
