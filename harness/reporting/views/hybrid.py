"""Held-out rewards by p_mix, the part of the first steps that the trained model takes.

What is tested is the paper's choice against the trained model alone, once for each arm. The other
differences stand beside it as description: which p_mix is highest is seen, not tested.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.analysis.analyse import Analysis
from harness.comparison import Comparison, compare
from harness.reporting.drawing import (
    arm_label,
    arm_marks,
    hide_rest,
    legend_above,
    panels,
    plot_curve,
    shown_arms,
    some_drawn,
)
from harness.reporting.figures import picture
from harness.reporting.phrases import span
from harness.reporting.tables import PUBLISHED_NAMES, Table
from harness.reporting.views.view import View
from harness.stats import Interval, mean_interval, paired_differences
from harness.study import paper
from harness.text import NOTHING, interval, listed, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.analysis.results import Results

PURE, PAPERS = 1.0, 0.8
"""What every p_mix is compared with: the trained model alone, and the paper's choice."""

Values = dict[float, dict[int, float]]
"""By p_mix and seed."""


@dataclass(frozen=True)
class Mixed:
    """One reward of one arm by p_mix."""

    arm: str
    reward: str
    role: str
    """What the arm does with the reward: trained, held out, other."""
    means: dict[float, Interval]
    choice: Comparison | None
    """PAPERS minus PURE, in the family of the reward's arms; None where they were not measured."""
    differences: dict[tuple[float, float], Interval]
    """(p_mix, other) besides: the first minus the other, paired by seed, by its own interval."""
    best: float
    """The p_mix with the highest mean."""


def hybrid(analysis: Analysis, results: "Results", probes: "pd.DataFrame | None") -> View | None:
    """None where nothing was measured."""
    if probes is None or not (probes["probe"] == "hybrid").any():
        return None
    mixed = _mixed(analysis, probes[probes["probe"] == "hybrid"])
    title = "Hybrid inference: how many of the first steps the trained model should take"
    caption = (
        "Rewards on the held-out prompts where the trained model takes the first p_mix of the "
        "steps and the base model the rest: mean over seeds, and its 95 % interval as a band. "
        "100 %: the trained model alone, as everywhere else on this page." + some_drawn(analysis)
    )
    return View(
        title,
        _sentences(analysis, mixed),
        (_means(analysis, mixed), _differences(analysis, mixed), _published()),
        (partial(picture, "hybrid", title, caption, lambda: _figure(analysis, mixed)),),
        brief=_brief(mixed),
    )


def _mixed(analysis: Analysis, rows: "pd.DataFrame") -> list[Mixed]:
    """Every reward of every arm, the measure first."""
    names = [str(name) for name in rows["reward"].unique()]
    rewards = [n for n in (analysis.measure, *analysis.others) if n in names]
    rewards += [n for n in names if n not in rewards]
    mixed = []
    for reward in rewards:
        of_reward = rows[rows["reward"] == reward]
        values: dict[str, Values] = {}
        roles: dict[str, str] = {}
        for arm, role, seed, p_mix, mean in zip(
            *(of_reward[c] for c in ("arm", "role", "seed", "p_mix", "mean")), strict=True
        ):
            values.setdefault(str(arm), {}).setdefault(float(p_mix), {})[int(seed)] = float(mean)
            roles[str(arm)] = str(role)
        choices = _choices(values)
        for arm in (a.name for a in analysis.sweep.arms if a.name in values):
            of_arm = values[arm]
            means = {p: mean_interval(list(of_arm[p].values())) for p in sorted(of_arm)}
            differences = {
                (p, other): mean_interval(
                    list(paired_differences(of_arm[p], of_arm[other])[0].values())
                )
                for p, other in _described(of_arm)
            }
            best = max(means, key=lambda p: means[p].mean)
            mixed.append(Mixed(arm, reward, roles[arm], means, choices.get(arm), differences, best))
    return mixed


def _choices(values: dict[str, Values]) -> dict[str, Comparison]:
    """The paper's p_mix against the trained model alone, by arm: a family of one for each arm."""
    both = [arm for arm, of_arm in values.items() if {PURE, PAPERS} <= of_arm.keys()]
    pure = {arm: f"{arm} alone" for arm in both}
    given = {arm: values[arm][PAPERS] for arm in both}
    given |= {pure[arm]: values[arm][PURE] for arm in both}
    return compare(given, pure | {name: name for name in pure.values()})


def _described(values: Values) -> list[tuple[float, float]]:
    """What else is shown: the mixed ones with 1 and with 0.8. The base model alone is no choice."""
    mixed = [p for p in sorted(values) if p not in (0.0, PURE, PAPERS)]
    return [(p, other) for other in (PURE, PAPERS) if other in values for p in mixed]


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, mixed: list[Mixed]) -> tuple[str, ...]:
    of_measure = [m for m in mixed if m.reward == analysis.measure]
    held_out = [m for m in mixed if m.role == "held out" and m.reward != analysis.measure]
    sentences = []
    if of_measure:
        sentences = [_papers_choice(analysis, of_measure), _highest(analysis, of_measure)]
    if held_out:
        first = [m for m in held_out if m.reward == held_out[0].reward]
        sentences.append(_papers_choice(analysis, first))
    return tuple(sentences)


def _brief(mixed: list[Mixed]) -> str:
    """The paper's p_mix against the trained model alone by reward; empty where nothing is known."""
    parts = []
    for reward in dict.fromkeys(m.reward for m in mixed):
        known = [
            m.choice
            for m in mixed
            if m.reward == reward and m.choice and m.choice.simultaneous.known
        ]
        verdicts = []
        for word in ("better", "worse"):
            means = [c.simultaneous.mean for c in known if c.verdict == word]
            if means:
                size = span(means, signed=True)
                verdicts.append(f"{word} in {len(means)} of {len(known)} arms (means {size})")
        if known:
            same = "neither better nor worse in any arm"
            parts.append(f"{reward} {' and '.join(verdicts) or same}")
    if not parts:
        return ""
    return (
        f"With p_mix = {_percent(PAPERS)}, the paper's choice, instead of the trained model alone: "
        f"{', '.join(parts)}."
    )


def _papers_choice(analysis: Analysis, mixed: list[Mixed]) -> str:
    """Whether the paper's p_mix differs significantly from the trained model alone, by a reward."""
    known = [m.choice for m in mixed if m.choice and m.choice.simultaneous.known]
    reward = mixed[0].reward
    if not known:
        return (
            f"Whether p_mix = {_percent(PAPERS)} is better in {reward} than the trained model "
            "alone cannot be concluded: too few seeds of both."
        )
    parts = []
    for verdicts, word in (
        (("better",), "better in"),
        (("worse",), "worse in"),
        (("equal", "undecided"), "not shown to differ in"),
    ):
        arms = [
            f"{analysis.label(c.arm)} ({interval(c.simultaneous, signed=True)})"
            for c in known
            if c.verdict in verdicts
        ]
        if arms:
            parts.append(f"{word} {listed(arms)}")
    text = (
        f"In {reward}, p_mix = {_percent(PAPERS)}, the paper's choice, compared with the trained "
        f"model alone is {'; '.join(parts)}"
    )
    shown = [c.detectable for c in known if math.isfinite(c.detectable)]
    if shown:
        text += f"; the smallest detectable difference is {span(shown, by='arm')}"
    return f"{text}."


def _highest(analysis: Analysis, mixed: list[Mixed]) -> str:
    arms = [
        f"{_percent(m.best)} in {analysis.label(m.arm)} ({number(m.means[m.best].mean)})"
        for m in mixed
    ]
    return (
        f"The mean of {mixed[0].reward} is highest at p_mix = {listed(arms)}, which is seen and "
        "not tested."
    )


def _means(analysis: Analysis, mixed: list[Mixed]) -> Table:
    rewards = list(dict.fromkeys(m.reward for m in mixed))
    by_key = {(m.arm, m.reward): m for m in mixed}
    rows = []
    for arm in dict.fromkeys(m.arm for m in mixed):
        for p in sorted({p for m in mixed if m.arm == arm for p in m.means}):
            cells = []
            for reward in rewards:
                m = by_key.get((arm, reward))
                mark = " (highest)" if m and m.best == p else ""
                cells.append(interval(m.means[p]) + mark if m and p in m.means else NOTHING)
            rows.append((analysis.label(arm), _percent(p), *cells))
    return Table(
        "Rewards by p_mix",
        ("arm", "p_mix", *(_with_role(mixed, reward) for reward in rewards)),
        tuple(rows),
        "Mean over seeds [95 % Student interval of this p_mix alone], on the held-out prompts and "
        "noise of the run's own evaluations. 0 % is the base model, 100 % the trained one.",
    )


def _with_role(mixed: list[Mixed], reward: str) -> str:
    roles = {m.role for m in mixed if m.reward == reward}
    if roles == {"trained"}:
        return f"{reward} (trained)"
    return f"{reward} (held out)" if "trained" not in roles else reward


def _differences(analysis: Analysis, mixed: list[Mixed]) -> Table:
    rewards = list(dict.fromkeys(m.reward for m in mixed))
    by_key = {(m.arm, m.reward): m for m in mixed}
    rows = []
    for arm in dict.fromkeys(m.arm for m in mixed):
        of_arm = [by_key.get((arm, reward)) for reward in rewards]
        chosen = [m.choice.simultaneous if m and m.choice else None for m in of_arm]
        lines = [(f"{_percent(PAPERS)} minus {_percent(PURE)}, tested", chosen)]
        for p, other in dict.fromkeys(pair for m in of_arm if m for pair in m.differences):
            name = f"{_percent(p)} minus {_percent(other)}"
            lines.append((name, [m.differences.get((p, other)) if m else None for m in of_arm]))
        rows += [
            (
                analysis.label(arm),
                name,
                *(interval(c, signed=True) if c else NOTHING for c in cells),
            )
            for name, cells in lines
            if any(cells)
        ]
    return Table(
        "Differences between values of p_mix",
        ("arm", "p_mix", *rewards),
        tuple(rows),
        "Paired by seed. Tested: the intervals of one reward hold for all arms together with 95 %. "
        "All others are description: each interval holds by itself, and among so many some leave "
        "zero out by chance.",
    )


def _published() -> Table:
    source = paper.find("hybrid")
    columns = [c for c in source.columns if c in PUBLISHED_NAMES]
    return Table(
        f"Published: {source.title}",
        ("p_mix", *(f"published: {PUBLISHED_NAMES[c]}" for c in columns)),
        tuple(
            (
                f"{key} %",
                *(
                    NOTHING if value is None else f"{value:.3f}"
                    for column, value in zip(source.columns, values, strict=True)
                    if column in columns
                ),
            )
            for key, values in source.rows.items()
        ),
        f"{source.label}. Without seeds or intervals, and scores of another model, task and "
        "rewards: only the order can be set beside the tables above.",
    )


def _percent(p: float) -> str:
    return f"{100 * p:.10g} %"


def _figure(analysis: Analysis, mixed: list[Mixed]) -> "Figure":
    rewards = list(dict.fromkeys(m.reward for m in mixed))
    marks, across = arm_marks(analysis), min(2, len(rewards))
    rows = -(-len(rewards) // across)
    figure, panel = panels(rows, across, 0.7 + 2.9 * rows)
    for axes, reward in zip(panel.ravel(), rewards, strict=False):
        of_arm = {m.arm: m for m in mixed if m.reward == reward}
        for result in shown_arms(analysis):
            if result.arm.name in of_arm:
                curve = [(100 * p, mean) for p, mean in of_arm[result.arm.name].means.items()]
                plot_curve(axes, curve, marks[result.arm.name], arm_label(analysis, result))
        axes.set_title(_with_role(mixed, reward))
        axes.set_xlabel("p_mix, % of the steps")
        axes.axvline(100 * PAPERS, color="#999999", linewidth=1, linestyle=":")
        axes.set_xticks([0, 20, 40, 60, 80, 100])
    hide_rest(panel, len(rewards))
    legend_above(figure, panel[0, 0])
    return figure
