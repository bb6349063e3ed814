"""The space of a search: ranges by key, which of them a trial is asked for, and names of settings.

A value is kept with three significant digits, so that what is written is what was run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.study.arms import JOINT, symbol, value_in_name, value_text
from harness.study.names import shorten
from harness.study.sweepfile import Settings as Settings

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

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
        by = "" if self.step is None else f" by {value_text(self.step)}"
        log = " (log)" if self.log else ""
        return f"{value_text(self.low)} to {value_text(self.high)}{by}{log}"

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
        if self.step is None or not low <= value <= high:
            return bool(low <= value <= high)
        if self.whole:
            return bool((value - low) % self.step == 0)
        return math.isclose(float(self.tidy(value)), value, abs_tol=1e-9)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        if self.low is None or self.high is None:
            raise ValueError(f"{self.key} has choices, no bounds")
        return self.low, self.high

    def suggest(self, trial: "BaseTrial") -> Any:
        """The trial's value: the one it has, or else a new one."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, list(self.choices))
        take: Any = trial.suggest_int if self.whole else trial.suggest_float
        step = self.step or (1 if self.whole else None)
        return take(self.key, *self.bounds, step=step, log=self.log)


def settings_in_order(space: Sequence[Range]) -> tuple[Range, ...] | None:
    """The ranges such that each comes after those that it depends on; None for a circle."""
    ordered: list[Range] = []
    while left := [one for one in space if one not in ordered]:
        known = {one.key for one in ordered}
        ready = [one for one in left if known.issuperset(key for key, _ in one.unless)]
        if not ready:
            return None
        ordered.append(ready[0])
    return tuple(ordered)


def settings(space: Sequence[Range], value: Callable[[Range], Any]) -> Asked:
    """The settings of a trial, each as `value` gives it, without those that the ones before them
    exclude (`unless`). `value` is asked for no others."""
    asked: Asked = {}
    for one in space:
        if not any(asked.get(key) in excluded for key, excluded in one.unless):
            asked[one.key] = one.tidy(value(one))
    return asked


def suggest(space: Sequence[Range], trial: "BaseTrial") -> Asked:
    """The settings of a trial; those that it has already stay as they are."""
    return settings(space, lambda one: one.suggest(trial))


def read(space: Sequence[Range], params: Mapping[str, Any]) -> Asked | None:
    """The settings that a stored trial was given; None where a kill left it without some."""
    try:
        return settings(space, lambda one: params[one.key])
    except KeyError:
        return None


def arm_name(asked: Asked) -> str:
    """The name of a trial's runs: the same settings have the same name, others another."""
    last = {key: key.rpartition(".")[2] for key in asked}
    short = {k: v if list(last.values()).count(v) == 1 else k for k, v in last.items()}
    return shorten(",".join(f"{short[k]}={value_in_name(v)}" for k, v in asked.items()), _MOST)


def label(space: Sequence[Range], asked: Asked, beside: Asked | None = None) -> str:
    """Settings as people read them; with `beside`, only those in which the two differ."""
    return JOINT.join(
        f"{one.label} = {value_text(asked[one.key])}"
        for one in space
        if one.key in asked and (beside is None or beside.get(one.key) != asked[one.key])
    )
