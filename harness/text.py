"""Texts that several packages of the harness use: numbers, intervals, commands to run."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from harness.stats import Interval

NOTHING = "–"
MOST_DIGITS = 6


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: "Interval", digits: int = 3, signed: bool = False) -> str:
    """`mean [low, high]`, or the mean and the reason why it has no meaningful interval.

    With up to `MOST_DIGITS` digits where an end that is not zero would be rounded to zero.
    """
    if estimate.varies and estimate.sign:
        while digits < MOST_DIGITS and 0 in (
            round(estimate.low, digits),
            round(estimate.high, digits),
        ):
            digits += 1
    mean = number(estimate.mean, digits, signed)
    if not estimate.known:
        return f"{mean} (n = {estimate.n})" if estimate.n else NOTHING
    if not estimate.varies:
        return f"{mean} (every seed)"
    low, high = number(estimate.low, digits, signed), number(estimate.high, digits, signed)
    return f"{mean} [{low}, {high}]"


def p_value(p: float) -> str:
    if not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return NOTHING
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return number(value, digits)


RUNS, REPORTS = Path("runs"), Path("reports")
"""Where the commands look without --runs and --reports."""


class Chosen(Protocol):
    """A sweep or a search, as it was read from its file."""

    @property
    def file(self) -> Path: ...
    @property
    def profile(self) -> str: ...
    @property
    def overrides(self) -> Sequence[str]: ...


def command(module: str, *words: object) -> str:
    """`python -m MODULE WORDS...`, quoted. A path that looks like an option gets `./` before it."""
    given = [f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words]
    return shlex.join(["python", "-m", module, *given])


def command_for(
    module: str,
    chosen: Chosen,
    *words: object,
    file: object = None,
    runs: Path = RUNS,
    reports: Path = REPORTS,
) -> str:
    """A command on the file, profile and settings that were chosen, in these folders. `file`: what
    it is called there, where that is another path."""
    options: list[object] = ["--profile", chosen.profile] if chosen.profile else []
    for text in chosen.overrides:
        options += ["--set", text]
    options += ["--runs", runs] if runs != RUNS else []
    options += ["--reports", reports] if reports != REPORTS else []
    return command(module, file or chosen.file, *options, *words)


MOST_NAMED = 20
"""The most arms or runs that a sentence names; of the others it says the number."""


def listed(parts: Sequence[str], most: int = MOST_NAMED) -> str:
    """`a, b and c`; the first `most` of many, and how many more there are."""
    if len(parts) > most:
        return f"{', '.join(parts[:most])} and {len(parts) - most} more"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
