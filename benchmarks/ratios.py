"""Turns timings into ratios with their spread, and ratios into tables and verdicts.

A ratio is made within a round, in which the machine was in one mood, and then summarised over the
rounds: median, and first and third quartile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.arms import FIRST, FLOOR, ONE, OURS, PHASES, UNSHARED, Position, Timing

DANCE = "dance-grpo"
PAPER = {
    "mixgrpo": 0.518,
    "mixgrpo-cps": 0.513,
    "mixgrpo-flash": 0.386,
    "mixgrpo-flash-star": 0.286,
}
"""Seconds per iteration relative to DanceGRPO's, as published (main comparison)."""


@dataclass(frozen=True)
class Measurement:
    """One arm of one preset in one round."""

    model: str
    preset: str
    arm: str
    round: int
    timing: Timing


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        lower, median, upper = (float(q) for q in np.percentile(values, [25, 50, 75]))
        return cls(median, lower, upper)

    def __str__(self) -> str:
        digits = 3 if self.median < 2 else 2
        return f"{self.median:.{digits}f} ({self.lower:.{digits}f} to {self.upper:.{digits}f})"


class Rounds:
    """The measurements of one model."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self._found: dict[tuple[str, str], dict[int, Timing]] = {}
        for m in measurements:
            self._found.setdefault((m.preset, m.arm), {})[m.round] = m.timing

    def arms(self, preset: str) -> list[str]:
        return [arm for arm in (OURS, FIRST, UNSHARED, ONE, FLOOR) if (preset, arm) in self._found]

    def spread(
        self, preset: str, arm: str, value: Callable[[Timing], float] = lambda t: t.seconds
    ) -> Spread:
        return Spread.of([value(t) for t in self._found[preset, arm].values()])

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> Spread:
        """Seconds of one (preset, arm) by those of another, paired by round; over the rounds in
        which both were timed."""
        above, below = self._found[over], self._found[under]
        both = sorted(above.keys() & below.keys())
        return Spread.of([above[r].seconds / below[r].seconds for r in both])


def times_table(rounds: Rounds, positions: dict[str, tuple[Position, Position]]) -> str:
    """Seconds and phases of every arm. positions: of the mean and the first window, by preset."""
    lines = []
    for preset, (mean, first) in positions.items():
        for arm in rounds.arms(preset):
            at = first if arm == FIRST else mean
            cost = at.unshared if arm in (UNSHARED, ONE) else at.cost
            phases = [_phase(rounds, preset, arm, phase) for phase in PHASES]
            row = [preset, arm, at.window, at.steps, cost.forward, cost.backward]
            lines.append([*row, str(rounds.spread(preset, arm)), *phases])
    header = ["preset", "arm", "l", "T~", "forward", "backward", "seconds", *PHASES]
    return markdown(header, lines)


def _phase(rounds: Rounds, preset: str, arm: str, phase: str) -> str:
    spread = rounds.spread(preset, arm, lambda t: t.phases.get(phase, float("nan")))
    return "" if np.isnan(spread.median) else f"{spread.median:.3f}"


def ratios_table(rounds: Rounds, positions: dict[str, tuple[Position, Position]]) -> str:
    """What every preset's iteration is, relative to the other arms and to DanceGRPO's."""
    lines = []
    for preset, (mean, _) in positions.items():
        ours = (preset, OURS)
        first = (preset, FIRST) if FIRST in rounds.arms(preset) else ours
        dance = (DANCE, OURS)
        lines.append(
            [
                preset,
                f"{mean.cost.forward} ({mean.mean_forward:.1f})",
                f"{mean.steps} ({mean.mean_steps:.1f})",
                rounds.ratio(ours, (preset, FLOOR)),
                rounds.ratio((preset, UNSHARED), ours),
                rounds.ratio((preset, ONE), ours),
                rounds.ratio(ours, dance),
                rounds.ratio(first, dance),
                PAPER.get(preset, ""),
            ]
        )
    header = [
        "preset",
        "forward (mean of the run)",
        "T~ (mean of the run)",
        "shared / floor",
        "unshared / shared",
        "one at a time / shared",
        "shared / dance-grpo",
        "first window / dance-grpo",
        "paper",
    ]
    return markdown(header, lines)


@dataclass(frozen=True)
class Verdict:
    """A target and the number beside it."""

    target: str
    measured: Spread
    reached: bool


def verdicts(model: str, device: str, rounds: Rounds, presets: list[str]) -> list[Verdict]:
    """The targets that are set for `model`; the preset that does worst speaks for all."""
    found = []

    def at_most(name: str, bound: float, measured: Spread) -> None:
        found.append(Verdict(f"{name} <= {bound:.2f}", measured, measured.median <= bound))

    floors = {p: rounds.ratio((p, OURS), (p, FLOOR)) for p in presets}
    worst = max(floors, key=lambda p: floors[p].median)
    bound = 1.10 if model == "embedded" else 1.05
    at_most(f"{model}: shared / floor, mixgrpo", bound, floors["mixgrpo"])
    at_most(f"{model}: shared / floor, largest: {worst}", bound, floors[worst])
    if model == "embedded" and device == "cpu":
        ones = {p: rounds.ratio((p, ONE), (p, OURS)) for p in presets}
        least = min(ones, key=lambda p: ones[p].median)
        for name, preset in (("mixgrpo", "mixgrpo"), (f"smallest: {least}", least)):
            found.append(
                Verdict(
                    f"{model}: one at a time / shared, {name} >= 8",
                    ones[preset],
                    ones[preset].median >= 8,
                )
            )
    if model == "larger":
        for preset, bound in (
            ("mixgrpo", 0.44),
            ("mixgrpo-flash", 0.30),
            ("mixgrpo-flash-star", 0.26),
        ):
            measured = rounds.ratio((preset, OURS), (DANCE, OURS))
            at_most(f"{model}: {preset} / dance-grpo (paper {PAPER[preset]})", bound, measured)
    return found


def verdicts_table(found: list[Verdict]) -> str:
    lines = [[v.target, v.measured, "reached" if v.reached else "not reached"] for v in found]
    return markdown(["target", "measured", ""], lines)


def markdown(header: list[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    rows: list[Sequence[object]] = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
