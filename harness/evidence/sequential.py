"""Seeds until it is decided: looks at growing numbers of seeds whose errors add up to alpha.

Group-sequential error spending (Lan and DeMets 1983): until a look at n_k of at most n_K seeds,
f_k = n_k / n_K, alpha f_k^rho may be spent (Kim and DeMets 1987). The nominal level p_k of a look
solves P(no crossing before, crossing at k) = what it may spend, for a Brownian motion seen at the
looks' numbers of pairs, by recursive integration (Armitage, McPherson and Rowe 1969). The paired t
statistic is held against the t quantile at p_k (the significance-level approach of Jennison and
Turnbull 2000, chapter 4).

The interval at level 1 - p_k is what a look prints and what decides (`harness.evidence.verdict`).
Such intervals hold the truth at all looks together with 1 - alpha (Jennison and Turnbull's repeated
confidence intervals, chapter 9), so better, worse and equal are claims of one kind. Within +-margin
is two one-sided tests at the same looks, each with its own alpha / 2. Several arms: Bonferroni.

A look that was skipped is re-planned by spending: levels depend on the looks that were made, which
the caller records, never on what they showed. A seed without a pair (a lost or collapsed run)
counts as a seed for spending and not as a pair (two time scales; Lan and DeMets 1989), so that the
last look spends all there is.

    plan = Plan(comparisons=3)
    decision = decide(first_five, plan, margin=0.02)
    # The look at 8 seeds was skipped; of 12 seeds, one has no pair.
    decision = decide(eleven, plan, seeds=12, earlier=[(5, 5)], margin=0.02)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from harness.evidence.moderation import Spread, moderate, plain
from harness.evidence.verdict import Comparison, Verdict, compare

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
"""The error that may be spent until fraction f in [0, 1] of the seeds; 0 at 0, alpha at 1."""
Made = tuple[int, int]
"""A look that was made: seeds until then, and pairs among them."""


def power_spending(error: float, rho: float = RHO) -> Spending:
    """alpha f^rho (Kim and DeMets 1987)."""
    return lambda fraction: error * min(1.0, fraction) ** rho


def obrien_fleming_spending(error: float) -> Spending:
    """2 - 2 Phi(z_{alpha/2} / sqrt(f)), much like O'Brien and Fleming's (Lan and DeMets 1983)."""
    z = -float(special.ndtri(error / 2))
    return lambda fraction: 2 * float(special.ndtr(-z / math.sqrt(min(1.0, fraction))))


def nominal_levels(information: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """The two-sided level p_k of each look.

    `information`: growing, in any unit (pairs). `spent`: error that may be spent until each look; a
    look that adds nothing gets level 0. Raises ValueError where information does not grow.
    """
    if any(b <= a for a, b in zip((0.0, *information), information, strict=False)):
        raise ValueError(f"looks need growing numbers of pairs: {information}")
    looks = tuple(zip(information, spent, strict=True))
    return tuple(_uncrossed(looks[: k + 1]).error for k in range(len(looks)))


@dataclass(frozen=True)
class _Uncrossed:
    """The paths B(f) that have crossed no boundary after a look: probability masses at nodes."""

    error: float
    """The look's p_k."""
    spent: float
    nodes: Values
    masses: Values


@lru_cache(maxsize=4096)
def _uncrossed(looks: tuple[tuple[float, float], ...]) -> _Uncrossed:
    """After the last of these looks (information, spent); one step of the recursion."""
    if not looks:
        return _Uncrossed(0.0, 0.0, np.zeros(1), np.ones(1))
    before = _uncrossed(looks[:-1])
    information, spent = looks[-1]
    root = math.sqrt(information)
    step = math.sqrt(information - (looks[-2][0] if len(looks) > 1 else 0.0))
    allowed = max(0.0, spent - before.spent)

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
    seeds: int
    pairs: int
    """Of a planned look: where no more are lost."""
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
    """Seeds at each look; the last is the most."""
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
        """The seeds of the last look."""
        return self.looks[-1]

    def all_looks(self, made: Sequence[Made] = ()) -> tuple[Look, ...]:
        """Looks that were made and the planned ones after them."""
        last, pairs = made[-1] if made else (0, 0)
        both = [*made, *((n, pairs + n - last) for n in self.looks if n > last)]
        spending = power_spending(self.error, self.rho)
        spent = [spending(seeds / self.most) for seeds, _ in both]
        errors = nominal_levels([pairs for _, pairs in both], spent)
        return tuple(
            Look(k + 1, *look, of_look, error)
            for k, (look, of_look, error) in enumerate(zip(both, spent, errors, strict=True))
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
    seeds: int | None = None,
    earlier: Sequence[Made] = (),
    margin: float | None = None,
    spread: Spread | None = None,
) -> Decision:
    """Look at the paired differences [n] of `seeds` seeds (n unless given), after `earlier` looks.

    The number of seeds need not be a planned one. `spread` as in `compare`. Raises ValueError where
    seeds or pairs are not more than at the look before, or fewer seeds than pairs.
    """
    n = len(differences)
    seeds = n if seeds is None else seeds
    if seeds < n or (earlier and (n <= earlier[-1][1] or seeds <= earlier[-1][0])):
        raise ValueError(f"a look at {seeds} seeds and {n} pairs after {list(earlier)}")
    looks = plan.all_looks((*earlier, (seeds, n)))
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
    margin: Callable[[int], Mapping[str, float | None]] | float | None = None,
    floor: float | Mapping[str, float] = 0.0,
    moderated: bool = True,
) -> dict[str, tuple[Decision, ...]]:
    """The looks of every arm of a study, each until it is decided or its pairs are used up.

    `differences[arm]`: paired differences in the order of the seeds [seeds of the arm], NaN where a
    seed has no pair. At a planned look an arm has its first n_k seeds, or all it has where those
    are fewer, and arms that are decided keep theirs; spreads are moderated over the arms as they
    stand there. An arm without a new pair is not looked at. `margin`: of all arms at
    all looks, or by arm for a look at so many seeds: it may rest on these seeds alone, so that a
    later look does not change an earlier one.
    """
    decisions: dict[str, tuple[Decision, ...]] = dict.fromkeys(differences, ())
    shown: dict[str, list[float]] = {arm: [] for arm in differences}
    for planned in plan.looks:
        active = []
        for arm, values in differences.items():
            pairs = [value for value in values[:planned] if not math.isnan(value)]
            decided = decisions[arm] and decisions[arm][-1].decided
            if not decided and len(pairs) > len(shown[arm]):
                shown[arm] = pairs
                active.append(arm)
        spreads = (
            moderate(shown, floor)
            if moderated
            else {
                arm: plain(pairs, floor[arm] if isinstance(floor, Mapping) else floor)
                for arm, pairs in shown.items()
            }
        )
        for arm in active:
            found = decide(
                shown[arm],
                plan,
                seeds=min(planned, len(differences[arm])),
                earlier=[(d.look.seeds, d.look.pairs) for d in decisions[arm]],
                margin=margin(planned)[arm] if callable(margin) else margin,
                spread=spreads[arm],
            )
            decisions[arm] = (*decisions[arm], found)
    return decisions


def sequential_p(p: Sequence[float], looks: Sequence[Made], most: int, rho: float = RHO) -> float:
    """One p value of a comparison from its nominal t tests `p` at looks, of at most `most` seeds.

    The smallest error alpha whose boundaries any of the looks crosses (repeated p value; Jennison
    and Turnbull 2000, section 9.4). Valid whenever one stops; enters Holm's adjustment like any
    other. For one look at `most` seeds it is that look's p.
    """
    if len(p) != len(looks):
        raise ValueError(f"{len(p)} p values for {len(looks)} looks")
    if not p or not all(0 <= value <= 1 for value in p):
        raise ValueError(f"p values lie between 0 and 1: {p}")

    def crossed(error: float) -> bool:
        spending = power_spending(error, rho)
        levels = nominal_levels(
            [pairs for _, pairs in looks], [spending(seeds / most) for seeds, _ in looks]
        )
        return any(value <= level for value, level in zip(p, levels, strict=True))

    low, high = math.log(1e-15), 0.0
    if not crossed(1.0):
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if crossed(math.exp(middle)) else (middle, high)
    return math.exp(high)
