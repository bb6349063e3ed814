"""What a sweep's measurements say, arm by arm: the one place where numbers for a report are made.

Takes finished runs only. Tables, figures and sentences read the result and compute nothing of
their own, so that they cannot disagree. Quality comes from the evaluations on held-out prompts,
never from rollout rewards, which depend on where the window stands.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.analysis.seconds import (
    HEALTH,
    METHOD,
    PHASES,
    _seconds,
    _totals,
    core_time,
    method_seconds,
    on_the_clock,
    steady,
)
from harness.stats import (
    LEVEL,
    MIN_SEEDS,
    Comparison,
    Interval,
    compare,
    mean_interval,
    paired_interval,
    ratio_interval,
)
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
class Quartiles:
    """Median and quartiles over all iterations and seeds of an arm, after warm-up."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class RewardChange:
    """One reward on held-out prompts, before and after training."""

    before: Interval
    after: Interval
    change: Interval
    """After minus before, paired by seed, with its own 95 % interval."""
    simultaneous: Interval
    """The same change with the interval that holds for this reward of all arms together. It decides
    what is said of the arms."""


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
    nfe_rollout: tuple[float, float]
    """Smallest and largest over seeds; equal except where windows are drawn at random."""
    nfe_train: tuple[float, float]
    evaluations: float
    """Network evaluations per iteration, counted after sharing; mean over seeds."""
    backward: float
    seconds: Quartiles
    """Per iteration, without health."""
    phases: dict[str, float]
    """Median seconds per iteration of each phase, health last."""
    seconds_per_run: Interval
    """Training of one run from its first iteration to its last, without health."""
    evaluations_per_run: Interval
    """Network evaluations of one run, counted after sharing."""
    time_ratio: Interval | None
    """Median iteration time over that of the reference, without health, paired by seed; with its
    own 95 % interval."""
    time_ratio_simultaneous: Interval | None
    """The same with the interval that holds for all arms together."""
    published_row: str | None
    """Key of the paper's row that stands beside this arm."""
    published: dict[str, Any]
    """That row by column; empty where there is none."""


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
    trained_by: "Makers"
    """By arm and seed the study that trained a finished run; empty where no run is a copy."""
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
        """Whether one study trained a run and that of its reference, so that their seconds compare:
        at another time a machine had other company, and may take another time for the same."""
        return _by_one_study(self.trained_by, arm, self.sweep.references[arm], seed)

    def by_name(self, name: str) -> ArmResult:
        return self._by_name[name]

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
    runs = results.runs
    finished = runs[runs["state"] == "finished"]
    trained, held_out = _reward_names(sweep)
    runs_of = by_arm(sweep, finished)
    measured = {
        when: {
            reward: {arm: _by_seed(own, f"{when}_{reward}") for arm, own in runs_of.items()}
            for reward in (*trained, *held_out)
        }
        for when in ("before", "after")
    }
    comparisons = compare(measured["after"][sweep.measure], sweep.references)
    of_one_core = core_time(results)
    all_seconds = method_seconds(results)
    totals = by_arm(sweep, _totals(results.metrics, all_seconds))
    times_of = by_arm(sweep, steady(on_the_clock(results.metrics, all_seconds)))
    medians = {arm: _median_by_seed(times) for arm, times in times_of.items()}
    arms, references = [], sweep.references
    changes = {
        reward: _changes(measured["before"][reward], measured["after"][reward])
        for reward in (*trained, *held_out)
    }
    makers = _makers(finished)
    time_ratios = _time_ratios(medians, references, makers)
    trained_rewards = {run.arm: tuple(run.config.rewards.train) for run in sweep.runs}
    for arm in sweep.arms:
        own, times = runs_of[arm.name], times_of[arm.name]
        published_row = _published_row(sweep, arm.name)
        is_reference = references[arm.name] == arm.name
        ratios = time_ratios.get(arm.name, (None, None))
        arms.append(
            ArmResult(
                arm=arm,
                seeds=tuple(sorted(int(seed) for seed in own["seed"])),
                after=measured["after"][sweep.measure][arm.name],
                rewards={reward: found[arm.name] for reward, found in changes.items()},
                trained=trained_rewards[arm.name],
                comparison=None if is_reference else comparisons[arm.name],
                nfe_rollout=_range(own, "nfe_rollout"),
                nfe_train=_range(own, "nfe_train"),
                evaluations=_per_iteration(own, "evaluations_computed"),
                backward=_per_iteration(own, "backward_computed"),
                seconds=_quartiles(times[METHOD]),
                phases={
                    phase: _quartiles(_seconds(times, phase)).median for phase in (*PHASES, HEALTH)
                },
                seconds_per_run=mean_interval(list(totals[arm.name][METHOD])),
                evaluations_per_run=mean_interval(
                    list(_by_seed(own, "evaluations_computed").values())
                ),
                time_ratio=ratios[0],
                time_ratio_simultaneous=ratios[1],
                published_row=published_row,
                published=paper.row(sweep.paper, published_row)
                if sweep.paper and published_row
                else {},
            )
        )
    return Analysis(
        sweep=sweep,
        measure=sweep.measure,
        trained=trained,
        held_out=held_out,
        arms=tuple(arms),
        other_comparisons={
            reward: compare(measured["after"][reward], references)
            for reward in (*trained, *held_out)
            if reward != sweep.measure
        },
        unfinished=tuple(
            (str(arm), int(seed), str(state))
            for arm, seed, state in zip(runs["arm"], runs["seed"], runs["state"], strict=True)
            if state != "finished"
        ),
        shared_until=_shared_until(sweep),
        same_schedule=tuple(same_schedules(sweep)),
        core_time=of_one_core,
        trained_by=makers,
        accepted_code=_accepted_code(runs),
    )


def _accepted_code(runs: "pd.DataFrame") -> tuple[tuple[str, int, str], ...]:
    if "accepted_code" not in runs:
        return ()
    made = runs[runs["accepted_code"].notna()]
    rows = zip(made["arm"], made["seed"], made["accepted_code"], strict=True)
    return tuple((str(arm), int(seed), str(changed)) for arm, seed, changed in rows)


Makers = Mapping[tuple[str, int], str]
"""By arm and seed the name of a study."""


def _makers(finished: "pd.DataFrame") -> Makers:
    if "trained_by" not in finished:
        return {}
    runs = zip(*(finished[c] for c in ("arm", "seed", "trained_by")), strict=True)
    return {(str(arm), int(seed)): str(study) for arm, seed, study in runs}


def _by_one_study(makers: Makers, arm: str, other: str, seed: int) -> bool:
    return makers.get((arm, seed)) == makers.get((other, seed))


def _reward_names(sweep: "Sweep") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rewards that any arm trains on, and those that are only measured, in the file's order."""
    trained = _unique(name for run in sweep.runs for name in run.config.rewards.train)
    measured = _unique(name for run in sweep.runs for name in run.config.rewards.held_out)
    return trained, tuple(name for name in measured if name not in trained)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _published_row(sweep: "Sweep", arm: str) -> str | None:
    """The paper's row for an arm; None where the table has none, as for a value it did not try."""
    key = sweep.paper_rows.get(arm)
    return key if sweep.paper is not None and key in paper.find(sweep.paper).rows else None


def by_arm(sweep: "Sweep", frame: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """The rows of every arm, none for some of them; one pass over the frame for all."""
    rows = frame.groupby("arm", observed=True).indices
    return {arm.name: frame.iloc[rows.get(arm.name, [])] for arm in sweep.arms}


def _by_seed(own: "pd.DataFrame", column: str) -> dict[int, float]:
    if column not in own:
        return {}
    pairs = sorted(zip(own["seed"], own[column], strict=True))
    return {int(seed): float(value) for seed, value in pairs if math.isfinite(value)}


def _changes(
    before: Mapping[str, dict[int, float]], after: Mapping[str, dict[int, float]]
) -> dict[str, RewardChange]:
    """One reward's change in every arm."""
    level = _level(len(before[arm].keys() & after[arm].keys()) >= MIN_SEEDS for arm in before)
    return {
        arm: RewardChange(
            before=mean_interval(list(before[arm].values())),
            after=mean_interval(list(after[arm].values())),
            change=paired_interval(after[arm], before[arm]),
            simultaneous=paired_interval(after[arm], before[arm], level),
        )
        for arm in before
    }


def _time_ratios(
    medians: Mapping[str, dict[int, float]], references: Mapping[str, str], makers: Makers
) -> dict[str, tuple[Interval, Interval]]:
    """By arm that is no reference: the ratio with its own interval and with that of all arms, over
    the seeds of which one study has trained both runs."""
    pairs = {
        arm: (
            {s: v for s, v in medians[arm].items() if _by_one_study(makers, arm, own, s)},
            medians[own],
        )
        for arm, own in references.items()
        if arm != own
    }
    level = _level(len(own.keys() & base.keys()) >= MIN_SEEDS for own, base in pairs.values())
    return {
        arm: (ratio_interval(own, base), ratio_interval(own, base, level))
        for arm, (own, base) in pairs.items()
    }


def _level(judged: Iterable[bool]) -> float:
    """The level at which the intervals of so many arms hold together with 95 % (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, sum(judged))


def _range(runs: "pd.DataFrame", column: str) -> tuple[float, float]:
    return (float(runs[column].min()), float(runs[column].max())) if len(runs) else (math.nan,) * 2


def _per_iteration(runs: "pd.DataFrame", column: str) -> float:
    return float((runs[column] / runs["iterations"]).mean()) if len(runs) else math.nan


def _quartiles(values: "pd.Series[float]") -> Quartiles:
    low, median, high = (float(values.quantile(q)) for q in (0.25, 0.5, 0.75))
    return Quartiles(median, low, high)


def _median_by_seed(metrics: "pd.DataFrame") -> dict[int, float]:
    medians = metrics[METHOD].groupby(metrics["seed"]).median()
    return {int(seed): float(value) for seed, value in medians.items()}  # type: ignore[call-overload]


def _shared_until(sweep: "Sweep") -> dict[str, int]:
    """Where arms that differ from the reference in their window's movement alone part from it.

    The earliest over seeds: windows drawn at random part elsewhere with each seed.
    """
    configs = {(run.arm, run.seed): run.config for run in sweep.runs}
    references = sweep.references
    found: dict[str, int] = {}
    for run in sweep.runs:
        reference = references[run.arm]
        base = configs.get((reference, run.seed))
        if base is None or run.arm == reference:
            continue
        random = "random" in (run.config.window.strategy, base.window.strategy)
        if random or run.seed == sweep.seeds[0]:
            parting = _parting(run.config, base)
            if parting is not None:
                found[run.arm] = min(parting, found.get(run.arm, parting))
    return found


def _parting(config: "RunConfig", base: "RunConfig") -> int | None:
    """First iteration at which the windows differ; None where never, or where more differs."""
    if config.window.size != base.window.size:
        return None
    if config.model_copy(update={"window": base.window}) != base:
        return None
    left, right = config.make_window(), base.make_window()
    steps = range(config.iterations)
    return next((m for m in steps if left.start_at(m) != right.start_at(m)), None)
