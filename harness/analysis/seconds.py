"""The seconds that count: a core's where they were measured, else the clock's, without health."""

from typing import TYPE_CHECKING

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

METHOD = "seconds_method"
"""Column of the seconds that count: those of `method_seconds`."""


def core_time(results: "Results") -> bool:
    """Whether the report's seconds are a core's time and not the wall's.

    Where every run had one thread of a CPU, its time on the processor is what an iteration costs:
    waiting is not in it. Caches and the threads of a core that others share still lengthen it.
    Older runs did not measure it.
    """
    column = results.metrics.get("seconds_cpu")
    measured = column is not None and len(column) > 0 and bool(column.notna().all())
    return measured and bool(results.machines) and all(m.one_core for m in results.machines)


def method_seconds(results: "Results") -> "pd.Series[float]":
    """Seconds of each line of `results.metrics` without those in which its health was measured:
    of one core where `core_time`, else by the clock."""
    metrics = results.metrics
    if core_time(results):
        return metrics["seconds_cpu"]  # health is not in it
    return metrics["seconds_total"] - _seconds(metrics, HEALTH)


def on_the_clock(metrics: "pd.DataFrame", seconds: "pd.Series[float]") -> "pd.DataFrame":
    """The time of each iteration and of its phases, such that the phases of the method add up.

    Phases are timed by the clock on the wall. Where the method's seconds are a core's, each phase
    has the part of them that it had of the clock's.
    """
    wall = metrics["seconds_total"] - _seconds(metrics, HEALTH)
    scale = (seconds / wall).where(wall > 0, 1.0)
    phases = {f"seconds_{p}": _seconds(metrics, p) * scale for p in (*PHASES, HEALTH)}
    return metrics[["arm", "seed", "iteration"]].assign(**phases, **{METHOD: seconds})


def _totals(metrics: "pd.DataFrame", seconds: "pd.Series[float]") -> "pd.DataFrame":
    """One line per run: its seconds from the first iteration to the last."""
    own = metrics[["arm", "seed"]].assign(**{METHOD: seconds})
    return own.groupby(["arm", "seed"], observed=True, sort=True)[METHOD].sum().reset_index()


def _seconds(metrics: "pd.DataFrame", phase: str) -> "pd.Series[float]":
    """Seconds of a phase in each iteration; none where the run did not have it."""
    column = f"seconds_{phase}"
    return metrics[column].fillna(0.0) if column in metrics else metrics["seconds_total"] * 0.0


def steady(times: "pd.DataFrame") -> "pd.DataFrame":
    """The iterations after warm-up, and never none of a run."""
    last = times.groupby(["arm", "seed"], observed=True)["iteration"].transform("max")
    return times[times["iteration"] >= last.clip(upper=WARM_UP)]


def at_evaluations(results: "Results") -> "pd.DataFrame":
    """The evaluations with what each run had spent until then: network evaluations and seconds."""
    import pandas as pd

    # A run's lines stand in the order of its iterations.
    spent = results.metrics[["arm", "seed", "iteration"]].assign(
        evaluations=results.metrics["evaluations_computed"], seconds=method_seconds(results)
    )
    columns = ["evaluations", "seconds"]
    spent[columns] = spent.groupby(["arm", "seed"], observed=True)[columns].cumsum()
    spent["iteration"] += 1  # what an evaluation counts is finished iterations
    evals = results.evals.drop(columns="seconds_total")  # of the evaluation itself
    spent = spent[spent["iteration"].isin(evals["iteration"].unique())]
    joined = pd.merge(evals, spent, on=["arm", "seed", "iteration"], how="left")
    before = joined["iteration"] == 0
    joined.loc[before, ["evaluations", "seconds"]] = 0.0
    return joined
