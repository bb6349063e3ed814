"""The measurements of a sweep's runs as three data frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis import columns
from harness.analysis.columns import ARM, ITERATION, SEED, STATE
from harness.runs import environment
from harness.runs.codechange import FILE as ACCEPTED
from harness.runs.codechange import AcceptedCode, read_accepted
from harness.runs.folder import taken_over, trained_by
from harness.runs.records import Environment
from harness.runs.result import FIX, read_result
from harness.runs.state import look, sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    SCORES_DIGEST,
    DamagedFileError,
    Origin,
    Result,
    read,
)
from mixgrpo.runs.location import locate

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.lines import Lines


@dataclass
class Results:
    """What a sweep measured. `metrics` and `evaluations` hold finished runs only."""

    runs: "pd.DataFrame"
    """One row per run, arm by arm, then by seed: arm, seed, hash, state; of finished ones
    before_<reward>, after_<reward>, iterations and the run's totals (`columns.TOTALS`).
    Where any run was copied, in part or as a whole: `shared` iterations and their `shared_seconds`,
    which another run has taken, and `trained_by`, the study that trained the run or, of one that is
    a whole copy, that which trained the original. Where other code made any and the user accepted
    that: `accepted_code`, what changed."""
    metrics: "pd.DataFrame"
    """metrics.jsonl of all of them, with arm (a category) and seed; arm by arm, then by seed."""
    evaluations: "pd.DataFrame"
    """eval.jsonl of all of them, likewise."""
    machines: list[environment.Machine] = field(default_factory=list)
    """Each once."""
    left_out: list[str] = field(default_factory=list)
    """What is damaged and therefore not in here: file, what is wrong, what to do."""

    @property
    def finished(self) -> "pd.DataFrame":
        """The rows of `runs` that are finished."""
        return self.runs[self.runs[STATE] == "finished"]


def collect(sweep: Sweep, runs_dir: Path) -> Results:
    """Everything that a sweep's runs have measured. RunError for a folder of another version; a
    run with a damaged file is lost, and named in `left_out`."""
    import pandas as pd

    folder = sweep_folder(sweep, runs_dir)
    order = {arm.name: index for index, arm in enumerate(sweep.arms)}
    runs = sorted(sweep.runs, key=lambda run: (order[run.arm], run.seed))
    results: dict[str, Result] = {}
    folders: dict[str, Path] = {}
    left_out: list[str] = []
    lost = set()
    accepted: dict[str, AcceptedCode] = {}
    for run in runs:
        try:
            of_run = folders[run.folder_name] = locate(folder / run.folder_name)
            result = read_result(of_run, run)
            if result is not None and (made_by := read_accepted(of_run, result)):
                accepted[run.folder_name] = made_by
        except DamagedFileError as damaged:
            left_out.append(f"{run.name}: {damaged}")
            if damaged.file.name == ACCEPTED:  # all else says that it is finished
                lost.add(run.folder_name)
            continue
        if result is not None:
            results[run.folder_name] = result
    while True:  # a run with one damaged file is left out of both frames
        metrics, evaluations = (_lines(folders, results, name) for name in (METRICS, EVALUATIONS))
        damaged_runs = evaluations.damaged | metrics.damaged
        if not damaged_runs:
            break
        for run in runs:
            if run.folder_name in damaged_runs:
                left_out.append(f"{run.name}: {damaged_runs[run.folder_name]}; {FIX}")
                lost.add(run.folder_name)
                del results[run.folder_name]
    finished = [run for run in runs if run.folder_name in results]
    machines, copied = _provenance(sweep.name, finished, folders, left_out)
    rows = []
    for run in runs:
        row: dict[str, Any] = {ARM: run.arm, SEED: run.seed, columns.HASH: run.hash}
        if run.folder_name in results:
            row |= {STATE: "finished", **_flat_result(results[run.folder_name])}
            if run.folder_name in accepted:
                row[columns.ACCEPTED_CODE] = accepted[run.folder_name].in_words
        else:  # `look` is slow: only for runs that are not finished
            state = "lost" if run.folder_name in lost else look(sweep, run, runs_dir).state
            row[STATE] = state
        if copied:
            origin = copied.get(run.folder_name)
            row[columns.SHARED] = origin.iterations if origin else 0
            row[columns.SHARED_SECONDS] = origin.seconds if origin else 0.0
            row[columns.TRAINED_BY] = trained_by(
                folders.get(run.folder_name, folder), run.config.iterations
            )
        rows.append(row)
    # The digest of the scores is for their own reader, `harness.analysis.scores`.
    of_evaluations = _frame(order, finished, evaluations)
    return Results(
        pd.DataFrame(rows),
        _frame(order, finished, metrics),
        of_evaluations.drop(columns=SCORES_DIGEST, errors="ignore"),
        sorted(machines),
        left_out,
    )


def begun(sweep: Sweep, results: Results) -> Results:
    """Of a sweep with looks: without the runs that never began, for an arm that is decided needs
    no further ones. Those of a sweep with fixed seeds are all there."""
    if not sweep.looks:
        return results
    runs = results.runs[results.runs[STATE] != "waiting"]
    return replace(results, runs=runs.reset_index(drop=True))


def _lines(folders: Mapping[str, Path], results: Mapping[str, Result], name: str) -> "Lines":
    from harness.analysis.lines import read_runs

    digests = {
        run: written.sha256
        for run, result in results.items()
        if (written := result.digests.get(name))
    }
    return read_runs({run: folders[run] / name for run in results}, digests)


def _provenance(
    sweep: str, runs: list[Run], folders: Mapping[str, Path], left_out: list[str]
) -> tuple[list[environment.Machine], dict[str, Origin]]:
    """On what machines these runs ran, each once, and what was copied, by folder. Damaged files
    are added to `left_out`."""
    machines: dict[environment.Machine, None] = {}
    copied: dict[str, Origin] = {}
    for run in runs:
        of_run = folders[run.folder_name]
        try:
            env = read(Environment, of_run / "env.json")
            if env is not None:
                machines[environment.Machine.of(env)] = None
        except DamagedFileError as damaged:
            left_out.append(f"{run.name}: {damaged}; remove it, the report then names no machine")
        try:
            origin = taken_over(of_run, sweep, run.config.iterations)
            if origin is not None:
                copied[run.folder_name] = origin
        except DamagedFileError as damaged:
            fix = "remove it, and all iterations count as this run's own"
            left_out.append(f"{run.name}: {damaged}; {fix}")
    return list(machines), copied


def _frame(order: dict[str, int], runs: list[Run], lines: "Lines") -> "pd.DataFrame":
    """The lines of all runs as a frame that begins with arm and seed."""
    import numpy as np
    import pandas as pd

    if not runs:
        return pd.DataFrame(columns=[ARM, SEED, ITERATION])
    counts = list(lines.counts.values())
    codes = np.repeat(np.array([order[run.arm] for run in runs], np.int32), counts)
    # Column by column, each freed as it is copied: millions of lines are not held twice.
    frame: pd.DataFrame = lines.table.to_pandas(split_blocks=True, self_destruct=True)
    names = pd.Categorical.from_codes(codes, categories=pd.Index(list(order)))
    frame.insert(0, ARM, pd.Series(names))
    frame.insert(1, SEED, np.repeat([run.seed for run in runs], counts))
    return frame


def _flat_result(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {columns.ITERATIONS: result.iterations}
    row |= {columns.before(name): number for name, number in result.before.items()}
    row |= {columns.after(name): number for name, number in result.after.items()}
    return row | {key: getattr(result, key) for key in columns.TOTALS}


def by_arm(sweep: Sweep, frame: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """The rows of every arm (an arm may have none), in one pass over the frame."""
    rows = frame.groupby(ARM, observed=True).indices
    return {arm.name: frame.iloc[rows.get(arm.name, [])] for arm in sweep.arms}


def by_seed(rows: "pd.DataFrame", column: str) -> dict[int, float]:
    """A column of one arm's runs by seed, in the order of the seeds; empty where it is missing."""
    if column not in rows:
        return {}
    pairs = sorted(zip(rows[SEED], rows[column], strict=True))
    return {int(seed): float(value) for seed, value in pairs}
