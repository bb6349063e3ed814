"""Reward against cost: which arms nothing cheaper beats, and which differ significantly.

A front of means alone says more than the seeds do. So every arm is also compared, seed by seed,
with the best one that costs no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.analysis.analyse import ArmResult
from harness.stats import Interval, mean_interval, paired_differences, simultaneous_level

if TYPE_CHECKING:
    from harness.overall.studies import Study

STUDIES = ("methods", "overhead")
"""The studies whose arms are drawn, where they are comparable."""

COSTS = ("seconds", "evaluations")


@dataclass(frozen=True)
class Point:
    """An arm of a study: reward after training against what one run costs."""

    study: str
    result: ArmResult
    reward: Interval
    cost: dict[str, Interval]
    """By kind; without seconds where they were measured otherwise than the first study's."""
    same_as: tuple[str, ...]
    """Arms of other studies that are the same runs, by label."""

    @property
    def label(self) -> str:
        return self.result.arm.label


@dataclass(frozen=True)
class Step:
    """A point against the one with the highest reward among those that cost no more."""

    point: Point
    against: Point
    difference: Interval
    """Point minus the other, paired by seed. The other one is chosen by the same rewards, so that
    the interval is one of those that hold for all pairs of arms together with 95 %."""

    @property
    def verdict(self) -> Literal["higher", "lower", "not significant", "unknown"]:
        """Unknown: too few shared seeds, or a difference that no seed changes."""
        if not self.difference.known or not self.difference.varies:
            return "unknown"
        return {1: "higher", -1: "lower", 0: "not significant"}[self.difference.sign]  # type: ignore[return-value]


def points(studies: "Sequence[Study]") -> list[Point]:
    """The arms that have an interval; those that two studies share once."""
    chosen = sorted((s for s in studies if s.sweep.name in STUDIES), key=_order)
    by_runs: dict[frozenset[str], Point] = {}
    for study in chosen:
        if _conditions(study) != _conditions(chosen[0]):
            continue
        hashes = hashes_by_arm(study)
        for result in study.analysis.arms:
            if not result.rewards[study.analysis.measure].after.known:
                continue
            runs = hashes[result.arm.name]
            twin = next((other for other in by_runs if runs <= other or other <= runs), None)
            if twin is not None:
                by_runs[twin] = _joined(by_runs[twin], result)
                continue
            kinds = {"evaluations": result.cost.evaluations_per_run}
            if study.analysis.core_time == chosen[0].analysis.core_time:
                kinds["seconds"] = result.cost.seconds_per_run
            reward = result.rewards[study.analysis.measure].after
            by_runs[runs] = Point(study.sweep.name, result, reward, kinds, ())
    return list(by_runs.values())


def _order(study: "Study") -> int:
    return STUDIES.index(study.sweep.name)


def _conditions(study: "Study") -> Any:
    """What two studies must have in common for their rewards to be set side by side."""
    config = study.sweep.runs[0].config
    return study.analysis.measure, config.model, config.evaluation, config.iterations


def distinct(studies: "Sequence[Study]") -> "list[Study]":
    """Those that compare anything that no larger one does, and of equal ones the first: studies may
    share their runs."""
    pairs = []
    for study in studies:
        hashes, references = hashes_by_arm(study), study.sweep.references
        pairs.append(
            {(runs, hashes[references[a]]) for a, runs in hashes.items() if references[a] != a}
        )
    seen: set[tuple[frozenset[str], frozenset[str]]] = set()
    kept = set()
    for index in sorted(range(len(studies)), key=lambda i: -len(pairs[i])):
        if not pairs[index] <= seen:
            kept.add(index)
        seen |= pairs[index]
    return [study for index, study in enumerate(studies) if index in kept]


def hashes_by_arm(study: "Study") -> dict[str, frozenset[str]]:
    """Equal hashes are equal runs, whichever study they stand in."""
    of_arms: dict[str, set[str]] = {arm.name: set() for arm in study.sweep.arms}
    for run in study.sweep.runs:
        of_arms[run.arm].add(run.hash)
    return {arm: frozenset(hashes) for arm, hashes in of_arms.items()}


def _joined(point: Point, twin: ArmResult) -> Point:
    names = dict.fromkeys((*point.same_as, twin.arm.label))
    return Point(point.study, point.result, point.reward, point.cost, tuple(names))


def front(of: Sequence[Point], cost: str) -> list[Point]:
    """The points that no cheaper or equally cheap one reaches, cheapest first."""
    best: list[Point] = []
    for point in _cheapest_first(of, cost):
        if not best or point.reward.mean > best[-1].reward.mean:
            best.append(point)
    return best


def steps(of: Sequence[Point], cost: str) -> list[Step]:
    """Every point but the cheapest against the best among those that cost no more."""
    priced = _cheapest_first(of, cost)
    level = simultaneous_level(len(of) * (len(of) - 1) // 2)
    compared = []
    for index, point in enumerate(priced[1:], start=1):
        against = max(priced[:index], key=lambda p: p.reward.mean)
        pairs, _ = paired_differences(point.result.after, against.result.after)
        compared.append(Step(point, against, mean_interval(list(pairs.values()), level)))
    return compared


def _cheapest_first(of: Sequence[Point], cost: str) -> list[Point]:
    priced = [p for p in of if cost in p.cost]
    return sorted(priced, key=lambda p: (p.cost[cost].mean, -p.reward.mean))
