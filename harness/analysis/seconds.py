"""The seconds that count: a core's where they were measured, else the clock's, without health."""

from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.columns import ITERATION, METHOD_SECONDS, RUN, SECONDS, SECONDS_CPU

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results


WARM_UP = 2
"""First iterations of a run that no time statistic counts: caches and allocators fill up.

The last iteration counts in any case, so that a run of one or two has times too."""

PHASES = ("rollout", "decode", "reward", "update", "other")

HEALTH = "health"
"""The phase of an iteration in which the training is watched. It belongs to no method, and is taken
out of every comparison of seconds."""

ONE_CORE = (
    "seconds of one core's time: waiting is not in them; caches and threads of a core that other "
    "work shares still lengthen them"
)


def core_time(results: "Results") -> bool:
    """Whether the report's seconds are a core's time and not the wall's.

    Where every run had one thread of a CPU, its time on the processor is what an iteration costs:
    waiting is not in it. Caches and the threads of a core that others share still lengthen it.
    Older runs did not measure it.
    """
    column = results.metrics.get(SECONDS_CPU)
    measured = column is not None and len(column) > 0 and bool(column.notna().all())
    return measured and bool(results.machines) and all(m.one_core for m in results.machines)


def method_seconds(results: "Results") -> "pd.Series[float]":
    """Seconds of each line of `results.metrics` without those in which its health was measured:
    of one core where `core_time`, else by the clock."""
    metrics = results.metrics
    if core_time(results):
        return metrics[SECONDS_CPU]  # health is not in it
    return metrics[SECONDS] - phase_seconds(metrics, HEALTH)


def iteration_times(results: "Results") -> "pd.DataFrame":
    """The time of each iteration and of its phases, such that the phases of the method add up.

    Phases are timed by the clock on the wall. Where the method's seconds are a core's, each phase
    gets the share of them that it had of the seconds by the clock.
    """
    metrics, seconds = results.metrics, method_seconds(results)
    wall = metrics[SECONDS] - phase_seconds(metrics, HEALTH)
    scale = (seconds / wall).where(wall > 0, 1.0)
    phases = {columns.seconds(p): phase_seconds(metrics, p) * scale for p in (*PHASES, HEALTH)}
    return metrics[[*RUN, ITERATION]].assign(**phases, **{METHOD_SECONDS: seconds})


def phase_seconds(metrics: "pd.DataFrame", phase: str) -> "pd.Series[float]":
    """Seconds of a phase in each iteration; none where the run did not have it."""
    column = columns.seconds(phase)
    return metrics[column].fillna(0.0) if column in metrics else metrics[SECONDS] * 0.0


def totals(times: "pd.DataFrame") -> "pd.DataFrame":
    """One row per run: its seconds from the first iteration to the last."""
    return times.groupby(RUN, observed=True, sort=True)[METHOD_SECONDS].sum().reset_index()


def steady(times: "pd.DataFrame") -> "pd.DataFrame":
    """The iterations after warm-up; of a short run at least the last one."""
    last = times.groupby(RUN, observed=True)[ITERATION].transform("max")
    return times[times[ITERATION] >= last.clip(upper=WARM_UP)]


def at_evaluations(results: "Results") -> "pd.DataFrame":
    """The evaluations with what each run had spent until then: network evaluations and seconds."""
    import pandas as pd

    # A run's lines stand in the order of its iterations.
    spent = results.metrics[[*RUN, ITERATION]].assign(
        evaluations=results.metrics[columns.EVALUATIONS], seconds=method_seconds(results)
    )
    kinds = ["evaluations", "seconds"]
    spent[kinds] = spent.groupby(RUN, observed=True)[kinds].cumsum()
    spent[ITERATION] += 1  # an evaluation's iteration is the number of finished ones
    evaluations = results.evaluations.drop(columns=SECONDS)  # of the evaluation itself
    spent = spent[spent[ITERATION].isin(evaluations[ITERATION].unique())]
    joined = pd.merge(evaluations, spent, on=[*RUN, ITERATION], how="left")
    joined.loc[joined[ITERATION] == 0, kinds] = 0.0
    return joined
