"""How far SDE and ODE lie apart through training, and at the window's moves.

The two KL divergences (`mixgrpo.sampling.distributions`) are measured where the window has just
moved, or every `window.interval` iterations where it does not. `harness.reporting.views.position`
separates what the position does to them from what training does, on the logarithm of the KL.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.analyse import Analysis
from harness.analysis.columns import IMAGE_KL, ITERATION, RUN, SEED, STEP_KL, WINDOW_START
from harness.analysis.results import by_arm, by_seed
from harness.reporting.drawing import (
    legend_above,
    log_heights,
    name_iterations_and_positions,
    panels,
    plot_curves,
    shown_arms,
    some_drawn,
)
from harness.reporting.figures import picture
from harness.reporting.tables import Table
from harness.reporting.views.position import training_parts
from harness.reporting.views.view import View
from harness.stats import (
    LEVEL,
    Interval,
    exponential,
    geometric,
    mean_interval,
    side,
    simultaneous_level,
)
from harness.text import NOTHING, interval, listed, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.analysis.results import Results

KINDS = {
    IMAGE_KL: ("KL of the images", "nats per feature"),
    STEP_KL: ("KL of a step", "nats per element"),
}
DIGITS = 4
FACTOR = 3
"""Digits of a ratio."""


@dataclass(frozen=True)
class Drift:
    """One arm's KL of one kind, by seed."""

    arm: str
    positions: tuple[int, ...]
    """Where it was measured, in the order of the iterations (of the first seed)."""
    firsts: list[float]
    lasts: list[float]
    changes: list[float]
    """Last over first, as a logarithm; so are the two parts of it."""
    by_training: list[float] | None
    """The part at equal position; None where it cannot be known."""
    by_move: list[float] | None
    """The rest, by move of the window; None where it does not slide, or where it is not known."""
    level: float = LEVEL
    """Of the intervals that hold for all arms and kinds together."""

    @property
    def stated(self) -> int:
        """How many of these intervals are given: what training did and what a move does, or, where
        these are not known, the change."""
        return 1 + (self.by_training is not None and self.by_move is not None)

    @property
    def change(self) -> Interval:
        """Simultaneous where it is all that is known."""
        level = self.level if self.by_training is None else LEVEL
        return exponential(mean_interval(self.changes, level))

    @property
    def training(self) -> Interval | None:
        """A factor."""
        return (
            exponential(mean_interval(self.by_training, self.level)) if self.by_training else None
        )

    @property
    def move(self) -> Interval | None:
        """A factor."""
        return exponential(mean_interval(self.by_move, self.level)) if self.by_move else None


def _slides(positions: tuple[int, ...]) -> bool:
    """Whether a window moves in one direction only; a random one does not."""
    return len(set(positions)) > 1 and list(positions) == sorted(positions)


def drift(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where no run has measured it."""
    lines = _lines(analysis, results)
    kinds = [kind for kind in KINDS if kind in lines and lines[kind].notna().any()]
    measured = {kind: _drifts(analysis, lines[lines[kind] > 0], kind) for kind in kinds}
    level = simultaneous_level(sum(d.stated for of_arms in measured.values() for d in of_arms))
    drifts = {
        kind: [replace(d, level=level) for d in of_arms]
        for kind, of_arms in measured.items()
        if of_arms
    }
    if not drifts:
        return None
    caption = (
        "KL between the SDE and the ODE from the same start: of a random step from the ODE's step, "
        "and of the images that both reach. Above over iterations, below over the position of the "
        "window. Mean over seeds, and its 95 % interval as a band." + some_drawn(analysis)
    )
    title = "How far SDE and ODE lie apart"
    return View(
        title,
        _sentences(analysis, drifts),
        tuple(_table(analysis, kind, of_arms) for kind, of_arms in drifts.items()),
        (
            partial(
                picture, "drift", title, caption, lambda: _figure(analysis, lines, list(drifts))
            ),
        ),
        brief=_brief(analysis, drifts),
    )


def _lines(analysis: Analysis, results: "Results") -> "pd.DataFrame":
    """The iterations at which a KL was measured; `alike`: arms that sample in the same way."""
    metrics = results.metrics
    kinds = [kind for kind in KINDS if kind in metrics]
    columns = [*RUN, ITERATION, WINDOW_START, *kinds]
    if not kinds:
        return metrics.iloc[:0]
    lines = metrics.loc[metrics[kinds].notna().any(axis=1), columns]
    ways: dict[str, str] = {}
    for run in analysis.sweep.runs:
        c = run.config
        ways.setdefault(run.arm, repr((c.model, c.sampler, c.window.size, c.rollout)))
    return lines.assign(alike=lines["arm"].astype(str).map(ways))


def _drifts(analysis: Analysis, lines: "pd.DataFrame", kind: str) -> list[Drift]:
    """Every arm with measurements; `lines`: those of this kind, above zero."""
    parts = training_parts(lines.assign(log=np.log(lines[kind])), "log")
    runs = lines.groupby(RUN, observed=True)
    # diff() is NaN in the first line of a run: no move.
    steps = lines.assign(moves=runs[WINDOW_START].diff().fillna(0) != 0)
    ends = runs[kind].agg(["first", "last"])
    ends = ends.assign(moves=steps.groupby(RUN, observed=True)["moves"].sum()).reset_index()
    ends_of = by_arm(analysis.sweep, ends)
    lines_of = by_arm(analysis.sweep, lines)
    drifts = []
    for arm in analysis.sweep.arms:
        ends_of_arm = ends_of[arm.name]
        if not len(ends_of_arm):
            continue
        one = lines_of[arm.name]
        positions = tuple(map(int, one.loc[one[SEED] == one[SEED].iloc[0], WINDOW_START]))
        change = by_seed(
            ends_of_arm.assign(log=np.log(ends_of_arm["last"]) - np.log(ends_of_arm["first"])),
            "log",
        )
        training, moves = parts.get(arm.name), float(ends_of_arm["moves"].mean())
        rest = None
        if training is not None and _slides(positions):
            rest = [(change[s] - training[s]) / moves for s in change]
        drifts.append(
            Drift(
                arm=arm.name,
                positions=positions,
                firsts=list(ends_of_arm["first"]),
                lasts=list(ends_of_arm["last"]),
                changes=list(change.values()),
                by_training=[training[s] for s in change] if training else None,
                by_move=rest,
            )
        )
    return drifts


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, drifts: dict[str, list[Drift]]) -> tuple[str, ...]:
    return tuple(_sentence(analysis, kind, of_arms) for kind, of_arms in drifts.items())


def _sentence(analysis: Analysis, kind: str, drifts: list[Drift]) -> str:
    known = [(f, f.training) for f in drifts if f.training is not None]
    name = KINDS[kind][0]
    if not known:
        changes = listed([f"{_times(f.change)} in {analysis.label(f.arm)}" for f in drifts])
        return (
            f"{name} between SDE and ODE, from the first measurement to the last, became "
            f"{changes}: what training did to it and what the window's position did cannot be "
            "separated, as no arm was at the same positions at another time with enough seeds."
        )
    parts = []
    for sign, word in ((1, "grew"), (-1, "shrank"), (0, "is not shown to have changed")):
        arms = [f"{analysis.label(f.arm)} ({_times(t)})" for f, t in known if side(t) == sign]
        if arms:
            parts.append(f"{word} in {listed(arms)}")
    text = (
        f"Through training, {name} between SDE and ODE, at equal position of the window and if "
        f"training does the same at every position, {'; '.join(parts)}"
    )
    moves = [(f, f.move) for f in drifts if f.move is not None]
    shown = [f"{_times(move)} in {analysis.label(f.arm)}" for f, move in moves if side(move)]
    rest = [f"{_times(move)} in {analysis.label(f.arm)}" for f, move in moves if not side(move)]
    if shown:
        text += f"; a move of the window by itself takes it {listed(shown)}"
    if rest:
        text += f"; a move of the window is not shown to change it ({listed(rest)})"
    return f"{text}."


def _brief(analysis: Analysis, drifts: dict[str, list[Drift]]) -> str:
    """Empty where what training did is nowhere known."""
    parts = []
    for kind, of_arms in drifts.items():
        known = [(f, f.training) for f in of_arms if f.training is not None]
        if not known:
            parts.append(f"{KINDS[kind][0]}: not known")
            continue
        changes = [
            f"{word} in {listed(arms)}"
            for sign, word in ((1, "grew"), (-1, "shrank"))
            if (arms := [analysis.label(f.arm) for f, t in known if side(t) == sign])
        ]
        low, high = (pick(t.mean for _, t in known) for pick in (min, max))
        least, most = min(t.low for _, t in known), max(t.high for _, t in known)
        text = " and ".join(changes) or "is not shown to have changed in any arm"
        text += (
            f" (times {number(low, 2)} to {number(high, 2)}, intervals from {number(least, 2)} to "
            f"{number(most, 2)})"
        )
        moves = [
            f"{interval(f.move, 2)} in {analysis.label(f.arm)}"
            for f in of_arms
            if f.move is not None and side(f.move)
        ]
        if moves:
            text += f", and a move of the window by itself takes it times {listed(moves)}"
        parts.append(f"{KINDS[kind][0]} {text}")
    if not any(f.training for of_arms in drifts.values() for f in of_arms):
        return ""
    return (
        "What training did to the distance between SDE and ODE, at equal position of the window: "
        f"{'; '.join(parts)}."
    )


def _times(factor: Interval) -> str:
    return f"times {interval(factor, FACTOR)}"


def _table(analysis: Analysis, kind: str, drifts: list[Drift]) -> Table:
    name, unit = KINDS[kind]
    rows = []
    for f in drifts:
        rows.append(
            (
                analysis.label(f.arm),
                _positions(f.positions),
                interval(geometric(f.firsts), DIGITS),
                interval(geometric(f.lasts), DIGITS),
                interval(f.change, FACTOR),
                interval(f.training, FACTOR) if f.training else NOTHING,
                interval(f.move, FACTOR) if f.move else NOTHING,
            )
        )
    return Table(
        f"{name} between SDE and ODE, {unit}",
        (
            *("arm", "window at step", "first measured", "last measured", "last over first"),
            *("by training, at equal position, times", "by a move, times"),
        ),
        tuple(rows),
        "Geometric mean over seeds; first, last and last over first with a 95 % interval each. By "
        "training and by a move: factors with intervals that hold for all arms and both kinds of "
        "KL together with 95 %, as does last over first where the others are not known. By "
        "training: the change over the run that is left where every position has its own value in "
        "all arms that sample alike, and the logarithm of the KL changes in each arm in "
        "proportion to the iterations, at every position alike (least squares, intervals by "
        "leaving out one seed at a time). By a move: what is left of last over first, for each "
        "move of the window. A dash: the arm's position follows from the iteration, and no other "
        "arm separates the two; or the window does not slide.",
    )


def _positions(positions: tuple[int, ...]) -> str:
    if len(set(positions)) == 1:
        return str(positions[0])
    return f"{positions[0]} to {positions[-1]}" if _slides(positions) else "drawn"


def _figure(analysis: Analysis, lines: "pd.DataFrame", kinds: list[str]) -> "Figure":
    height = 6.0 + 0.12 * len(shown_arms(analysis))
    figure, panel = panels(2, len(kinds), height)
    for (over_iterations, over_positions), kind in zip(panel.T, kinds, strict=True):
        name, unit = KINDS[kind]
        by_position = lines.groupby([*RUN, WINDOW_START], observed=True)[kind].mean().reset_index()
        lowest = 1.0
        for axes, rows, x in (
            (over_iterations, lines, ITERATION),
            (over_positions, by_position, WINDOW_START),
        ):
            of_arms = by_arm(analysis.sweep, rows)
            lowest = min(lowest, plot_curves(axes, analysis, of_arms, x, kind, by=x))
        name_iterations_and_positions(over_iterations, over_positions)
        if lowest > 0:
            log_heights(over_iterations)
            log_heights(over_positions)
        over_positions.sharey(over_iterations)
        if lowest > 0:  # a band that reaches zero has no lower end on this axis
            over_iterations.set_ylim(bottom=lowest / 1.6)
        over_iterations.set_title(name)
        for axes in (over_iterations, over_positions):
            axes.set_ylabel(unit)
    legend_above(figure, panel[0, 0])
    return figure
