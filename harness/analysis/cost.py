"""What each arm takes: network evaluations and seconds, per iteration and per run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.columns import METHOD_SECONDS, SEED
from harness.analysis.results import by_arm, by_seed
from harness.analysis.seconds import HEALTH, PHASES, iteration_times, steady, totals
from harness.stats import MIN_SEEDS, Interval, mean_interval, ratio_interval, simultaneous_level

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results
    from harness.study.spec import Sweep

Makers = Mapping[tuple[str, int], str]
"""By arm and seed the study that trained a finished run; empty where no run is a copy."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles over all iterations and seeds of an arm, after warm-up."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """Of one arm."""

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
    own 95 % interval. None for a reference."""
    time_ratio_simultaneous: Interval | None
    """The same with the interval that holds for all arms together."""


def costs(
    sweep: "Sweep", results: "Results", runs_of: "Mapping[str, pd.DataFrame]", makers: Makers
) -> dict[str, Cost]:
    """By arm. `runs_of`: by arm, the finished rows of `Results.runs`."""
    times = iteration_times(results)
    totals_of, times_of = by_arm(sweep, totals(times)), by_arm(sweep, steady(times))
    ratios = _time_ratios(times_of, sweep.references, makers)
    of_arms = {}
    for arm, runs in runs_of.items():
        alone, simultaneous = ratios.get(arm, (None, None))
        of_arms[arm] = Cost(
            nfe_rollout=_range(runs, columns.NFE_ROLLOUT),
            nfe_train=_range(runs, columns.NFE_TRAIN),
            evaluations=_per_iteration(runs, columns.EVALUATIONS),
            backward=_per_iteration(runs, columns.BACKWARD),
            seconds=_quartiles(times_of[arm][METHOD_SECONDS]),
            phases={
                phase: _quartiles(times_of[arm][columns.seconds(phase)]).median
                for phase in (*PHASES, HEALTH)
            },
            seconds_per_run=mean_interval(list(totals_of[arm][METHOD_SECONDS])),
            evaluations_per_run=mean_interval(list(by_seed(runs, columns.EVALUATIONS).values())),
            time_ratio=alone,
            time_ratio_simultaneous=simultaneous,
        )
    return of_arms


def makers_of(finished: "pd.DataFrame") -> Makers:
    if columns.TRAINED_BY not in finished:
        return {}
    runs = zip(*(finished[c] for c in (*columns.RUN, columns.TRAINED_BY)), strict=True)
    return {(str(arm), int(seed)): str(study) for arm, seed, study in runs}


def trained_by_one_study(makers: Makers, arm: str, other: str, seed: int) -> bool:
    return makers.get((arm, seed)) == makers.get((other, seed))


def _time_ratios(
    times_of: "Mapping[str, pd.DataFrame]", references: Mapping[str, str], makers: Makers
) -> dict[str, tuple[Interval, Interval]]:
    """By arm, references left out: the ratio with the interval of this arm alone and with the one
    that holds for all arms. Only seeds of which one study trained both runs enter."""
    medians = {
        arm: by_seed(times.groupby(SEED)[METHOD_SECONDS].median().reset_index(), METHOD_SECONDS)
        for arm, times in times_of.items()
    }
    pairs = {
        arm: (
            {s: v for s, v in medians[arm].items() if trained_by_one_study(makers, arm, base, s)},
            medians[base],
        )
        for arm, base in references.items()
        if arm != base
    }
    family = sum(len(times.keys() & base.keys()) >= MIN_SEEDS for times, base in pairs.values())
    return {
        arm: (
            ratio_interval(times, base),
            ratio_interval(times, base, simultaneous_level(family)),
        )
        for arm, (times, base) in pairs.items()
    }


def _range(runs: "pd.DataFrame", column: str) -> tuple[float, float]:
    return (float(runs[column].min()), float(runs[column].max())) if len(runs) else (math.nan,) * 2


def _per_iteration(runs: "pd.DataFrame", column: str) -> float:
    return float((runs[column] / runs[columns.ITERATIONS]).mean()) if len(runs) else math.nan


def _quartiles(values: "pd.Series[float]") -> Quartiles:
    low, median, high = (float(values.quantile(q)) for q in (0.25, 0.5, 0.75))
    return Quartiles(median, low, high)
