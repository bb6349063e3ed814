"""Everything that a sweep's runs have measured, in three tables."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runs import environment
from harness.runs.codechange import read_accepted
from harness.runs.folder import taken_over, trained_by
from harness.runs.records import Environment
from harness.runs.store import FIX, look, read_result, sweep_folder
from harness.study.spec import Sweep
from mixgrpo.files.records import SCORES_DIGEST, DamagedFileError, Origin, Result, read

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from harness.study.spec import Run

_TOTALS = (
    "seconds_total",
    "evaluations_computed",
    "backward_computed",
    "nfe_rollout",
    "nfe_train",
)


@dataclass
class Results:
    """What a sweep measured. `metrics` and `evals` hold finished runs only."""

    runs: "pd.DataFrame"
    """One row per run: arm, seed, hash, state; of finished ones before_<reward>, after_<reward>,
    seconds_total, evaluations_computed, backward_computed, nfe_rollout, nfe_train, iterations.
    Where any run was copied, in part or as a whole: `shared` iterations and their `shared_seconds`,
    which another run has taken, and `trained_by`, the study that trained the run or, of one that is
    a whole copy, that which trained the original. Where other code made any and the user accepted
    that: `accepted_code`, what changed."""
    metrics: "pd.DataFrame"
    """metrics.jsonl of all of them, with arm (a category) and seed; arm by arm, then by seed."""
    evals: "pd.DataFrame"
    """eval.jsonl of all of them, likewise."""
    machines: list[environment.Machine] = field(default_factory=list)
    """Each once."""
    left_out: list[str] = field(default_factory=list)
    """What is damaged and therefore not in here: file, what is wrong, what to do."""


def collect(sweep: Sweep, runs_dir: Path) -> Results:
    """Everything that a sweep's runs have measured. RunError for a folder of another version; a
    run with a damaged file is lost, and named in `left_out`.

    Lines that were read before come from the copy in the sweep's folder (`harness.analysis.lines`).
    """
    import pandas as pd

    from harness.analysis.lines import read_runs

    place = sweep_folder(sweep, runs_dir)
    rows: list[dict[str, Any]] = []
    finished: dict[str, tuple[Run, Result]] = {}
    left_out: list[str] = []
    for run in sweep.runs:
        row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "hash": run.hash}
        rows.append(row)
        try:
            # Only what is not finished needs the long look.
            result = read_result(place / run.folder_name, run.config.evaluation.every)
        except DamagedFileError as damaged:
            left_out.append(f"{run.name}: {damaged}")
            result = None
        if result is None:
            row["state"] = look(sweep, run, runs_dir).state
        else:
            row |= {"state": "finished", **_flat_result(result)}
            finished[run.folder_name] = run, result
            if accepted := read_accepted(place / run.folder_name):
                row["accepted_code"] = accepted.changed
    arms = {arm.name: index for index, arm in enumerate(sweep.arms)}

    def lines(name: str) -> "tuple[list[Run], pa.Table, list[int]]":
        """Of the runs of which they are whole; the others are finished no more."""
        runs = sorted((r for r, _ in finished.values()), key=lambda r: (arms[r.arm], r.seed))
        digests = {
            folder: said.sha256
            for folder, (_, result) in finished.items()
            if (said := result.digests.get(f"{name}.jsonl"))
        }
        table, counts, damaged = read_runs(place, [r.folder_name for r in runs], name, digests)
        for run in runs:
            if run.folder_name in damaged:
                left_out.append(f"{run.name}: {damaged[run.folder_name]}; {FIX}")
                del finished[run.folder_name]
        return [r for r in runs if r.folder_name in finished], table, counts

    metrics, evals = lines("metrics"), lines("eval")
    if len(evals[0]) < len(metrics[0]):  # what is damaged in either is in neither
        metrics = lines("metrics")
    for row, run in zip(rows, sweep.runs, strict=True):
        if row["state"] == "finished" and run.folder_name not in finished:
            for key in set(row) - {"arm", "seed", "hash"}:
                del row[key]
            row["state"] = "lost"
    machines, copied = _provenance(place, [run for run, _ in finished.values()], left_out)
    if copied:
        for row, run in zip(rows, sweep.runs, strict=True):
            from_another = copied.get(run.folder_name)
            row["shared"] = from_another.iterations if from_another else 0
            row["shared_seconds"] = from_another.seconds if from_another else 0.0
            row["trained_by"] = trained_by(place / run.folder_name, run.config.iterations)
    # The scores have their own reader (`harness.analysis.scores`), which checks them by that.
    of_evals = _frame(arms, *evals).drop(columns=SCORES_DIGEST, errors="ignore")
    return Results(pd.DataFrame(rows), _frame(arms, *metrics), of_evals, machines, left_out)


def _provenance(
    place: Path, runs: "list[Run]", left_out: list[str]
) -> tuple[list[environment.Machine], dict[str, Origin]]:
    """On what machines these runs ran, each once, and what was copied, by folder. Damaged files
    are added to `left_out`."""
    machines: dict[environment.Machine, None] = {}
    copied: dict[str, Origin] = {}
    for run in runs:
        folder = place / run.folder_name
        try:
            env = read(Environment, folder / "env.json")
            if env is not None:
                machines[environment.Machine.of(env)] = None
        except DamagedFileError as damaged:
            left_out.append(f"{run.name}: {damaged}; remove it, the report then names no machine")
        try:
            origin = taken_over(folder, place.name, run.config.iterations)
            if origin is not None:
                copied[run.folder_name] = origin
        except DamagedFileError as damaged:
            fix = "remove it, and all iterations count as this run's own"
            left_out.append(f"{run.name}: {damaged}; {fix}")
    return list(machines), copied


def _frame(
    arms: dict[str, int], runs: "list[Run]", lines: Any, counts: list[int]
) -> "pd.DataFrame":
    """The lines of all runs as a frame that begins with arm and seed.

    `lines`: an Arrow table, `counts[k]` rows of the k-th run, one run after the other.
    """
    import numpy as np
    import pandas as pd

    if not runs:
        return pd.DataFrame(columns=["arm", "seed", "iteration"])
    codes = np.repeat(np.array([arms[run.arm] for run in runs], np.int32), counts)
    # Column by column, each freed as it is copied: millions of lines are not held twice.
    frame: pd.DataFrame = lines.to_pandas(split_blocks=True, self_destruct=True)
    names = pd.Categorical.from_codes(codes, categories=pd.Index(list(arms)))
    frame.insert(0, "arm", pd.Series(names))
    frame.insert(1, "seed", np.repeat([run.seed for run in runs], counts))
    return frame


def _flat_result(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"iterations": result.iterations}
    row |= {f"before_{name}": number for name, number in result.before.items()}
    row |= {f"after_{name}": number for name, number in result.after.items()}
    return row | {key: getattr(result, key) for key in _TOTALS}
