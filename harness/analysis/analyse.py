"""What a sweep's measurements say, arm by arm: all numbers of a report.

Takes finished runs only. Tables, figures and sentences read the result and compute nothing of
their own, so that they cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.analysis import columns
from harness.analysis.columns import ARM, SEED, STATE
from harness.analysis.cost import Cost, Makers, costs, makers_of, trained_by_one_study
from harness.analysis.quality import RewardChange, quality, reward_names
from harness.analysis.results import by_arm
from harness.analysis.seconds import core_time
from harness.comparison import Comparison
from harness.study import paper
from harness.study.spec import same_schedules
from harness.text import listed

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results
    from harness.study.arms import Arm
    from harness.study.spec import Sweep
    from mixgrpo.settings.config import RunConfig


@dataclass(frozen=True)
class Published:
    """What the paper printed for an arm."""

    row: str | None = None
    """Key of the paper's row that stands beside the arm."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """That row by column; empty where there is none."""


@dataclass(frozen=True)
class ArmResult:
    arm: "Arm"
    seeds: tuple[int, ...]
    """Seeds that finished."""
    after: dict[int, float]
    """The measure after training, by seed."""
    rewards: dict[str, RewardChange]
    trained: tuple[str, ...]
    """The rewards that this arm trains on; another arm may train on others."""
    comparison: Comparison | None
    """Against the reference; None for the reference itself."""
    cost: Cost
    published: Published


@dataclass(frozen=True)
class Analysis:
    sweep: "Sweep"
    measure: str
    """The reward that answers the question."""
    trained: tuple[str, ...]
    """The rewards that any arm trains on: `ArmResult.trained` has each arm's."""
    held_out: tuple[str, ...]
    """Those that are measured and no arm trains on."""
    arms: tuple[ArmResult, ...]
    margins: Mapping[str, float | None]
    """By reference: the difference in the measure that is worth nothing; None where it is not
    known."""
    other_comparisons: Mapping[str, Mapping[str, Comparison]]
    """By reward beside the measure, and by arm that is no reference: the comparison after training,
    each reward a family of its own."""
    unfinished: tuple[tuple[str, int, str], ...]
    """(arm, seed, state) of every run that is not finished."""
    shared_until: dict[str, int]
    """Per arm that differs from the reference in its window's movement alone: the first iteration
    at which the windows differ; until then runs with the same seed are bit-identical."""
    same_schedule: tuple[tuple[str, ...], ...]
    """Groups of arms that are configured differently and compute the same."""
    core_time: bool
    """Whether seconds are those of one core (`core_time`), not of the clock on the wall."""
    trained_by: Makers
    accepted_code: tuple[tuple[str, int, str], ...] = ()
    """(arm, seed, what changed) of every run that other code made (--accept-code-change)."""

    @property
    def seconds_in_words(self) -> str:
        return "seconds of one core's time" if self.core_time else "seconds by the clock"

    @property
    def reference(self) -> ArmResult:
        return self.by_name(self.sweep.reference)

    def is_reference(self, name: str) -> bool:
        """Whether an arm is what others are compared with."""
        return name == self.sweep.within.get(name, self.sweep.reference)

    def timed_together(self, arm: str, seed: int) -> bool:
        """Whether one study trained a run and that of its reference. Only then are their seconds
        compared: at another time other work on the machine may have slowed one of them."""
        return trained_by_one_study(self.trained_by, arm, self.sweep.references[arm], seed)

    def by_name(self, name: str) -> ArmResult:
        return self._by_name[name]

    def label(self, name: str) -> str:
        """How figures, tables and sentences call an arm."""
        return self._by_name[name].arm.label

    def name_in_table(self, name: str) -> str:
        return f"{self.label(name)} (reference)" if self.is_reference(name) else self.label(name)

    def role(self, reward: str) -> str:
        """In which arms a reward is trained on, in words."""
        training = [r.arm.label for r in self.arms if reward in r.trained]
        if not training:
            return "only measured"
        if len(training) == len(self.arms):
            return "trained on"
        return f"trained on in {listed(training)}, only measured elsewhere"

    @cached_property
    def _by_name(self) -> dict[str, ArmResult]:
        return {result.arm.name: result for result in self.arms}

    @property
    def compared(self) -> tuple[Comparison, ...]:
        return tuple(r.comparison for r in self.arms if r.comparison is not None)

    @property
    def others(self) -> tuple[str, ...]:
        """Every reward but the measure: first the trained ones, then the held-out ones."""
        return tuple(r for r in (*self.trained, *self.held_out) if r != self.measure)


def analyse(sweep: "Sweep", results: "Results") -> Analysis:
    """All numbers of the report from the finished runs of a sweep."""
    runs, runs_of = results.runs, by_arm(sweep, results.finished)
    makers = makers_of(results.finished)
    over = runs[runs[STATE].isin(("finished", "failed"))]
    ended = set(zip(over[ARM].astype(str), over[SEED].astype(int), strict=True))
    rewards, cost = quality(sweep, runs_of, ended), costs(sweep, results, runs_of, makers)
    trained, held_out = reward_names(sweep)
    trains_on = {run.arm: tuple(run.config.rewards.train) for run in sweep.runs}
    arms = [
        ArmResult(
            arm=arm,
            seeds=tuple(sorted(int(seed) for seed in runs_of[arm.name][SEED])),
            after=rewards.after[sweep.measure][arm.name],
            rewards={reward: of_arms[arm.name] for reward, of_arms in rewards.changes.items()},
            trained=trains_on[arm.name],
            comparison=rewards.comparisons[sweep.measure].get(arm.name),
            cost=cost[arm.name],
            published=published(sweep, arm.name),
        )
        for arm in sweep.arms
    ]
    return Analysis(
        sweep=sweep,
        measure=sweep.measure,
        trained=trained,
        held_out=held_out,
        arms=tuple(arms),
        margins=rewards.margins,
        other_comparisons={
            reward: of_arms
            for reward, of_arms in rewards.comparisons.items()
            if reward != sweep.measure
        },
        unfinished=tuple(
            (str(arm), int(seed), str(state))
            for arm, seed, state in zip(runs[ARM], runs[SEED], runs[STATE], strict=True)
            if state != "finished"
        ),
        shared_until=_shared_until(sweep),
        same_schedule=tuple(same_schedules(sweep)),
        core_time=core_time(results),
        trained_by=makers,
        accepted_code=_accepted_code(runs),
    )


def published(sweep: "Sweep", arm: str) -> Published:
    """The paper's row for an arm; none where the table has none, as for a value it did not try."""
    key = sweep.paper_rows.get(arm)
    if sweep.paper is None or key is None or key not in paper.find(sweep.paper).rows:
        return Published()
    return Published(key, paper.row(sweep.paper, key))


def _accepted_code(runs: "pd.DataFrame") -> tuple[tuple[str, int, str], ...]:
    if columns.ACCEPTED_CODE not in runs:
        return ()
    accepted = runs[runs[columns.ACCEPTED_CODE].notna()]
    rows = zip(*(accepted[c] for c in (ARM, SEED, columns.ACCEPTED_CODE)), strict=True)
    return tuple((str(arm), int(seed), str(changed)) for arm, seed, changed in rows)


def _shared_until(sweep: "Sweep") -> dict[str, int]:
    """The iteration at which arms that differ from the reference in their window's movement alone
    begin to differ from it.

    The earliest over seeds: windows drawn at random differ elsewhere with each seed.
    """
    configs = {(run.arm, run.seed): run.config for run in sweep.runs}
    references = sweep.references
    earliest: dict[str, int] = {}
    for run in sweep.runs:
        reference = references[run.arm]
        base = configs.get((reference, run.seed))
        if base is None or run.arm == reference:
            continue
        random = "random" in (run.config.window.strategy, base.window.strategy)
        if random or run.seed == sweep.seeds[0]:
            first = _first_difference(run.config, base)
            if first is not None:
                earliest[run.arm] = min(first, earliest.get(run.arm, first))
    return earliest


def _first_difference(config: "RunConfig", base: "RunConfig") -> int | None:
    """First iteration at which the windows differ; None where never, or where more differs."""
    if config.window.size != base.window.size:
        return None
    if config.model_copy(update={"window": base.window}) != base:
        return None
    left, right = config.make_window(), base.make_window()
    steps = range(config.iterations)
    return next((m for m in steps if left.start_at(m) != right.start_at(m)), None)
