"""Many claims at once: Holm for primary comparisons, Benjamini and Hochberg for exploratory ones.

Primary comparisons are declared beforehand, one per study; the chance that any claim of theirs is
false stays at the error. Everything else is exploratory: among its claims a known fraction may be
false, and their expected number is printed beside them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Adjusted:
    """One comparison's p before and after adjustment for its family; NaN where nothing could be
    tested."""

    p: float
    adjusted: float
    claimed: bool
    """Whether the adjusted p is at most the family's error."""


@dataclass(frozen=True)
class Exploratory:
    """Exploratory comparisons of one report."""

    comparisons: Mapping[str, Adjusted]
    error: float

    @property
    def tests(self) -> int:
        """Comparisons that could be tested."""
        return sum(math.isfinite(c.p) for c in self.comparisons.values())

    @property
    def claims(self) -> int:
        """Comparisons that are claimed after adjustment."""
        return sum(c.claimed for c in self.comparisons.values())

    @property
    def expected_false(self) -> float:
        """How many of the claims are false on average, at most: the error times their number."""
        return self.error * self.claims

    @property
    def expected_false_unadjusted(self) -> float:
        """So many claims there would be without any effects, were each test made at the error."""
        return self.error * self.tests


def holm(p: Mapping[str, float], error: float = 0.05) -> dict[str, Adjusted]:
    """Holm's step-down adjustment (Holm 1979): the i-th smallest of m p values times m - i + 1, and
    never below the one before. NaN stays NaN and does not count.

    For comparisons by looks, p is `sequential.sequential_p`.
    """
    order, m = _sorted(p)
    running, adjusted = 0.0, {}
    for rank, name in enumerate(order):
        running = max(running, min(1.0, (m - rank) * p[name]))
        adjusted[name] = running
    return _claims(p, adjusted, error)


def benjamini_hochberg(p: Mapping[str, float], error: float = 0.05) -> Exploratory:
    """Step-up adjustment (Benjamini and Hochberg 1995): the i-th smallest of m p values times
    m / i, and never above the one after. At most `error` of the claims are false on average."""
    order, m = _sorted(p)
    running, adjusted = 1.0, {}
    for rank in range(m, 0, -1):
        name = order[rank - 1]
        running = min(running, p[name] * m / rank)
        adjusted[name] = running
    return Exploratory(_claims(p, adjusted, error), error)


def expected_false_claims(errors: Sequence[float]) -> float:
    """The number of false claims to expect of several families where nothing differs: the sum of
    their errors; with k simultaneous intervals of one family that family's error, not k of them."""
    return float(np.sum(errors))


def _sorted(p: Mapping[str, float]) -> tuple[list[str], int]:
    bad = {name: value for name, value in p.items() if not (math.isnan(value) or 0 <= value <= 1)}
    if bad:
        raise ValueError(f"p values lie between 0 and 1: {bad}")
    tested = sorted((name for name in p if math.isfinite(p[name])), key=lambda name: p[name])
    return tested, len(tested)


def _claims(
    p: Mapping[str, float], adjusted: Mapping[str, float], error: float
) -> dict[str, Adjusted]:
    return {
        name: Adjusted(value, adjusted.get(name, math.nan), adjusted.get(name, 1.0) <= error)
        for name, value in p.items()
    }
