"""What every run had spent by each of its evaluations."""

from typing import TYPE_CHECKING

from harness.analysis import method_seconds

if TYPE_CHECKING:
    import pandas as pd

    from harness.results import Results


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
