"""Seeds until it is decided: looks at growing numbers of seeds whose errors add up to alpha.

Group-sequential error spending (Lan and DeMets 1983): a look at n_k of at most n_K pairs has
information f_k = n_k / n_K, and alpha f_k^rho may be spent until then (Kim and DeMets 1987). The
nominal level p_k of a look solves P(no crossing before, crossing at k) = what it may spend, for a
Brownian motion seen at f_1 < ... < f_k, by recursive integration (Armitage, McPherson and Rowe
1969). The paired t statistic is held against the t quantile at p_k (the significance-level approach
of Jennison and Turnbull 2000, chapter 4).

The interval at level 1 - p_k is what a look prints and what decides (`harness.statistics.verdict`).
Such intervals hold the truth at all looks together with 1 - alpha (Jennison and Turnbull's repeated
confidence intervals, chapter 9), so better, worse and equal are claims of one kind. Within +-margin
is two one-sided tests at the same looks, each with its own alpha / 2. Several arms: Bonferroni.

A look that was skipped is re-planned by spending: levels depend on the looks that were made, which
the caller records, never on what they showed.

    plan = Plan(comparisons=3)
    decision = decide(first_five_differences, plan, margin=0.02)
    decision = decide(first_twelve_differences, plan, earlier=(5,), margin=0.02)   # 8 was skipped
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from harness.statistics.moderation import Spread, moderate, plain
from harness.statistics.verdict import Comparison, Verdict, compare

LOOKS = (5, 8, 12, 16, 24, 32)
RHO = 2.0
LEGENDRE = np.polynomial.legendre.leggauss(96)
"""Nodes and weights of the density between two boundaries."""
FARTHEST = 38.0
"""Standard normal bound beyond which a double knows no probability."""
REACH = 9.0
"""Standard deviations beyond which the density is not followed: it is below 1e-17."""

Values = npt.NDArray[np.float64]
Spending = Callable[[float], float]
"""The error that may be spent until information f in [0, 1]; 0 at 0, alpha at 1."""


@lru_cache(maxsize=256)
def power_spending(error: float, rho: float = RHO) -> Spending:
    """alpha f^rho (Kim and DeMets 1987)."""
    return lambda fraction: error * min(1.0, fraction) ** rho


@lru_cache(maxsize=256)
def obrien_fleming_spending(error: float) -> Spending:
    """2 - 2 Phi(z_{alpha/2} / sqrt(f)), much like O'Brien and Fleming's (Lan and DeMets 1983)."""
    z = -float(special.ndtri(error / 2))
    return lambda fraction: 2 * float(special.ndtr(-z / math.sqrt(min(1.0, fraction))))


def nominal_levels(fractions: Sequence[float], spending: Spending) -> tuple[float, ...]:
    """The two-sided level p_k of each look at growing information `fractions`.

    A look that may spend nothing gets 0. Raises ValueError where fractions do not grow.
    """
    if any(b <= a for a, b in zip((0.0, *fractions), fractions, strict=False)):
        raise ValueError(f"looks need growing numbers of pairs: {fractions}")
    return tuple(
        _uncrossed(tuple(fractions[: k + 1]), spending).error for k in range(len(fractions))
    )


@dataclass(frozen=True)
class _Uncrossed:
    """The paths B(f) that have crossed no boundary after a look: probability masses at nodes."""

    error: float
    """The look's p_k."""
    spent: float
    nodes: Values
    masses: Values


@lru_cache(maxsize=4096)
def _uncrossed(fractions: tuple[float, ...], spending: Spending) -> _Uncrossed:
    """After the last of these looks; one step of the recursion."""
    if not fractions:
        return _Uncrossed(0.0, 0.0, np.zeros(1), np.ones(1))
    before = _uncrossed(fractions[:-1], spending)
    root = math.sqrt(fractions[-1])
    step = math.sqrt(fractions[-1] - (fractions[-2] if len(fractions) > 1 else 0.0))
    allowed = max(0.0, spending(fractions[-1]) - before.spent)

    def crossing(z: float) -> float:
        up, down = (before.nodes - z * root) / step, (-before.nodes - z * root) / step
        return float(before.masses @ (special.ndtr(up) + special.ndtr(down)))

    if allowed == 0:
        z = FARTHEST
    elif crossing(0.0) <= allowed:
        z = 0.0
    else:
        z = float(optimize.brentq(lambda z: crossing(z) - allowed, 0, FARTHEST, xtol=1e-12))
    unit, weights = LEGENDRE
    reach = min(z, REACH) * root
    distance = (reach * unit[:, None] - before.nodes) / step
    density = np.exp(-(distance**2) / 2) / (step * math.sqrt(2 * math.pi))
    return _Uncrossed(
        error=2 * float(special.ndtr(-z)) if allowed > 0 else 0.0,
        spent=before.spent + allowed,
        nodes=reach * unit,
        masses=reach * weights * (density @ before.masses),
    )


@dataclass(frozen=True)
class Look:
    """One look at a comparison, made or planned."""

    number: int
    """From 1."""
    pairs: int
    information: float
    spent: float
    """Error of this comparison that is spent with this look and those before it."""
    error: float
    """The nominal two-sided level p_k; the look's interval has level 1 - p_k."""

    def boundary(self, degrees_of_freedom: float) -> float:
        """The |t| that decides at this look."""
        return float(stats.t.isf(self.error / 2, degrees_of_freedom))


@dataclass(frozen=True)
class Plan:
    """When an arm is looked at, and how the error is spent."""

    looks: tuple[int, ...] = LOOKS
    """Pairs at each look; the last is the most."""
    comparisons: int = 1
    """Arms that are compared with the reference; they share the error (Bonferroni)."""
    level: float = 0.95
    rho: float = RHO

    @property
    def error(self) -> float:
        """The error of one comparison over all its looks."""
        return (1 - self.level) / self.comparisons

    @property
    def most(self) -> int:
        """The pairs of the last look."""
        return self.looks[-1]

    def all_looks(self, made: Sequence[int] = ()) -> tuple[Look, ...]:
        """Looks that were made, by their pairs, and the planned ones after them."""
        last = made[-1] if made else 0
        pairs = (*made, *(n for n in self.looks if n > last))
        fractions = [n / self.most for n in pairs]
        spending = power_spending(self.error, self.rho)
        errors = nominal_levels(fractions, spending)
        return tuple(
            Look(k + 1, n, fraction, spending(fraction), error)
            for k, (n, fraction, error) in enumerate(zip(pairs, fractions, errors, strict=True))
        )


@dataclass(frozen=True)
class Decision:
    """What one look at one comparison gave."""

    look: Look
    comparison: Comparison
    """With the interval of this look."""
    statistic: float
    """t against no difference; NaN without a usable spread."""
    equality_statistic: float
    """(margin - |mean|) / standard error: the smaller of the two one-sided t; NaN without one."""
    boundary: float
    """What |statistic| must exceed for better or worse, the equality statistic for equal."""
    next_look: Look | None
    """The next planned one; None after the last or where it is decided."""

    @property
    def verdict(self) -> Verdict:
        """The verdict of this look; one that is not undecided is final."""
        return self.comparison.verdict

    @property
    def decided(self) -> bool:
        """Whether the arm needs no further seeds."""
        return self.verdict != "undecided"

    @property
    def to_difference(self) -> float:
        """How much |t| lacks for better or worse; 0 or less where it is beyond the boundary."""
        return self.boundary - abs(self.statistic)

    @property
    def to_equality(self) -> float:
        """How much the equality statistic lacks; NaN without a margin."""
        return self.boundary - self.equality_statistic


def decide(
    differences: Sequence[float],
    plan: Plan,
    *,
    earlier: Sequence[int] = (),
    margin: float | None = None,
    spread: Spread | None = None,
) -> Decision:
    """Look at the paired differences [n], after looks at `earlier` numbers of pairs.

    n need not be a planned number. `spread` as in `compare`. Raises ValueError where n is not more
    than at the look before.
    """
    n = len(differences)
    if earlier and n <= earlier[-1]:
        raise ValueError(f"a look at {n} pairs after one at {earlier[-1]}")
    looks = plan.all_looks((*earlier, n))
    look = looks[len(earlier)]
    comparison = compare(differences, margin=margin, level=1 - look.error, spread=spread)
    used = comparison.spread
    statistic = equality = math.nan
    if comparison.reason == "interval":
        error = used.sd / math.sqrt(n)
        statistic = comparison.mean / error
        equality = (margin - abs(comparison.mean)) / error if margin is not None else math.nan
    return Decision(
        look=look,
        comparison=comparison,
        statistic=statistic,
        equality_statistic=equality,
        boundary=look.boundary(used.degrees_of_freedom),
        next_look=looks[look.number]
        if comparison.verdict == "undecided" and look.number < len(looks)
        else None,
    )


def follow(
    differences: Mapping[str, Sequence[float]],
    plan: Plan,
    *,
    margin: float | None = None,
    floor: float | Mapping[str, float] = 0.0,
    moderated: bool = True,
) -> dict[str, tuple[Decision, ...]]:
    """The looks of every arm of a study, each until it is decided or its pairs are used up.

    `differences[arm]`: paired differences in the order of their seeds [n of the arm]. At a planned
    look an arm has its first n_k pairs, or all it has where those are fewer, and arms that are
    decided keep theirs; spreads are moderated over the arms as they stand there. Arms with no pairs
    get no look.
    """
    decisions: dict[str, tuple[Decision, ...]] = dict.fromkeys(differences, ())
    shown: dict[str, Sequence[float]] = {arm: [] for arm in differences}
    for pairs in plan.looks:
        active = [
            arm
            for arm, values in differences.items()
            if not (decisions[arm] and decisions[arm][-1].decided)
            and min(pairs, len(values)) > len(shown[arm])
        ]
        shown |= {arm: differences[arm][:pairs] for arm in active}
        spreads = (
            moderate(shown, floor)
            if moderated
            else {
                arm: plain(shown[arm], floor[arm] if isinstance(floor, Mapping) else floor)
                for arm in active
            }
        )
        for arm in active:
            made = [decision.look.pairs for decision in decisions[arm]]
            found = decide(shown[arm], plan, earlier=made, margin=margin, spread=spreads[arm])
            decisions[arm] = (*decisions[arm], found)
    return decisions


def sequential_p(p: Sequence[float], pairs: Sequence[int], most: int, rho: float = RHO) -> float:
    """One p value of a comparison from its nominal t tests `p` at looks of `pairs` [looks].

    The smallest error alpha whose boundaries any of the looks crosses (repeated p value; Jennison
    and Turnbull 2000, section 9.4). Valid whenever one stops; enters Holm's adjustment like any
    other. For one look at `most` pairs it is that look's p.
    """
    if len(p) != len(pairs):
        raise ValueError(f"{len(p)} p values for {len(pairs)} looks")
    if not p or not all(0 <= value <= 1 for value in p):
        raise ValueError(f"p values lie between 0 and 1: {p}")

    def crossed(error: float) -> bool:
        levels = nominal_levels([n / most for n in pairs], power_spending(error, rho))
        return any(value <= level for value, level in zip(p, levels, strict=True))

    low, high = math.log(1e-15), 0.0
    if not crossed(1.0):
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if crossed(math.exp(middle)) else (middle, high)
    return math.exp(high)
