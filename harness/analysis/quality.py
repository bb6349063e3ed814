"""What training did to the rewards on held-out prompts, and how the arms compare in them.

Quality comes from the evaluations on held-out prompts, never from rollout rewards, which depend on
where the window stands.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.results import by_seed
from harness.comparison import Comparison, Looks, compare
from harness.planning.standing import looks_made
from harness.stats import (
    MIN_SEEDS,
    Interval,
    mean_interval,
    paired_interval,
    shown_gain,
    simultaneous_level,
)

if TYPE_CHECKING:
    import pandas as pd

    from harness.study.spec import Sweep


@dataclass(frozen=True)
class RewardChange:
    """One reward of one arm on held-out prompts, before and after training."""

    before: Interval
    after: Interval
    change: Interval
    """After minus before, paired by seed, with its own 95 % interval."""
    simultaneous: Interval
    """The same change with the interval that holds for this reward of all arms together. It decides
    what is said of the arms."""


@dataclass(frozen=True)
class Quality:
    """Everything by reward, then by arm."""

    after: Mapping[str, Mapping[str, dict[int, float]]]
    """After training, by seed."""
    changes: Mapping[str, Mapping[str, RewardChange]]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    """After training with the arm's reference, each reward a family of its own; no references."""
    margins: Mapping[str, float | None]
    """The difference in the measure that is worth nothing, by reference."""


def quality(
    sweep: "Sweep", runs_of: "Mapping[str, pd.DataFrame]", ended: Set[tuple[str, int]] = frozenset()
) -> Quality:
    """`runs_of`: by arm, the finished rows of `Results.runs`. `ended`: of a sweep with looks, arm
    and seed of the runs that have ended, with a result or without."""
    trained, held_out = reward_names(sweep)
    before, after = (
        {
            reward: {arm: _finite(runs, name(reward)) for arm, runs in runs_of.items()}
            for reward in (*trained, *held_out)
        }
        for name in (columns.before, columns.after)
    )
    changes = {reward: _changes(before[reward], after[reward]) for reward in after}
    margins = _margins(sweep, changes[sweep.measure])
    of_measure = before[sweep.measure], after[sweep.measure]
    looks = _looks(sweep, *of_measure, ended) if sweep.looks else None
    comparisons = {
        reward: compare(values, sweep.references, margins, looks)
        if reward == sweep.measure
        else compare(values, sweep.references)
        for reward, values in after.items()
    }
    return Quality(after, changes, comparisons, margins)


def _looks(
    sweep: "Sweep",
    before: Mapping[str, dict[int, float]],
    after: Mapping[str, dict[int, float]],
    ended: Set[tuple[str, int]],
) -> Looks:
    """What was decided at the looks at the measure."""
    scores = {(arm, seed): v for arm, of_arm in after.items() for seed, v in of_arm.items()}
    gains = {
        (arm, seed): value - before[arm][seed]
        for (arm, seed), value in scores.items()
        if seed in before[arm]
    }
    made = looks_made(sweep, lambda arm, seed: (arm, seed) in ended, scores, gains)
    return Looks(sweep.seeds, made)


def _margins(sweep: "Sweep", changes: Mapping[str, RewardChange]) -> dict[str, float | None]:
    """The margin in the measure's units, by reference; None where its gain is not shown."""
    return {
        arm: sweep.margin.at_gain(shown_gain(changes[arm].simultaneous))
        for arm in set(sweep.references.values())
    }


def reward_names(sweep: "Sweep") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rewards that any arm trains on, and those that are only measured, in the file's order."""
    trained = _unique(name for run in sweep.runs for name in run.config.rewards.train)
    measured = _unique(name for run in sweep.runs for name in run.config.rewards.held_out)
    return trained, tuple(name for name in measured if name not in trained)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _finite(runs: "pd.DataFrame", column: str) -> dict[int, float]:
    return {seed: v for seed, v in by_seed(runs, column).items() if math.isfinite(v)}


def _changes(
    before: Mapping[str, dict[int, float]], after: Mapping[str, dict[int, float]]
) -> dict[str, RewardChange]:
    """One reward's change in every arm."""
    family = sum(len(before[arm].keys() & after[arm].keys()) >= MIN_SEEDS for arm in before)
    return {
        arm: RewardChange(
            before=mean_interval(list(before[arm].values())),
            after=mean_interval(list(after[arm].values())),
            change=paired_interval(after[arm], before[arm]),
            simultaneous=paired_interval(after[arm], before[arm], simultaneous_level(family)),
        )
        for arm in before
    }
