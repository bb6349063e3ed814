"""Conditions on runs, such as `window.size >= 4 and seed < 3`."""

import keyword
import re
from typing import TYPE_CHECKING

from harness.analysis.settings import Settings, with_settings
from mixgrpo.errors import ConfigError
from mixgrpo.text.suggest import did_you_mean, nearest_setting

if TYPE_CHECKING:
    import pandas as pd

_PARTS = re.compile(r"'[^']*'|\"[^\"]*\"|`([^`]*)`|(?<![\w.])([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def fulfilled(runs: "pd.DataFrame", settings: Settings, condition: str) -> "pd.Series[bool]":
    """Which rows of `runs` fulfil a condition: an expression of pandas (`DataFrame.eval`) over the
    columns of `runs` and over all settings, whether they differ between arms or not.

    A missing value fulfils nothing. ConfigError for an unknown column, naming the nearest one, and
    for what is no condition.
    """
    import pandas as pd

    if not isinstance(condition, str):
        raise ConfigError(f'where: expected a text such as "window.size >= 4", not {condition!r}')
    keys = dict.fromkeys(key for of_arm in settings.values() for key in of_arm)
    known = dict.fromkeys([*runs.columns, *keys])
    used: dict[str, None] = {}
    text = _PARTS.sub(lambda part: _quoted(part, known, used, condition), condition)
    table = with_settings(runs, settings, [k for k in used if k in keys])[[*used]]
    try:
        found = table.eval(text, engine="python")
    except Exception as error:  # whatever pandas raises for an expression of the user's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"where: {condition}: is no condition on runs: {reason}") from None
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found.dtype):
        raise ConfigError(
            f"where: {condition}: is no condition on runs; compare a column with a value, such as "
            "window.size >= 4"
        )
    return found.fillna(False).astype(bool)


def _quoted(
    part: re.Match[str], known: dict[str, None], used: dict[str, None], condition: str
) -> str:
    """A part of a condition as pandas reads it: names of columns in backticks."""
    name = part[1] or part[2]
    if name is None or (part[2] and keyword.iskeyword(name)):
        return part[0]
    column, rest = name, ""
    while column not in known and "." in column and not part[1]:  # `arm.str.len()`
        column, _, last = column.rpartition(".")
        rest = f".{last}{rest}"
    if column not in known:
        raise ConfigError(f"where: {condition}: no column {name}{_meant(name, known)}")
    used[column] = None
    return f"`{column}`{rest}"


def _meant(name: str, known: dict[str, None]) -> str:
    meant = nearest_setting(name, [key for key in known if "." in key])
    nearest = did_you_mean(name, known, listed=False)
    if nearest or meant not in known:
        return nearest or "; `runs` has the columns, and every setting of a run is one too"
    return f"; did you mean {meant}?"
