"""The settings of a sweep's arms as typed columns of its data frames."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.analysis.columns import ARM, ITERATIONS
from harness.study.arms import value_text
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import differences

if TYPE_CHECKING:
    import pandas as pd

    from harness.study.spec import Sweep

Settings = Mapping[str, Mapping[str, Any]]
"""By arm, the value of every setting by its dotted key; the seed is none."""


def settings_of(sweep: "Sweep") -> dict[str, dict[str, Any]]:
    """All settings of a sweep's arms (`Settings`)."""
    first = {run.arm: run.config for run in reversed(sweep.runs)}
    names = [arm.name for arm in sweep.arms if arm.name in first]
    return {name: flat(first[name].model_dump(exclude={"seed"})) for name in names}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, lists as tuples."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return found


def settings_key(config: RunConfig) -> str:
    """A text that is equal for runs whose settings differ in nothing but the seed, the order of
    `rewards.held_out` and what changes no result."""
    changed = differences(config.model_copy(update={"seed": 0}))
    if "rewards.held_out" in changed:
        changed["rewards.held_out"] = sorted(changed["rewards.held_out"])
    return repr(sorted(changed.items()))


def varied(settings: Settings) -> tuple[str, ...]:
    """The keys of the settings in which any two arms differ, in the order of the configuration."""
    keys = dict.fromkeys(key for of_arm in settings.values() for key in of_arm)
    return tuple(k for k in keys if len({repr(of.get(k)) for of in settings.values()}) > 1)


def with_settings(
    frame: "pd.DataFrame", settings: Settings, keys: Sequence[str], after: str = ARM
) -> "pd.DataFrame":
    """`frame`, which has a column of arms, with a column for each of these keys behind `after`.

    Numbers are numbers and switches are switches, with missing values where an arm has none; lists,
    and what is a number in one arm and a word in another, are text. A column of the same name
    is replaced. `frame` itself stays as it is.
    """
    import pandas as pd

    codes = pd.Index([*settings]).get_indexer(pd.Index(frame[ARM].astype("str")))
    kept = frame.drop(columns=[*keys], errors="ignore")
    place = list(kept.columns).index(after) + 1
    added = {
        key: pd.Series(
            typed([of_arm.get(key) for of_arm in settings.values()]).array.take(codes),
            index=frame.index,
        )
        for key in keys
    }
    columns = [*kept.columns[:place], *added, *kept.columns[place:]]
    return pd.concat([kept, pd.DataFrame(added, index=frame.index)], axis=1)[columns]


def typed(values: Iterable[Any]) -> "pd.Series[Any]":
    """Values of one setting as a column of one type; None is missing."""
    import pandas as pd

    values = list(values)
    missing = any(value is None for value in values)
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if missing else "bool")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64" if missing else "int64")
    if kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    return pd.Series([None if v is None else value_text(v) for v in values], dtype="str")


def is_setting(column: str) -> bool:
    """Whether `with_settings` made this column of a report's Parquet file."""
    section, dot, _ = column.partition(".")
    return bool(dot) and section in RunConfig.model_fields


def columns_to_keep(sweep: "Sweep") -> tuple[Settings, tuple[str, ...]]:
    """The settings that a report's Parquet files have as columns: all that differ between arms but
    the number of iterations, which a run's result has."""
    settings = settings_of(sweep)
    return settings, tuple(key for key in varied(settings) if key != ITERATIONS)
