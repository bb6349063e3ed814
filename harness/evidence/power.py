"""Seeds needed for an effect, fixed and with looks, from a measured spread.

Looks are simulated, not approximated: at five seeds a t statistic is far from the Brownian motion
that the boundaries are computed for. The simulation draws means and sums of squares, so its cost
does not grow with the seeds, and gives the same numbers every time.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.evidence.intervals import Interval
from harness.evidence.moderation import Spread
from harness.evidence.resolution import (
    fewest,
    sd_range,
    seeds_for_difference,
    seeds_for_equality,
)
from harness.evidence.sequential import LOOKS, Plan
from harness.evidence.verdict import MIN_PAIRS

STUDIES = 20_000
CHANCES = (0.8, 0.9)

Goal = Literal["difference", "equality"]


@dataclass(frozen=True)
class Chances:
    """What one comparison with looks comes to."""

    better: float
    worse: float
    equal: float
    undecided: float
    seeds: float
    """Pairs it takes on average."""


@dataclass(frozen=True)
class Needed:
    """Seeds per arm for one chance of a verdict, each with its range of 10 to 90 %."""

    chance: float
    fixed: Interval
    most: Interval
    """With looks, where the last look comes latest."""
    average: Interval
    """With looks, on average."""


def chances(
    plan: Plan,
    effect: float,
    margin: float | None = None,
    *,
    added: float = 0.0,
    studies: int = STUDIES,
    seed: int = 0,
) -> Chances:
    """Of one comparison by `plan` whose true difference is `effect`; both it and the margin in sd.

    `added`: degrees of freedom that moderation adds to the spread.
    """
    rng = np.random.default_rng(seed)
    mean = np.zeros(studies)
    squares = rng.chisquare(added, studies) if added > 0 else np.zeros(studies)
    counts = dict.fromkeys(("better", "worse", "equal"), 0)
    active = np.ones(studies, dtype=bool)
    pairs, seeds = 0, 0.0
    for look in plan.all_looks():
        new = look.pairs - pairs
        block = effect + rng.standard_normal(studies) / math.sqrt(new)
        squares += pairs * new / look.pairs * (block - mean) ** 2
        squares += rng.chisquare(new - 1, studies) if new > 1 else 0.0
        mean += (block - mean) * new / look.pairs
        pairs = look.pairs
        df = pairs - 1 + added
        half = look.boundary(df) * np.sqrt(squares / (df * pairs))
        equal = active & (np.abs(mean) + half <= (-1.0 if margin is None else margin))
        better, worse = (active & ~equal & (sign * mean > half) for sign in (1, -1))
        for name, those in (("equal", equal), ("better", better), ("worse", worse)):
            counts[name] += int(those.sum())
            active = active & ~those
            seeds += pairs * int(those.sum())
    seeds += pairs * int(active.sum())
    fractions = {name: count / studies for name, count in counts.items()}
    return Chances(**fractions, undecided=float(active.mean()), seeds=seeds / studies)


def scaled(plan: Plan, most: int) -> Plan:
    """The plan with another last look, the earlier ones in proportion."""
    looks = sorted({max(MIN_PAIRS, round(n * most / plan.most)) for n in plan.looks})
    return Plan(tuple(looks), plan.comparisons, plan.level, plan.rho)


def needed(
    spread: Spread,
    pairs: int,
    effect: float,
    *,
    goal: Goal = "difference",
    comparisons: int = 1,
    chance: float = 0.8,
    looks: tuple[int, ...] = LOOKS,
) -> Needed:
    """Seeds for a verdict with probability `chance`, of one of several comparisons.

    `spread`: of paired differences, measured with `pairs` pairs. `effect`, in the measure's units:
    the true difference to be shown, or with the goal "equality" the margin around none. With looks
    the last one is the fewest pairs that have the chance, the earlier ones in proportion to
    `looks`. Infinite above a million.
    """
    plan = Plan(looks, comparisons)
    added = max(0.0, spread.degrees_of_freedom - (pairs - 1))
    added = 0.0 if math.isinf(added) else added
    fixed = (seeds_for_difference if goal == "difference" else seeds_for_equality)(
        spread, pairs, effect, plan.error, chance
    )

    def at(plan: Plan, sd: float) -> tuple[float, float]:
        if goal == "difference":
            found = chances(plan, abs(effect) / sd, added=added)
            return found.better, found.seeds
        found = chances(plan, 0.0, effect / sd, added=added)
        return found.equal, found.seeds

    low, high = sd_range(spread)
    most, average = [], []
    for sd in (spread.sd, low, high):
        last = fewest(lambda n, sd=sd: at(scaled(plan, n), sd)[0] >= chance)  # type: ignore[misc]
        most.append(last)
        average.append(at(scaled(plan, int(last)), sd)[1] if math.isfinite(last) else math.inf)
    return Needed(
        chance, fixed, *(Interval(v[0], v[1], v[2], fixed.level) for v in (most, average))
    )
