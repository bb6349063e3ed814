"""The trials of a search as one table, and the copy of it that is committed with the report.

Tables, figures and words are all made from this table.
"""

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from harness.runs.environment import Machine
from harness.searching.space import Asked, Range
from harness.searching.storage import storage_file
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


def to_frame(search: "Search", trials: "Iterable[Trial]") -> "pd.DataFrame":
    """One row per trial that is over: number, state, why, enqueued, free, feasible, arm, reward,
    seconds, evaluations, spent, reward by seed, and the settings (empty where not asked for)."""
    import pandas as pd

    kinds: dict[str, Any] = {"seconds": "float64", "evaluations": "float64"}
    kinds |= {f"{SETTING}{one.key}": _column_type(one) for one in search.space}
    by_seed = {seed: f"reward_seed{seed}" for seed in search.seeds}
    rows = [
        vars(trial)
        | {"feasible": trial.keeps(search.budget), "arm": trial.arm, "reward": trial.reward}
        | {"seeds": len(trial.rewards)}
        | {name: trial.rewards.get(seed, math.nan) for seed, name in by_seed.items()}
        | {f"{SETTING}{key}": value for key, value in trial.asked.items()}
        for trial in trials
        if trial.state not in ("waiting", "running") and trial.asked is not None
    ]
    names = "number state why enqueued free feasible arm reward seconds evaluations spent seeds"
    columns = dict.fromkeys([*names.split(), *by_seed.values(), *kinds])
    return pd.DataFrame(rows, columns=[*columns]).astype(kinds)


def _column_type(one: Range) -> Literal["Int64", "Float64", "string"]:
    """One that has room for `not asked for`."""
    if one.choices is None:
        return "Int64" if one.whole else "Float64"
    if all(isinstance(choice, int) for choice in one.choices):
        return "Int64"
    return "string" if any(isinstance(choice, str) for choice in one.choices) else "Float64"


def rows_of(frame: "pd.DataFrame") -> dict[int, dict[str, Any]]:
    """The rows of the table by the number of their trial."""
    records = cast(list[dict[str, Any]], frame.to_dict("records"))
    return {row["number"]: row for row in records}


def asked_of(search: "Search", row: Mapping[str, Any]) -> Asked:
    """The settings of a trial, of its row in the table."""
    import pandas as pd

    asked: Asked = {}
    for one in search.space:
        value = row[f"{SETTING}{one.key}"]
        if pd.isna(value):
            continue
        asked[one.key] = value if one.choices is None else one.choices[choice_of(one, value)]
    return asked


def choice_of(one: Range, value: Any) -> int:
    """Which of a setting's choices its column in the table has: there True is 1, and 2 may be a
    text."""
    choices = enumerate(one.choices or ())
    return next(index for index, item in choices if item == value or str(item) == value)


def whole_trials(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Those of which all seeds ran, each setting once."""
    return trials[(trials["state"] == "complete") & ~trials["free"]]


def to_files(
    search: "Search", frame: "pd.DataFrame", machines: Iterable[Machine], file: str
) -> dict[str, bytes]:
    """What is committed, by path in the report's folder. `file`: the search's, as seen from it."""
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    made = {
        "file": file,
        "profile": search.profile,
        "identity": search.identity,
        "machines": [asdict(machine) for machine in machines],
    }
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    return {FILE: stream.getvalue(), MADE: text.encode()}


def read_files(search: "Search", folder: Path) -> dict[str, bytes]:
    """What is kept with a report. ConfigError where it is another search's or is not there."""
    try:
        files = {name: (folder / name).read_bytes() for name in (FILE, MADE)}
        parse(files)
        identity = json.loads(files[MADE]).get("identity")
    except FileNotFoundError:
        raise ConfigError(
            f"{search.file}: nothing to report: no finished trial, and no trials kept in {folder}; "
            f"run `{command_for('harness.search', search, reports=folder.parent)}` first"
        ) from None
    except Exception as error:  # whatever a damaged file makes pyarrow, json or pandas raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{folder}: the trials kept there cannot be read ({reason})") from None
    if identity != search.identity:
        raise ConfigError(
            f"{search.file}: no trials of its own, and {folder} keeps those of another space or "
            "base; run the search, or take the change back"
        )
    return files


def parse(files: Mapping[str, bytes]) -> "tuple[pd.DataFrame, tuple[Machine, ...]]":
    """The table and the machines in what `to_files` made."""
    import pandas as pd

    machines = json.loads(files[MADE]).get("machines", [])
    return pd.read_parquet(io.BytesIO(files[FILE])), tuple(map(Machine.read, machines))


def has_results(search: "Search", runs_dir: Path, reports_dir: Path) -> bool:
    """Whether a report could be written."""
    kept = reports_dir / search.report_name
    return (kept / FILE).exists() or storage_file(runs_dir / search.name).exists()
