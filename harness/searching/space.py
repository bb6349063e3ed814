"""The space of a search: ranges by key, which of them a trial is asked for, and names of settings.

A value is kept with three significant digits, so that what is written is what was run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.study.arms import JOINT, symbol, value_in_name, value_text
from harness.study.names import shorten

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Settings = dict[str, Any]
Asked = dict[str, Any]
"""The values that a trial was given, by dotted key; what it was not asked for is not there."""

_DIGITS = 3
_MOST = 120
"""Characters of an arm's name; a folder's may have 255."""


@dataclass(frozen=True)
class Range:
    """The values of one setting."""

    key: str
    low: float | int | None
    high: float | int | None
    step: float | int | None
    log: bool
    choices: tuple[Any, ...] | None
    unless: tuple[tuple[str, tuple[Any, ...]], ...]
    """It is not asked for where one of these settings has one of these values."""

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step) if x is not None)

    @property
    def text(self) -> str:
        """In words: `1 to 8`, `0.5 to 2 (log)`, `a, b or c`."""
        if self.choices is not None:
            return ", ".join(map(value_text, self.choices))
        found = f"{value_text(self.low)} to {value_text(self.high)}"
        if self.step is not None:
            found += f" by {value_text(self.step)}"
        return f"{found} (log)" if self.log else found

    @property
    def label(self) -> str:
        return symbol(self.key)

    def tidy(self, value: Any) -> Any:
        """A value as it is run: a float with few digits."""
        if self.choices is not None or self.whole:
            return value
        if self.step is not None:
            low = self.bounds[0]
            return round(low + round((value - low) / self.step) * self.step, 10)
        return float(f"{value:.{_DIGITS}g}")

    def has(self, value: Any) -> bool:
        """Whether a value is one of the range's."""
        if self.choices is not None:
            return any(value == one and type(value) is type(one) for one in self.choices)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (self.whole and not isinstance(value, int)):
            return False
        low, high = self.bounds
        inside = bool(low <= value <= high)
        if self.step is None or not inside:
            return inside
        if self.whole:
            return bool((value - low) % self.step == 0)
        return math.isclose(float(self.tidy(value)), value, abs_tol=1e-9)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        if self.low is None or self.high is None:
            raise ValueError(f"{self.key} has choices, no bounds")
        return self.low, self.high

    def distribution(self) -> "BaseDistribution":
        """As Optuna has it."""
        from optuna import distributions

        if self.choices is not None:
            return distributions.CategoricalDistribution(self.choices)
        low, high = self.bounds
        if self.whole:
            return distributions.IntDistribution(
                int(low), int(high), log=self.log, step=int(self.step or 1)
            )
        step = None if self.step is None else float(self.step)
        return distributions.FloatDistribution(float(low), float(high), log=self.log, step=step)

    def suggest(self, trial: "Trial") -> Any:
        """The trial's value: the one it has, or else a new one."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, list(self.choices))
        low, high = self.bounds
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(self.key, int(low), int(high), step=step, log=self.log)
        step_ = None if self.step is None else float(self.step)
        return trial.suggest_float(self.key, float(low), float(high), step=step_, log=self.log)


def settings_in_order(space: Sequence[Range]) -> tuple[Range, ...] | None:
    """The ranges such that each comes after those that it depends on; None for a circle."""
    left, done = list(space), list[Range]()
    while left:
        known = {one.key for one in done}
        ready = next((one for one in left if all(key in known for key, _ in one.unless)), None)
        if ready is None:
            return None
        left.remove(ready)
        done.append(ready)
    return tuple(done)


def is_asked(one: Range, values: Mapping[str, Any]) -> bool:
    """Whether a setting is asked for beside these values of earlier ones."""
    return not any(values.get(key) in excluded for key, excluded in one.unless)


def asked_keys(space: Sequence[Range], values: Mapping[str, Any]) -> list[str]:
    """The settings that are asked for beside these values."""
    return [one.key for one in space if is_asked(one, values)]


def suggest(space: Sequence[Range], trial: "Trial") -> Asked:
    """The settings of a trial; those it has already stay as they are."""
    found: Asked = {}
    for one in space:
        if is_asked(one, found):
            found[one.key] = one.tidy(one.suggest(trial))
    return found


def read(space: Sequence[Range], params: Mapping[str, Any]) -> Asked | None:
    """The settings that a stored trial was given; None where a kill left it without some."""
    found: Asked = {}
    for one in space:
        if is_asked(one, found):
            if one.key not in params:
                return None
            found[one.key] = one.tidy(params[one.key])
    return found


def arm_name(asked: Asked) -> str:
    """The name of a trial's runs: the same settings have the same name, others another."""
    short = [key.rpartition(".")[2] for key in asked]
    parts = []
    for key, value in asked.items():
        last = key.rpartition(".")[2]
        parts.append(f"{last if short.count(last) == 1 else key}={value_in_name(value)}")
    name = ",".join(parts)
    return shorten(name, _MOST)


def label(space: Sequence[Range], asked: Asked, beside: Asked | None = None) -> str:
    """Settings as people read them; with `beside`, only those that it does not have likewise."""
    shown = [
        f"{one.label} = {value_text(asked[one.key])}"
        for one in space
        if one.key in asked and (beside is None or beside.get(one.key) != asked[one.key])
    ]
    return JOINT.join(shown)
