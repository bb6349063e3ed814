"""Held-out rewards by p_mix, the part of the first steps that the trained model takes.

The best p_mix is chosen among several on the same numbers, so every difference comes with an
interval that holds for all that is said about one reward together.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import paper
from harness.analysis import Analysis
from harness.drawing import (
    WIDTH,
    arm_label,
    arm_marks,
    legend_above,
    plot_curve,
    shown_arms,
    some_drawn,
)
from harness.figures import picture
from harness.numbers import NOTHING, interval, number
from harness.stats import LEVEL, MIN_SEEDS, Interval, mean_interval, paired_differences
from harness.tables import PUBLISHED_NAMES, Table
from harness.views import View
from harness.views.words import label, listed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.results import Results

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
    differences: dict[tuple[float, float], Interval]
    """(p_mix, other): the first minus the other, paired by seed, by the simultaneous interval."""
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
        (picture("hybrid", title, caption, lambda: _figure(analysis, mixed)),),
    )


def _mixed(analysis: Analysis, rows: "pd.DataFrame") -> list[Mixed]:
    """Every reward of every arm, the measure first."""
    names = [str(name) for name in rows["reward"].unique()]
    rewards = [n for n in (analysis.measure, *analysis.others) if n in names]
    rewards += [n for n in names if n not in rewards]
    found = []
    for reward in rewards:
        own = rows[rows["reward"] == reward]
        values: dict[str, Values] = {}
        roles: dict[str, str] = {}
        for arm, role, seed, p_mix, mean in zip(
            *(own[c] for c in ("arm", "role", "seed", "p_mix", "mean")), strict=True
        ):
            values.setdefault(str(arm), {}).setdefault(float(p_mix), {})[int(seed)] = float(mean)
            roles[str(arm)] = str(role)
        family = sum(
            _pairs(of_arm, p, other) >= MIN_SEEDS
            for of_arm in values.values()
            for p, other in _comparisons(of_arm)
        )
        level = 1 - (1 - LEVEL) / max(1, family)
        for arm in (a.name for a in analysis.sweep.arms if a.name in values):
            of_arm = values[arm]
            means = {p: mean_interval(list(of_arm[p].values())) for p in sorted(of_arm)}
            differences = {
                (p, other): mean_interval(
                    list(paired_differences(of_arm[p], of_arm[other])[0].values()), level
                )
                for p, other in _comparisons(of_arm)
            }
            best = max(means, key=lambda p: means[p].mean)
            found.append(Mixed(arm, reward, roles[arm], means, differences, best))
    return found


def _comparisons(values: Values) -> list[tuple[float, float]]:
    """Every p_mix with 1, and every other one with 0.8, each pair once."""
    pairs = [(p, PURE) for p in sorted(values) if p != PURE and PURE in values]
    return (
        pairs
        + [(p, PAPERS) for p in sorted(values) if p not in (PAPERS, PURE)][
            : None if PAPERS in values else 0
        ]
    )


def _pairs(values: Values, p: float, other: float) -> int:
    return len(paired_differences(values[p], values[other])[0])


def _difference(mixed: Mixed, p: float, other: float) -> Interval | None:
    """p minus other, however it was paired; None where one of them was not measured."""
    if (p, other) in mixed.differences:
        return mixed.differences[p, other]
    turned = mixed.differences.get((other, p))
    if turned is None:
        return None
    return Interval(
        -turned.mean, -turned.high, -turned.low, turned.sd, turned.n, turned.level, turned.dropped
    )


# ---- what is shown ---------------------------------------------------------------------------


def _sentences(analysis: Analysis, mixed: list[Mixed]) -> tuple[str, ...]:
    of_measure = [m for m in mixed if m.reward == analysis.measure]
    said = [_papers_choice(analysis, of_measure)] if of_measure else []
    said += [f"{_best(analysis, m)}." for m in of_measure]
    others = [m for m in mixed if m.reward != analysis.measure]
    for reward in dict.fromkeys(m.reward for m in others):
        said.append(_other(analysis, [m for m in others if m.reward == reward]))
    return tuple(said)


def _papers_choice(analysis: Analysis, mixed: list[Mixed]) -> str:
    """Whether the paper's p_mix is told apart from the trained model alone."""
    found = {m.arm: _difference(m, PAPERS, PURE) for m in mixed}
    known = {arm: d for arm, d in found.items() if d is not None and d.known}
    if not known:
        return (
            f"Whether p_mix = {_percent(PAPERS)} is better than the trained model alone cannot be "
            f"concluded: no arm has {MIN_SEEDS} seeds of both."
        )
    parts = []
    for sign, word in ((1, "better"), (-1, "worse")):
        arms = [
            f"{label(analysis, arm)} ({interval(d, signed=True)})"
            for arm, d in known.items()
            if d.sign == sign and d.varies
        ]
        if arms:
            parts.append(f"{word} in {listed(arms)}")
    alike = [
        f"{label(analysis, arm)} ({interval(d, signed=True)})"
        for arm, d in known.items()
        if not (d.sign and d.varies)
    ]
    if alike:
        parts.append(f"not told apart from it in {listed(alike)}")
    return (
        f"In {analysis.measure}, p_mix = {_percent(PAPERS)}, the paper's choice, compared with the "
        f"trained model alone is {'; '.join(parts)}."
    )


def _best(analysis: Analysis, mixed: Mixed) -> str:
    top = mixed.means[mixed.best]
    text = (
        f"{label(analysis, mixed.arm)}: {mixed.reward} is highest at p_mix = "
        f"{_percent(mixed.best)} ({number(top.mean)})"
    )
    apart: list[str] = []
    alike: list[str] = []
    for other in (PURE, PAPERS):
        found = None if other == mixed.best else _difference(mixed, mixed.best, other)
        if found is not None:
            told = found.known and found.varies and found.sign != 0
            (apart if told else alike).append(f"{_percent(other)} ({interval(found, signed=True)})")
    if apart:
        text += f", told apart from {listed(apart)}"
    if alike:
        text += f", not told apart from {listed(alike)}"
    return text


def _other(analysis: Analysis, mixed: list[Mixed]) -> str:
    """One further reward: what the paper's p_mix does to it in each arm."""
    parts = []
    for m in mixed:
        found = _difference(m, PAPERS, PURE)
        if found is not None and found.known:
            role = " (trained on it)" if m.role == "trained" else ""
            parts.append(f"{interval(found, signed=True)} in {label(analysis, m.arm)}{role}")
    if not parts:
        return f"{mixed[0].reward}: too few seeds to compare."
    return (
        f"{mixed[0].reward}, p_mix = {_percent(PAPERS)} minus the trained model alone: "
        f"{listed(parts)}."
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
            rows.append((label(analysis, arm), _percent(p), *cells))
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
        for other in (PURE, PAPERS):
            for p in sorted({p for m in mixed if m.arm == arm for p in m.means}):
                found = [by_key.get((arm, reward)) for reward in rewards]
                cells = [_difference(m, p, other) if m and p != other else None for m in found]
                if any(cells) and not (p == PURE and other == PAPERS):
                    rows.append(
                        (
                            label(analysis, arm),
                            f"{_percent(p)} minus {_percent(other)}",
                            *(interval(c, signed=True) if c else NOTHING for c in cells),
                        )
                    )
    return Table(
        "Differences between values of p_mix",
        ("arm", "p_mix", *rewards),
        tuple(rows),
        "Paired by seed. The intervals of one reward hold together with 95 % (Bonferroni over all "
        "arms and differences): only where one leaves zero out are two values told apart, also "
        "where the best was chosen after seeing them.",
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
    from matplotlib.figure import Figure

    rewards = list(dict.fromkeys(m.reward for m in mixed))
    marks, columns = arm_marks(analysis), min(2, len(rewards))
    rows = -(-len(rewards) // columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, reward in zip(panels, rewards, strict=False):
        of_arm = {m.arm: m for m in mixed if m.reward == reward}
        for result in shown_arms(analysis):
            found = of_arm.get(result.arm.name)
            if found is not None:
                curve = [(100 * p, mean) for p, mean in found.means.items()]
                plot_curve(axes, curve, marks[found.arm], arm_label(analysis, result))
        axes.set_title(_with_role(mixed, reward))
        axes.set_xlabel("p_mix, % of the steps")
        axes.axvline(100 * PAPERS, color="#999999", linewidth=1, linestyle=":")
        axes.set_xticks([0, 20, 40, 60, 80, 100])
    for axes in panels[len(rewards) :]:
        axes.set_axis_off()
    legend_above(figure, panels[0])
    return figure
