"""Where a sweep stands whose seeds go on until every arm is decided.

At each look (`Sweep.looks`) the arms that are not decided have their first seeds, and so have the
arms that they are compared with. Once all of these runs have ended, `harness.evidence.sequential`
decides; an arm that is better, worse or equal gets no further seeds. A run that failed for good
leaves a seed without a pair, and the look goes on with the others.

Nothing of it is stored: the same results give the same decisions, whoever asks and whenever. So a
command that was killed continues at the look it was at.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.planning.budget import fits
from harness.runs.state import RunState
from harness.study.spec import Run, Sweep

if TYPE_CHECKING:
    from harness.evidence.sequential import Decision, Plan

Settled = Callable[[RunState], bool]
"""Whether a run has ended for good, with a result or without."""
Numbers = Mapping[tuple[str, int], float]
"""By arm and seed."""
End = Literal["", "decided", "last look", "budget"]
"""What ended the looks; empty while one is under way."""


@dataclass(frozen=True)
class Standing:
    """The looks of a sweep: those made, and the one under way."""

    plan: "Plan"
    decisions: "Mapping[str, tuple[Decision, ...]]"
    """By arm that is compared with another, one for each look at it so far."""
    asked: Mapping[str, int]
    """By arm, how many of the sweep's seeds it needs until now."""
    look: int
    """The number, from 1, of the look that is under way, or else of the last one."""
    end: End

    @property
    def seeds(self) -> int:
        """Those of that look."""
        return self.plan.looks[self.look - 1]

    @property
    def runs(self) -> int:
        """How many runs it needs until now."""
        return sum(self.asked.values())

    @property
    def undecided(self) -> list[str]:
        return [arm for arm, made in self.decisions.items() if not _is_decided(made)]

    def part_of(self, sweep: Sweep) -> Sweep:
        """The sweep, or a part of it, with the runs alone that are needed until now."""
        needed = {(arm, seed) for arm, count in self.asked.items() for seed in sweep.seeds[:count]}
        return with_runs(sweep, [run for run in sweep.runs if (run.arm, run.seed) in needed])


def stand(
    sweep: Sweep,
    states: Sequence[RunState],
    settled: Settled,
    folder: Path,
) -> Standing:
    """Where a sweep with looks stands. `states`: of all its runs. `folder`: the sweep's, for the
    budget."""
    from harness.evidence.sequential import Plan  # it brings scipy

    plan = Plan(sweep.looks, len(compared(sweep)))
    found = Standing(plan, dict.fromkeys(compared(sweep), ()), {}, 1, "")
    of_run = {(state.run.arm, state.run.seed): state for state in states}
    scores, gains = scores_of(states), gains_of(states)
    for look, count in enumerate(sweep.looks, start=1):
        arms = _needed(sweep, found.undecided)
        if not arms:
            return replace(found, end="decided")
        asked = {**found.asked, **dict.fromkeys(arms, count)}
        new = [
            of_run[arm, seed]
            for arm in arms
            for seed in sweep.seeds[found.asked.get(arm, 0) : count]
        ]
        if look > 1 and not _has_begun(new) and sweep.budget is not None:
            made = [of_run[a, seed] for a, n in found.asked.items() for seed in sweep.seeds[:n]]
            if not fits(sweep.budget, made, len(new), folder):
                return replace(found, end="budget")
        found = replace(found, asked=asked, look=look)
        if not all(settled(of_run[arm, seed]) for arm in arms for seed in sweep.seeds[:count]):
            return found
        found = replace(found, decisions=decide(sweep, scores, gains, count))
    return replace(found, end="last look" if found.undecided else "decided")


def looks_made(
    sweep: Sweep,
    settled: Callable[[str, int], bool],
    scores: Numbers,
    gains: Numbers,
) -> "Mapping[str, tuple[Decision, ...]]":
    """The decisions at all looks at which the runs of all arms that were looked at have ended.
    `settled`: whether the run of an arm and a seed has."""
    made: Mapping[str, tuple[Decision, ...]] = dict.fromkeys(compared(sweep), ())
    for count in sweep.looks:
        arms = _needed(sweep, [arm for arm, of_arm in made.items() if not _is_decided(of_arm)])
        if not arms or not all(settled(arm, s) for arm in arms for s in sweep.seeds[:count]):
            break
        made = decide(sweep, scores, gains, count)
    return made


def decide(
    sweep: Sweep, scores: Numbers, gains: Numbers, count: int
) -> "Mapping[str, tuple[Decision, ...]]":
    """The decisions at all looks up to the one at `count` seeds."""
    from harness.evidence.sequential import Plan, follow

    plan = Plan(sweep.looks, len(compared(sweep)))
    return follow(
        differences_of(sweep, scores, count), plan, margin=lambda n: _margins(sweep, gains, n)
    )


def _margins(sweep: Sweep, gains: Numbers, count: int) -> dict[str, float | None]:
    """By compared arm: the difference that is worth nothing, from what its reference gained with
    the first `count` seeds; None where the margin is a part of a gain that is not shown."""
    from harness.stats import mean_interval, shown_gain, simultaneous_level

    level = simultaneous_level(len(sweep.arms))
    margins: dict[str, float | None] = {}
    for arm, reference in compared(sweep).items():
        of_seeds = [gains.get((reference, seed), math.nan) for seed in sweep.seeds[:count]]
        margins[arm] = sweep.margin.at_gain(shown_gain(mean_interval(of_seeds, level)))
    return margins


def compared(sweep: Sweep) -> dict[str, str]:
    """The arms that are compared with another, each with that one."""
    return {arm: other for arm, other in sweep.references.items() if arm != other}


def differences_of(sweep: Sweep, scores: Numbers, count: int) -> dict[str, list[float]]:
    """By compared arm: its score less that of its reference for each of the first seeds, NaN where
    one of the two has none. `scores`: by arm and seed."""
    return {
        arm: [
            scores.get((arm, seed), math.nan) - scores.get((other, seed), math.nan)
            for seed in sweep.seeds[:count]
        ]
        for arm, other in compared(sweep).items()
    }


def scores_of(states: Sequence[RunState]) -> dict[tuple[str, int], float]:
    """The measure after training of the finished runs that have one, by arm and seed."""
    return {
        (state.run.arm, state.run.seed): state.score
        for state in states
        if state.state == "finished" and state.score is not None and math.isfinite(state.score)
    }


def gains_of(states: Sequence[RunState]) -> dict[tuple[str, int], float]:
    """What training added to the measure of the finished runs, by arm and seed."""
    return {
        (state.run.arm, state.run.seed): state.gain
        for state in states
        if state.state == "finished" and state.gain is not None
    }


def with_runs(sweep: Sweep, runs: Sequence[Run]) -> Sweep:
    """The sweep with these of its runs, and the seeds that they have, if any."""
    there = {run.seed for run in runs}
    seeds = tuple(seed for seed in sweep.seeds if seed in there)
    return replace(sweep, runs=tuple(runs), seeds=seeds or sweep.seeds)


def _is_decided(made: "tuple[Decision, ...]") -> bool:
    return bool(made) and made[-1].decided


def _needed(sweep: Sweep, undecided: Sequence[str]) -> list[str]:
    """The arms that need seeds, in the order of the sweep."""
    wanted = {*undecided, *(compared(sweep)[arm] for arm in undecided)}
    return [arm.name for arm in sweep.arms if arm.name in wanted]


def _has_begun(states: Sequence[RunState]) -> bool:
    """Whether a look has begun: it is then finished, whatever it costs."""
    return any(state.state != "waiting" for state in states)
