"""How much faster an accelerated rollout is: measured, by what was counted, and by the formula."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.analysis import WARM_UP, Analysis, by_arm, method_seconds
from harness.drawing import (
    GREY,
    arm_label,
    drawn_arms,
    legend_above,
    name_rows,
    rows_figure,
    some_drawn,
)
from harness.figures import picture
from harness.numbers import NOTHING, interval, number, seconds
from harness.stats import Interval, mean_interval, ratio_interval
from harness.tables import Table
from harness.views import View
from harness.views.words import label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.results import Results
    from mixgrpo.config import RunConfig

DIGITS = 2


@dataclass(frozen=True)
class SpeedUp:
    """One arm's rollouts beside the reference's."""

    arm: str
    ratio: float
    """Of the steps after the window to those of the whole grid (sampler.tail_ratio)."""
    nfe: Interval
    """NFE_old: evaluations per image in a rollout, mean over the iterations."""
    published: float | None
    """The paper's NFE_old."""
    formula: float
    """How many times fewer evaluations than all T steps, by `formula`."""
    counted: float
    """T over the arm's mean NFE_old."""
    computed: float
    """Evaluations that the reference's rollouts made, after sharing, over the arm's; NaN where they
    were not counted apart from the updates'."""
    seconds: float
    """Of the rollout, per iteration: mean over seeds of each one's median."""
    measured: Interval | None
    """The reference's seconds over the arm's, paired by seed; None for the reference."""


def formula(config: "RunConfig") -> float:
    """T / (w + (T - w) r), the paper's speed-up of MixGRPO-Flash with a window at the start."""
    steps, size = config.sampler.steps, config.window.size
    return steps / (size + (steps - size) * config.sampler.tail_ratio)


def speedup(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where nothing is accelerated or the reference has no finished run."""
    found = speed_ups(analysis, results)
    if not analysis.reference.seeds or all(s.ratio == 1 for s in found):
        return None
    title = "How much faster the rollouts are"
    caption = (
        f"Seconds of a rollout with {analysis.reference.arm.label} over those of each arm, with "
        "the 95 % interval of their ratio over seeds, beside what the formula and the evaluations "
        "that were made let one expect." + some_drawn(analysis)
    )
    return View(
        title,
        _sentences(analysis, found),
        (_table(analysis, found),),
        (picture("speedup", title, caption, lambda: _figure(analysis, found)),),
    )


def speed_ups(analysis: Analysis, results: "Results") -> list[SpeedUp]:
    """Every arm with finished runs, in the sweep's order."""
    configs = {run.arm: run.config for run in analysis.sweep.runs}
    medians = _median_seconds(analysis, results)
    runs = by_arm(analysis.sweep, results.runs[results.runs["state"] == "finished"])
    reference = analysis.sweep.reference
    base = _rollout_evaluations(configs[reference], runs[reference])
    found = []
    for result in analysis.arms:
        name = result.arm.name
        if not result.seeds:
            continue
        config, own = configs[name], runs[name]
        nfe = mean_interval([float(v) for v in own["nfe_rollout"]])
        published = result.published.get("nfe_old")
        found.append(
            SpeedUp(
                arm=name,
                ratio=config.sampler.tail_ratio,
                nfe=nfe,
                published=float(published) if published is not None else None,
                formula=formula(config),
                counted=config.sampler.steps / nfe.mean,
                computed=base / _rollout_evaluations(config, own),
                seconds=mean_interval(list(medians[name].values())).mean,
                measured=None
                if name == reference
                else ratio_interval(medians[reference], medians[name]),
            )
        )
    return found


def _rollout_evaluations(config: "RunConfig", runs: "pd.DataFrame") -> float:
    """Per iteration, after sharing; NaN where the updates make forwards that have no backward."""
    if config.objective.kl_weight or not len(runs):
        return math.nan
    made = (runs["evaluations_computed"] - runs["backward_computed"]) / runs["iterations"]
    return float(made.mean())


def _median_seconds(analysis: Analysis, results: "Results") -> dict[str, dict[int, float]]:
    """Median seconds of a rollout by arm and seed, after warm-up.

    The rollout's part of an iteration by the clock, of the iteration's seconds that count.
    """
    metrics = results.metrics
    health = metrics["seconds_health"].fillna(0.0) if "seconds_health" in metrics else 0.0
    part = metrics["seconds_rollout"] / (metrics["seconds_total"] - health)
    own = metrics[["arm", "seed", "iteration"]].assign(seconds=part * method_seconds(results))
    last = own.groupby(["arm", "seed"], observed=True)["iteration"].transform("max")
    own = own[own["iteration"] >= last.clip(upper=WARM_UP)]
    medians = own.groupby(["arm", "seed"], observed=True)["seconds"].median()
    found: dict[str, dict[int, float]] = {arm.name: {} for arm in analysis.sweep.arms}
    rows = medians.reset_index()
    for arm, seed, value in zip(rows["arm"], rows["seed"], rows["seconds"], strict=True):
        found[str(arm)][int(seed)] = float(value)
    return found


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, found: list[SpeedUp]) -> tuple[str, ...]:
    known = [s for s in found if s.measured is not None and s.measured.known and s.ratio < 1]
    if not known:
        return ("How much faster the rollouts are cannot be concluded: too few seeds.",)
    best = max(known, key=lambda s: s.measured.mean if s.measured else 0.0)
    reference = analysis.reference.arm.label
    first = (
        f"The fastest rollouts are those of {label(analysis, best.arm)}: {_times(best.measured)} "
        f"times as fast as those of {reference}, where the formula T / (w + (T - w) r) says "
        f"{number(best.formula, DIGITS)} and the evaluations that were made "
        f"{number(best.computed, DIGITS)}."
    )
    above = [s for s in known if s.measured and s.measured.low > s.formula]
    below = [s for s in known if s.measured and s.measured.high < s.formula]
    within = len(known) - len(above) - len(below)
    second = (
        f"Of {len(known)} accelerated arms, the measured speed-up is below the formula's in "
        f"{len(below)}, above it in {len(above)}, and its interval holds it in {within}."
    )
    return first, second


def _times(found: Interval | None) -> str:
    return NOTHING if found is None else interval(found, DIGITS)


def _table(analysis: Analysis, found: list[SpeedUp]) -> Table:
    rows = []
    for s in found:
        reference = s.measured is None
        rows.append(
            (
                f"{label(analysis, s.arm)} (reference)" if reference else label(analysis, s.arm),
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
        "Speed-up of the rollout",
        (
            *("arm", "tail ratio r", "NFE_old, mean", "published: NFE_old", "formula"),
            *("T / NFE_old", "evaluations made", "s / rollout", "measured"),
        ),
        tuple(rows),
        "Formula: T / (w + (T - w) r), the paper's, for a window at the start; a window that "
        "slides leaves fewer steps behind it. T / NFE_old: from the steps of each image. "
        "Evaluations made: the reference's over the arm's in a rollout, after sharing. Measured: "
        "the reference's seconds over the arm's, medians of a run, paired by seed, geometric mean "
        f"[95 % interval]; {analysis.seconds_in_words}, of which a rollout has its part by the "
        "clock.",
    )


def _figure(analysis: Analysis, found: list[SpeedUp]) -> "Figure":
    drawn = set(drawn_arms(analysis))
    shown = [s for s in found if s.arm in drawn and s.measured is not None]
    figure = rows_figure(len(shown), per_row=0.4, rest=1.5)
    axes = figure.subplots()
    axes.axvline(1, color=GREY, linewidth=1.2)
    for y, s in enumerate(shown):
        if s.measured is not None and s.measured.known:
            axes.plot([s.measured.low, s.measured.high], [y, y], color="#0072B2", linewidth=3.0)
    rows = range(len(shown))
    measured = [s.measured.mean if s.measured else math.nan for s in shown]
    axes.plot(measured, rows, "o", color="#0072B2", markersize=7, label="measured")
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
    axes.set_xlabel(f"times as fast as {analysis.reference.arm.label}")
    legend_above(figure, axes)
    return figure
