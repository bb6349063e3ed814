"""Collapse as an outcome of its own, and what an arm gives with and without it.

With one run in ten collapsing, a t interval of eight seeds covers 86 %: the mean of such values is
dominated by whether a seed collapsed. So the rate of collapse is one result, with an exact
interval, and the values of the seeds that did not collapse another. Which runs collapsed the caller
says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from harness.evidence.intervals import Interval, student, unknown

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Centre:
    """Where the values of several seeds lie, in the measure's units; NaN without values."""

    seeds: int
    mean: Interval
    """With Student's interval from three seeds on. With collapsed seeds among the values it does
    not hold what it says."""
    median: float
    interquartile_mean: float
    """Mean of the middle half (rliable's IQM; Agarwal et al. 2021)."""


@dataclass(frozen=True)
class Outcome:
    """One arm's seeds."""

    collapsed: int
    rate: Interval
    """Fraction of runs that collapse (Clopper-Pearson)."""
    all_seeds: Centre
    without_collapsed: Centre


def outcome(values: Sequence[float], collapsed: Sequence[bool], level: float = 0.95) -> Outcome:
    """`values` [n] of an arm's seeds, and which of them collapsed [n].

    A collapsed seed whose value is not finite (a run that diverged) counts as collapsed and is left
    out of `all_seeds`. Raises ValueError for other values that are not finite.
    """
    given, bad = np.asarray(values, dtype=float), np.asarray(collapsed, dtype=bool)
    if given.shape != bad.shape:
        raise ValueError(f"{len(given)} values and {len(bad)} marks of collapse")
    if not np.isfinite(given[~bad]).all():
        raise ValueError("a value that is not finite belongs to a collapsed run")
    count = int(bad.sum())
    return Outcome(
        count,
        rate_interval(count, len(given), level),
        centre(given[np.isfinite(given)], level),
        centre(given[~bad], level),
    )


def centre(values: Any, level: float = 0.95) -> Centre:
    """Mean, median and interquartile mean of finite values [n]."""
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n == 0:
        return Centre(0, unknown(math.nan, level), math.nan, math.nan)
    mean = float(x.mean())
    interval = (
        student(mean, float(x.std(ddof=1)), n, n - 1, level) if n >= 3 else unknown(mean, level)
    )
    return Centre(n, interval, float(np.median(x)), float(stats.trim_mean(x, 0.25)))


def rate_interval(count: int, n: int, level: float = 0.95) -> Interval:
    """count / n with the exact interval of Clopper and Pearson (1934), from beta quantiles."""
    if n == 0:
        return unknown(math.nan, level)
    found = stats.binomtest(count, n).proportion_ci(level, "exact")
    return Interval(count / n, float(found.low), float(found.high), level)


def probability_of_improvement(
    arm: Sequence[float], reference: Sequence[float], level: float = 0.95
) -> Interval:
    """P(a run of the arm is above one of the reference), ties counting half.

    The mean over all pairs of runs of [x > y] + [x = y] / 2, the Mann-Whitney statistic over
    m n (rliable; Agarwal et al. 2021), of values [m] and [n]; a collapsed run counts with its low
    value, or -inf. The interval is not rliable's percentile bootstrap, which is [1, 1] wherever
    few runs separate, but Newcombe's (2006, method 5): all theta with
    (estimate - theta)^2 <= z^2 theta (1 - theta) (1 + N ((1 - theta) / (2 - theta)
    + theta / (1 + theta))) / (m n), N = (m + n) / 2 - 1. It takes the runs for independent; that
    arms with the same seed share noise makes it wider than needed, not narrower.
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(reference, dtype=float)
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("a run without a value cannot be ranked; give a collapsed one -inf")
    m, n = len(x), len(y)
    if not m or not n:
        return unknown(math.nan, level)
    above, same = x[:, None] > y, x[:, None] == y
    estimate = float((above + same / 2).mean())
    if min(m, n) < 3:
        return unknown(estimate, level)
    z2 = float(stats.norm.isf((1 - level) / 2)) ** 2
    added = (m + n) / 2 - 1

    def beyond(theta: float) -> float:
        shape = 1 + added * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (estimate - theta) ** 2 - z2 * theta * (1 - theta) * shape / (m * n)

    low = 0.0 if estimate == 0 else float(optimize.brentq(beyond, 0, estimate))
    high = 1.0 if estimate == 1 else float(optimize.brentq(beyond, estimate, 1))
    # At an estimate of 0 or 1 the other end is where the parabola meets the variance again.
    if estimate == 1:
        low = float(optimize.brentq(beyond, 1e-12, 1 - 1e-9))
    if estimate == 0:
        high = float(optimize.brentq(beyond, 1e-9, 1 - 1e-12))
    return Interval(estimate, low, high, level)
