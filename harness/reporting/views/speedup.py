"""How much faster an accelerated rollout is: measured, by what was counted, and by the formula."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.analyse import Analysis
from harness.analysis.results import by_arm, by_seed
from harness.analysis.seconds import iteration_times, steady
from harness.reporting.drawing import (
    GREY,
    arm_label,
    drawn_arms,
    legend_above,
    name_rows,
    plot_interval,
    rows_figure,
    some_drawn,
    wrapped,
)
from harness.reporting.figures import picture
from harness.reporting.findings import not_timed_together
from harness.reporting.tables import Table
from harness.reporting.views.view import View
from harness.stats import (
    MIN_SEEDS,
    Interval,
    mean_interval,
    ratio_interval,
    side,
    simultaneous_level,
)
from harness.text import NOTHING, interval, listed, number, seconds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.analysis.results import Results
    from mixgrpo.settings.config import RunConfig

DIGITS = 2


@dataclass(frozen=True)
class SpeedUp:
    """One arm's rollouts beside those of the arm that it is compared with."""

    arm: str
    reference: str
    ratio: float
    """Of the steps after the window to those of the whole grid (sampler.tail_ratio)."""
    nfe: Interval
    """NFE_old: evaluations per image in a rollout, mean over the iterations."""
    published: float | None
    """The paper's NFE_old."""
    formula: float
    """How many times fewer evaluations than the reference, by `formula`."""
    counted: float
    """The reference's mean NFE_old over the arm's."""
    computed: float
    """Evaluations that the reference's rollouts made, after sharing, over the arm's; NaN where they
    were not counted apart from the updates'."""
    seconds: float
    """Of a rollout: mean over a run's iterations after warm-up, mean over seeds."""
    measured: Interval | None
    """The reference's seconds over the arm's, paired by seed, simultaneous over all arms; None for
    a reference."""
    accelerated: bool
    """Whether it leaves out steps after the window that its reference takes."""


def formula(config: "RunConfig") -> float:
    """T / (w + (T - w) r), the paper's speed-up of MixGRPO-Flash with a window at the start."""
    steps, size = config.sampler.steps, config.window.size
    return steps / (size + (steps - size) * config.sampler.tail_ratio)


def speedup(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where nothing is accelerated or no reference has a finished run."""
    speedups = speed_ups(analysis, results)
    if not any(s.accelerated for s in speedups):
        return None
    title = "How much faster the rollouts are"
    caption = (
        f"Seconds of a rollout with {analysis.sweep.reference_label} over those of each arm, with "
        "the interval of their ratio over seeds that holds for all arms together, beside what the "
        "formula and the evaluations that were made let one expect." + some_drawn(analysis)
    )
    return View(
        title,
        _sentences(analysis, speedups),
        (_table(analysis, speedups),),
        (partial(picture, "speedup", title, caption, lambda: _figure(analysis, speedups)),),
        brief=_brief(speedups),
    )


def speed_ups(analysis: Analysis, results: "Results") -> list[SpeedUp]:
    """Every arm with finished runs whose reference has some too, in the sweep's order."""
    configs = {run.arm: run.config for run in analysis.sweep.runs}
    references = analysis.sweep.references
    rollouts = _seconds(analysis, results)
    together = {
        arm: {seed: v for seed, v in of_arm.items() if analysis.timed_together(arm, seed)}
        for arm, of_arm in rollouts.items()
    }
    runs = by_arm(analysis.sweep, results.finished)
    family = sum(
        len(together[arm].keys() & rollouts[reference].keys()) >= MIN_SEEDS
        for arm, reference in references.items()
        if arm != reference
    )
    level = simultaneous_level(family)
    speedups = []
    for result in analysis.arms:
        name, reference = result.arm.name, references[result.arm.name]
        if not result.seeds or not analysis.by_name(reference).seeds:
            continue
        config, base, of_arm = configs[name], configs[reference], runs[name]
        nfe = mean_interval([float(v) for v in of_arm[columns.NFE_ROLLOUT]])
        published = result.published.values.get("nfe_old")
        computed = _rollout_evaluations(config, of_arm)
        speedups.append(
            SpeedUp(
                arm=name,
                reference=reference,
                ratio=config.sampler.tail_ratio,
                nfe=nfe,
                published=float(published) if published is not None else None,
                formula=formula(config) / formula(base),
                counted=float(runs[reference][columns.NFE_ROLLOUT].mean()) / nfe.mean,
                computed=_rollout_evaluations(base, runs[reference]) / computed,
                seconds=mean_interval(list(rollouts[name].values())).mean,
                measured=None
                if name == reference
                else ratio_interval(rollouts[reference], together[name], level),
                accelerated=config.sampler.tail_ratio < base.sampler.tail_ratio,
            )
        )
    return speedups


def _rollout_evaluations(config: "RunConfig", runs: "pd.DataFrame") -> float:
    """Per iteration, after sharing; NaN where the updates make forwards that have no backward."""
    if config.objective.kl_weight or not len(runs):
        return math.nan
    made = (runs[columns.EVALUATIONS] - runs[columns.BACKWARD]) / runs[columns.ITERATIONS]
    return float(made.mean())


def _seconds(analysis: Analysis, results: "Results") -> dict[str, dict[int, float]]:
    """Seconds of a rollout by arm and seed: the sum over a run after warm-up, over its iterations.

    A sum, as evaluations are: a median would leave out what the few iterations cost whose window
    stands far from the others'.
    """
    column = columns.seconds("rollout")
    times = steady(iteration_times(results))
    means = times.groupby(columns.RUN, observed=True)[column].mean().reset_index()
    return {arm: by_seed(rows, column) for arm, rows in by_arm(analysis.sweep, means).items()}


# ---- what is shown ---------------------------------------------------------------------------


def _brief(speedups: list[SpeedUp]) -> str:
    """Empty where nothing is known."""
    known = _known(speedups)
    if not known:
        return ""
    low, high = (pick(measured.mean for _, measured in known) for pick in (min, max))
    fewest, most = (pick(s.computed for s, _ in known) for pick in (min, max))
    faster = sum(side(measured) > 0 for _, measured in known)
    return (
        "Rollouts that thin out the steps after the window are shown to be faster in "
        f"{faster} of {len(known)} arms, by their means {number(low, DIGITS)} to "
        f"{number(high, DIGITS)} times as fast, with {number(fewest, DIGITS)} to "
        f"{number(most, DIGITS)} times fewer evaluations."
    )


def _known(speedups: list[SpeedUp]) -> list[tuple[SpeedUp, Interval]]:
    return [
        (s, s.measured)
        for s in speedups
        if s.accelerated and s.measured is not None and s.measured.known
    ]


def _sentences(analysis: Analysis, speedups: list[SpeedUp]) -> tuple[str, ...]:
    known = _known(speedups)
    if not known:
        return ("How much faster the rollouts are cannot be concluded: too few seeds.",)
    parts = []
    for sign, word in ((1, "faster"), (-1, "slower"), (0, "not significant")):
        these = [
            f"{analysis.label(s.arm)} (times {interval(measured, DIGITS)}, by the evaluations "
            f"made {number(s.computed, DIGITS)})"
            for s, measured in known
            if side(measured) == sign
        ]
        if these:
            parts.append(f"{word} in {len(these)}: {listed(these)}")
    arms = f"{len(known)} arms that thin" if len(known) > 1 else "1 arm that thins"
    first = (
        f"Of {arms} out the steps after the window, the rollouts compared "
        f"with {analysis.sweep.reference_label} are {'; '.join(parts)}."
    )
    above = sum(measured.low > s.formula for s, measured in known)
    below = sum(measured.high < s.formula for s, measured in known)
    second = (
        f"The measured speed-up is below that of the formula T / (w + (T - w) r) in {below} of "
        f"{len(known)}, above it in {above}, and its interval holds it in "
        f"{len(known) - above - below}; the formula is for the part after a window at step 0, and "
        "knows nothing of steps that a group's images share."
    )
    counted = [
        f"{analysis.label(s.arm)} ({number(s.computed, DIGITS)})"
        for s, measured in known
        if not measured.low <= s.computed <= measured.high
    ]
    third = (
        f"The interval leaves out the ratio of the evaluations made in {listed(counted)}: there an "
        "evaluation took another time."
        if counted
        else "The interval holds the ratio of the evaluations made in all of them."
    )
    return tuple(filter(None, (first, second, third, not_timed_together(analysis))))


def _times(ratio: Interval | None) -> str:
    return NOTHING if ratio is None else interval(ratio, DIGITS)


def _table(analysis: Analysis, speedups: list[SpeedUp]) -> Table:
    rows = []
    for s in speedups:
        rows.append(
            (
                analysis.name_in_table(s.arm),
                f"{s.ratio:g}",
                number(s.nfe.mean, 1) if s.nfe.sd == 0 else interval(s.nfe, 1),
                NOTHING if s.published is None else f"{s.published:g}",
                number(s.formula, DIGITS),
                number(s.counted, DIGITS),
                number(s.computed, DIGITS),
                seconds(s.seconds),
                _times(s.measured),
            )
        )
    return Table(
        f"Speed-up of the rollout, compared with {analysis.sweep.reference_label}",
        (
            *("arm", "tail ratio r", "NFE_old, mean", "published: NFE_old", "formula"),
            *("by NFE_old", "evaluations made", "s / rollout", "measured"),
        ),
        tuple(rows),
        "The last ratios are those of the reference over the arm. Formula: T / (w + (T - w) r), "
        "the paper's, arm over reference; it is for the part after a window at step 0, so that a "
        "window that slides leaves fewer steps to save, and it knows nothing of steps that a "
        "group's images share. NFE_old: from the steps of each image. Evaluations made: in a "
        "rollout, after sharing. Measured: seconds, the sum of a run after warm-up, paired by "
        "seed, geometric mean [interval that holds for all arms together with 95 %]; "
        f"{analysis.seconds_in_words}, of which a rollout has its part by the clock.",
    )


def _figure(analysis: Analysis, speedups: list[SpeedUp]) -> "Figure":
    drawn = set(drawn_arms(analysis))
    shown = [s for s in speedups if s.arm in drawn and s.measured is not None]
    figure, axes = rows_figure(len(shown), per_row=0.4, rest=1.5)
    axes.axvline(1, color=GREY, linewidth=1.2)
    measured = [s.measured for s in shown if s.measured is not None]
    for y, ratio in enumerate(measured):
        plot_interval(axes, y, ratio, color="#0072B2", linewidth=3.0)
    rows = range(len(shown))
    means = [ratio.mean for ratio in measured]
    axes.plot(means, rows, "o", color="#0072B2", markersize=7, label="measured")
    for values, marker, colour, name in (
        ([s.computed for s in shown], "s", "#D55E00", "by evaluations made"),
        ([s.formula for s in shown], "D", "#000000", "by the formula"),
    ):
        axes.plot(
            *(values, rows, marker),
            markerfacecolor="none",
            markeredgecolor=colour,
            markersize=7,
            label=name,
        )
    name_rows(axes, [arm_label(analysis, analysis.by_name(s.arm), 36) for s in shown])
    axes.set_xlabel(wrapped(f"times as fast as {analysis.sweep.reference_label}", 80))
    legend_above(figure, axes)
    return figure
