"""The difference that is worth nothing: `margin:` of a sweep file."""

import math
import re
from dataclasses import dataclass

from harness.text import number


@dataclass(frozen=True)
class Margin:
    """Two arms are equal where the interval of their difference lies within ±margin."""

    value: float
    """Above 0: in the measure's units, or a fraction of the gain."""
    of_gain: bool = False
    """Whether it is a fraction of what the reference gains by training."""

    def at_gain(self, gain: float | None) -> float | None:
        """In the measure's units. None for a fraction of a gain that is not shown."""
        if not self.of_gain:
            return self.value
        return None if gain is None or gain <= 0 else self.value * gain

    def __str__(self) -> str:
        if self.of_gain:
            return f"{100 * self.value:g} % of the reference's gain"
        return number(self.value)


DEFAULT = Margin(0.2, of_gain=True)


def read_margin(given: object) -> Margin:
    """`0.02` in the measure's units, or `20 %` of the reference's gain. ValueError for others."""
    percent = re.fullmatch(r"\s*([0-9.]+)\s*%\s*", given) if isinstance(given, str) else None
    try:
        value = float(percent[1]) / 100 if percent else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(given, bool) or not 0 < value < math.inf:
        raise ValueError(f"expected a number above 0, or a percentage such as 20 %, not {given!r}")
    return Margin(value, percent is not None)
