"""The trials of a search as a table, and the copy of it that is committed with the report."""

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.searching.space import Asked, Range
from harness.text import command_for
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import pandas as pd

    from harness.searching.file import Search
    from harness.searching.study import Trial


FILE = "trials.parquet"
MADE = "made.json"
SETTING = "setting_"
"""Begins the name of a setting's column."""


def to_frame(search: "Search", trials: "list[Trial]") -> "pd.DataFrame":
    """One row per trial that is over: number, state, why, enqueued, free, feasible, arm, reward,
    seconds, evaluations, spent, reward by seed, and the settings (empty where not asked for)."""
    import pandas as pd

    rows = []
    for trial in trials:
        if trial.state in ("waiting", "running") or trial.asked is None:
            continue
        rewards = [trial.rewards[seed] for seed in search.seeds if seed in trial.rewards]
        row: dict[str, Any] = {
            "number": trial.number,
            "state": trial.state,
            "why": trial.why,
            "enqueued": trial.enqueued,
            "free": trial.free,
            "feasible": _keeps_budget(search, trial),
            "arm": trial.arm,
            "reward": sum(rewards) / len(rewards) if rewards else math.nan,
            "seconds": _number(trial.seconds),
            "evaluations": _number(trial.evaluations),
            "spent": trial.spent,
            "seeds": len(rewards),
        }
        row |= {f"reward_seed{s}": trial.rewards.get(s, math.nan) for s in search.seeds}
        row |= {f"{SETTING}{one.key}": trial.asked.get(one.key) for one in search.space}
        rows.append(row)
    frame = pd.DataFrame(rows)
    if rows:
        for one in search.space:
            name = f"{SETTING}{one.key}"
            frame[name] = frame[name].astype(_column_type(one))
    return frame


def _column_type(one: Range) -> Literal["Int64", "Float64", "string"]:
    """One that has room for `not asked for`."""
    if one.choices is None:
        return "Int64" if one.whole else "Float64"
    if all(isinstance(choice, int) for choice in one.choices):
        return "Int64"
    return "string" if any(isinstance(choice, str) for choice in one.choices) else "Float64"


def _keeps_budget(search: "Search", trial: "Trial") -> bool:
    budget = search.budget
    if budget is None:
        return True
    if budget.evaluations is not None:
        return trial.evaluations is not None and trial.evaluations <= budget.evaluations
    return trial.seconds is not None and trial.seconds <= (budget.seconds or 0.0)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def asked_of(search: "Search", frame: "pd.DataFrame", number: int) -> Asked:
    """The settings of a trial in the table."""
    import pandas as pd

    row = frame[frame["number"] == number].iloc[0]
    found: Asked = {}
    for one in search.space:
        value = row[f"{SETTING}{one.key}"]
        if pd.isna(value):
            continue
        if one.choices is not None:
            value = next(
                choice for choice in one.choices if choice == value or str(choice) == value
            )
        found[one.key] = one.tidy(value.item() if hasattr(value, "item") else value)
    return found


def to_files(
    search: "Search", frame: "pd.DataFrame", machines: list[str], core: bool, file: str
) -> dict[str, bytes]:
    """What is committed, by path in the report's folder. `file`: the search's, as seen from it."""
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    made = {
        "file": file,
        "profile": search.profile,
        "identity": search.identity,
        "machines": machines,
        "one_core": core,
    }
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    return {FILE: stream.getvalue(), MADE: text.encode()}


def read_files(search: "Search", folder: Path) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """The trials that are kept with a report. ConfigError where they are another search's."""
    import pandas as pd

    try:
        frame = pd.read_parquet(folder / FILE)
        made = dict(json.loads((folder / MADE).read_text("utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{search.file}: nothing to report: no finished trial, and no trials kept in {folder}; "
            f"run `{command_for('harness.search', search, reports=folder.parent)}` first"
        ) from None
    except Exception as error:  # whatever a damaged file makes pyarrow, json or pandas raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{folder}: the trials kept there cannot be read ({reason})") from None
    if made.get("identity") != search.identity:
        raise ConfigError(
            f"{search.file}: no trials of its own, and {folder} keeps those of another space or "
            "base; run the search, or take the change back"
        )
    return frame, made


def has_results(search: "Search", runs_dir: Path, reports_dir: Path) -> bool:
    """Whether a report could be written."""
    from harness.searching.storage import storage_file

    kept = reports_dir / search.report_name
    return (kept / FILE).exists() or storage_file(runs_dir / search.name).exists()


def whole_trials(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Those of which all seeds ran, each setting once."""
    return trials[(trials["state"] == "complete") & ~trials["free"]]
