"""The work of the status and of the report as a notebook would do it: json, pandas, one loop.

    python -m benchmarks.plain_pandas status|report FOLDER OUT

What `benchmarks.harness_overhead` times beside the harness. It knows no arms without a run, no
intervals for many comparisons, no cache, and reads whatever lies in FOLDER.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd


def status(folder: Path) -> None:
    """Counts runs by how they ended, and says what has not finished."""
    rows = []
    for run in sorted(folder.iterdir()):
        if not (run / "config.yaml").exists():
            continue
        attempts = sorted((run / "attempts").glob("*.json"))
        reason = json.loads(attempts[-1].read_text())["reason"] if attempts else "waiting"
        state = "finished" if (run / "result.json").exists() else reason or "killed"
        rows.append({"run": run.name, "state": state})
    frame = pd.DataFrame(rows)
    print(frame["state"].value_counts().to_string())
    print(frame[frame["state"] != "finished"].to_string())


def report(folder: Path, out: Path) -> None:
    """A table of arms, a figure of their curves, and all measurements as Parquet."""
    from matplotlib.figure import Figure

    results, metrics, evals = [], [], []
    for run in sorted(folder.iterdir()):
        if not (run / "result.json").exists():
            continue
        arm, _, rest = run.name.partition("-seed")
        key: dict[str, Any] = {"arm": arm, "seed": int(rest.partition("-")[0])}
        result = json.loads((run / "result.json").read_text())
        results.append(key | {f"after_{k}": v for k, v in result["after"].items()})
        metrics.append(_lines(run / "metrics.jsonl").assign(**key))
        evals.append(_lines(run / "eval.jsonl").assign(**key))
    table = pd.DataFrame(results).groupby("arm").agg(["mean", "std", "count"])
    every, curves = pd.concat(metrics, ignore_index=True), pd.concat(evals, ignore_index=True)
    seconds = every.groupby("arm")[[c for c in every if str(c).startswith("seconds_")]].median()
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "table.csv")
    seconds.to_csv(out / "seconds.csv")
    every.to_parquet(out / "metrics.parquet")
    curves.to_parquet(out / "evals.parquet")
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots()
    means = curves.groupby(["iteration", "arm"])["reward_composition_mean"].mean().unstack()
    for name in means.columns[:24]:
        axes.plot(means.index, means[name], label=name)
    axes.legend()
    figure.savefig(out / "learning.png", dpi=200)
    figure.savefig(out / "learning.pdf")


def _lines(file: Path) -> pd.DataFrame:
    return pd.DataFrame([json.loads(line) for line in file.read_text().splitlines()])


if __name__ == "__main__":
    if sys.argv[1] == "status":
        status(Path(sys.argv[2]))
    else:
        report(Path(sys.argv[2]), Path(sys.argv[3]))
