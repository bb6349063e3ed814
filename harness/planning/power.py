"""What a sweep takes to show an effect: seeds, runs and hours, from the spread of finished runs.

Seeds, with their ranges, are those of `harness.evidence.power`; each of the sweep's comparisons has
its share of the error. What is said of all arms is that of the arm with the widest spread.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.planning.budget import hours
from harness.planning.standing import compared, differences_of, scores_of
from harness.runs.state import RunState
from harness.study.spec import Run, Sweep
from harness.text import number

if TYPE_CHECKING:
    from harness.evidence.intervals import Interval
    from harness.evidence.moderation import Spread
    from harness.evidence.power import Goal, Needed


@dataclass(frozen=True)
class Measured:
    """The spread of one arm's paired differences, and how many pairs it is from."""

    arm: str
    spread: "Spread"
    pairs: int


def measure(sweep: Sweep, states: Sequence[RunState]) -> list[Measured]:
    """The spreads of the arms that have three pairs or more of finished runs."""
    from harness.evidence.moderation import moderate
    from harness.evidence.verdict import MIN_PAIRS

    differences = differences_of(sweep, scores_of(states), len(sweep.seeds))
    pairs = {arm: [d for d in of_arm if math.isfinite(d)] for arm, of_arm in differences.items()}
    return [
        Measured(arm, spread, len(pairs[arm]))
        for arm, spread in moderate(pairs).items()
        if len(pairs[arm]) >= MIN_PAIRS
    ]


def pilot(sweep: Sweep, seeds: int) -> list[Run]:
    """The runs of the first seeds of every arm."""
    first = sweep.seeds[:seeds]
    return [run for run in sweep.runs if run.seed in first]


def describe(
    sweep: Sweep,
    states: Sequence[RunState],
    measured: Sequence[Measured],
    folder: Path,
    effect: float,
    margin: float | None,
) -> Iterator[str]:
    """What is needed to show `effect`, and equality within `margin` where one is given."""
    from harness.evidence.power import CHANCES, needed
    from harness.evidence.sequential import LOOKS

    looks, comparisons = sweep.looks or LOOKS, len(compared(sweep))
    yield f"{sweep.name}: spread of the paired differences in {sweep.measure}, as measured"
    yield from (f"  {one.arm}: {_spread(one.spread)} ({one.pairs} pairs)" for one in measured)
    widest = max(measured, key=lambda one: one.spread.sd)
    unit, of_run = _of_run(states, folder)
    goals: list[tuple[Goal, float, str]] = [
        ("difference", effect, f"to show a difference of {effect:g}")
    ]
    if margin is not None:
        goals.append(("equality", margin, f"to show that an arm is equal within ±{margin:g}"))
    for goal, size, text in goals:
        yield f"{text}, for every arm as for {widest.arm}; in brackets 10 to 90 %:"
        for chance in CHANCES:
            found = needed(
                widest.spread,
                widest.pairs,
                size,
                goal=goal,
                comparisons=comparisons,
                chance=chance,
                looks=looks,
            )
            yield from _needed(found, len(sweep.arms), unit, of_run)
    if of_run is None:
        yield "hours are not known: no run was made here"


def _needed(found: "Needed", arms: int, unit: str, of_run: float | None) -> Iterator[str]:
    def cost(seeds: float) -> str:
        if not math.isfinite(seeds):
            return ""
        runs = math.ceil(seeds) * arms
        took = "" if of_run is None else f", {runs * of_run:.2g} {unit} hours"
        return f": {runs:,} runs{took}"

    yield f"  with {found.chance * 100:.0f} %"
    for text, seeds in (
        ("fixed seeds", found.fixed),
        ("looks, on average", found.average),
        ("looks, at most", found.most),
    ):
        yield f"    {text}: {_seeds(seeds)}{cost(seeds.estimate)}"


def _seeds(seeds: "Interval") -> str:
    """`12 [7, 25] seeds`, whole ones."""
    value, low, high = (
        f"{math.ceil(n):,}" if math.isfinite(n) else "over a million"
        for n in (seeds.estimate, seeds.low, seeds.high)
    )
    return f"{value} [{low}, {high}] seeds"


def _spread(spread: "Spread") -> str:
    from harness.evidence.resolution import sd_range

    low, high = sd_range(spread)
    return f"{number(spread.sd, 4)} [{number(low, 4)}, {number(high, 4)}]"


def _of_run(states: Sequence[RunState], folder: Path) -> tuple[str, float | None]:
    """The hours of a finished run, of GPUs where there were any; None where none was made here."""
    finished = [state for state in states if state.state == "finished"]
    for unit in ("GPU", "core"):
        if spent := hours(finished, folder, unit):
            return unit, sum(spent) / len(spent)
    return "core", None
