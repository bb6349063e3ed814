"""Everything that a sweep's runs have measured, in three tables."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import environment
from harness.adopt import origin, trained_by
from harness.codechange import read_accepted
from harness.spec import Sweep
from harness.store import look, read_result, sweep_folder

if TYPE_CHECKING:
    import pandas as pd

    from harness.spec import Run


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
    env: list[str] = field(default_factory=list)
    """The machines and versions, in words, each once."""


def collect(sweep: Sweep, runs_dir: Path) -> Results:
    """Everything that a sweep's runs have measured. RunError for a folder of another version.

    Lines that were read before come from the copy in the sweep's folder (`harness.lines`).
    """
    import pandas as pd

    from harness.lines import read_runs

    place = sweep_folder(sweep, runs_dir)
    rows: list[dict[str, Any]] = []
    finished: list[Run] = []
    machines: dict[str, None] = {}
    copied: dict[tuple[str, int], dict[str, Any] | None] = {}
    for run in sweep.runs:
        row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "hash": run.hash}
        # Only what is not finished needs the long look.
        result = read_result(place / run.folder_name)
        if result is None:
            row["state"] = look(sweep, run, runs_dir).state
        else:
            row |= {"state": "finished", **_flat_result(result)}
            copied[(run.arm, run.seed)] = origin(place / run.folder_name)
            if accepted := read_accepted(place / run.folder_name):
                row["accepted_code"] = accepted.changed
            finished.append(run)
            machines[_machine(place / run.folder_name)] = None
        rows.append(row)
    if any(copied.values()):
        for row, run in zip(rows, sweep.runs, strict=True):
            from_another = copied.get((row["arm"], row["seed"])) or {}
            row["shared"] = from_another.get("iterations", 0)
            row["shared_seconds"] = from_another.get("seconds", 0.0)
            row["trained_by"] = trained_by(place / run.folder_name, run.config.iterations)
    machines.pop("", None)
    arms = {arm.name: index for index, arm in enumerate(sweep.arms)}
    finished.sort(key=lambda run: (arms[run.arm], run.seed))
    metrics, evals = (
        _frame(arms, finished, *read_runs(place, [r.folder_name for r in finished], name))
        for name in ("metrics", "eval")
    )
    return Results(pd.DataFrame(rows), metrics, evals, list(machines))


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


def _flat_result(result: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in result.items():
        if key in ("before", "after"):
            row |= {f"{key}_{name}": number for name, number in value.items()}
        elif key not in ("schema", "hash", "seed"):
            row[key] = value
    return row


def _machine(folder: Path) -> str:
    try:
        return environment.in_words(json.loads((folder / "env.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return ""
