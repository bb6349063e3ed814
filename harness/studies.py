"""Every study as the overall report needs it, read from the measurements kept with its report.

Reads no run folder: what a study's own report was made of lies beside it, so that the overall
report is the same from a fresh clone. Of the large tables it reads the columns that it uses.
"""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis import Analysis, analyse, core_time
from harness.measurements import FRAMES, MADE
from harness.results import Results
from harness.spec import Sweep
from harness.stats import MIN_SEEDS
from harness.views import VIEWS
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("arm", "seed", "iteration")


@dataclass(frozen=True)
class Study:
    """A sweep with what its finished runs say and what they took."""

    sweep: Sweep
    analysis: Analysis
    machines: tuple[str, ...]
    runs: "pd.DataFrame"
    """One line per finished run: arm, seed, hash, seconds of training by the clock, seconds_core
    of one core (NaN where not known), seconds_evaluation, evaluations of the network."""
    said: tuple[str, ...]
    """What the study's further views say, one sentence each."""

    @property
    def folder(self) -> str:
        """Of its report, beside the overall one."""
        return self.sweep.report_name

    @property
    def is_complete(self) -> bool:
        return not self.analysis.unfinished


def is_study(sweep: Sweep) -> bool:
    """Whether a sweep asks anything: one of fewer than three seeds is for trying things out."""
    return len(sweep.seeds) >= MIN_SEEDS


def has_measurements(sweep: Sweep, reports: Path) -> bool:
    folder = reports / sweep.report_name
    return all((folder / name).exists() for name in (*(f"{f}.parquet" for f in FRAMES), MADE))


def read_study(sweep: Sweep, reports: Path) -> Study:
    """The study whose report lies in `reports`. ConfigError where that is another configuration's,
    RunError where it cannot be read."""
    folder = reports / sweep.report_name
    results = _results(sweep, folder)
    analysis = analyse(sweep, results)
    return Study(
        sweep=sweep,
        analysis=analysis,
        machines=tuple(results.env),
        runs=_cost_of_runs(results),
        said=_said(sweep, analysis, results, folder),
    )


def _results(sweep: Sweep, folder: Path) -> Results:
    """All measurements where further views need them, else what questions, cost and times do."""
    import pandas as pd
    import pyarrow.parquet as parquet

    try:
        runs = pd.read_parquet(folder / "runs.parquet")
        there = parquet.read_schema(folder / "metrics.parquet").names
        times = [c for c in there if c in KEYS or c.startswith("seconds_")]
        metrics = pd.read_parquet(
            folder / "metrics.parquet", columns=None if sweep.views else times
        )
        evals = pd.read_parquet(
            folder / "evals.parquet", columns=None if sweep.views else [*KEYS, "seconds_total"]
        )
        machines = [str(m) for m in json.loads((folder / MADE).read_text("utf-8"))["machines"]]
    except Exception as error:  # whatever a damaged file makes pyarrow, json or pandas raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{folder}: the measurements kept there cannot be read ({reason})") from None
    wanted = {(run.arm, run.seed): run.hash for run in sweep.runs}
    kept = dict(zip(zip(runs["arm"], runs["seed"], strict=True), runs["hash"], strict=True))
    if any(wanted.get(key) != identity for key, identity in kept.items()):
        raise ConfigError(f"{folder} keeps measurements of another configuration")
    new = [
        {"arm": run.arm, "seed": run.seed, "hash": run.hash, "state": "waiting"}
        for run in sweep.runs
        if (run.arm, run.seed) not in kept
    ]
    if new:  # arms or seeds that the file got since
        runs = pd.concat([runs, pd.DataFrame(new)], ignore_index=True)
    return Results(runs, metrics, evals, machines)


def _cost_of_runs(results: Results) -> "pd.DataFrame":
    """See `Study.runs`."""
    import pandas as pd

    keys = ["arm", "seed"]
    finished = results.runs[results.runs["state"] == "finished"]
    own = finished[[*keys, "hash"]].assign(
        seconds=finished["seconds_total"], evaluations=finished["evaluations_computed"]
    )
    own["arm"] = own["arm"].astype(str)
    parts = [("seconds_evaluation", results.evals, "seconds_total")]
    if core_time(results):
        parts.append(("seconds_core", results.metrics, "seconds_cpu"))
    for name, frame, column in parts:
        sums = frame.groupby(keys, observed=True, sort=True)[column].sum().rename(name)
        own = pd.merge(own, sums.reset_index().astype({"arm": str}), on=keys, how="left")
    return own if "seconds_core" in own else own.assign(seconds_core=float("nan"))


def _said(sweep: Sweep, analysis: Analysis, results: Results, folder: Path) -> tuple[str, ...]:
    """The first sentence of every view that the sweep's file asks for."""
    import pandas as pd

    if not sweep.views:
        return ()
    probes = folder / "probes.parquet"
    measured = pd.read_parquet(probes) if probes.exists() else None
    said: list[str] = []
    for name in sweep.views:
        module, _, function = VIEWS[name].partition(":")
        view = getattr(importlib.import_module(module), function)(analysis, results, measured)
        said += [] if view is None else view.sentences[:1]
    return tuple(said)
