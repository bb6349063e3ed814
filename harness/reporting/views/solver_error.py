"""The solver's error against network evaluations saved, before the window and after it.

Measured on every finished run of the sweep, on its trained weights and on the base model
(`mixgrpo.evaluation.solver_error`). The same solvers are measured on all of them, so that a seed's
value is the mean over its runs. Beside it stands what training itself lost where the sweep compares
arms that thin out the steps before the window with the same that do not.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

from harness.analysis.analyse import Analysis
from harness.comparison import Comparison
from harness.reporting.figures import picture
from harness.reporting.phrases import verdict_words
from harness.reporting.tables import Table
from harness.reporting.views.solver_figures import (
    WINDOWS,
    by_evaluations_saved,
    by_position,
    middle_share,
    over_seeds,
    pick,
    solvers,
)
from harness.reporting.views.view import View
from harness.stats import MIN_SEEDS, geometric, ratio_interval, side, simultaneous_level
from harness.text import NOTHING, interval, listed, number

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results

DIGITS = 4


def solver_error(
    analysis: Analysis, results: "Results", probes: "pd.DataFrame | None"
) -> View | None:
    """None where nothing was measured."""
    if probes is None or not (probes["probe"] == "solver-error").any():
        return None
    rows = probes[probes["probe"] == "solver-error"]
    by_seed = _by_seed(rows)
    title = "The solver's error against evaluations saved"
    caption = (
        "Relative distance of the final latents from those of the ODE, from the same noise and "
        "prompt, over the network evaluations saved per image; trained weights. Left: fewer steps "
        "before the window; right: after it. Above with the window's steps taken by the ODE, below "
        "with its random steps, the same noise in both trajectories. A point is one share of the "
        "steps left, mean over the window's positions and seeds; bars: 95 % interval over seeds. "
        "Dashed: the solver begins anew after the window and does not go on from what it saw there."
    )
    caption_of_positions = (
        "The same by the window's first step, with "
        f"{_percent(middle_share(by_seed))} of the steps left and random steps in the window."
    )
    tables = [_table(by_seed)]
    losses = _losses(analysis)
    if losses:
        tables.append(_loss_table(analysis, losses))
    return View(
        title,
        (*_answer(analysis, by_seed, losses), *_sentences(by_seed)),
        tuple(tables),
        (
            partial(picture, "solver-error", title, caption, lambda: by_evaluations_saved(by_seed)),
            partial(
                picture,
                "solver-error-position",
                "The solver's error by the window's position",
                caption_of_positions,
                lambda: by_position(by_seed),
            ),
        ),
        brief=_brief(analysis, by_seed, losses),
    )


def _by_seed(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Mean over the runs of a seed, by everything else."""
    keys = ["seed", "model", "place", "order", "ratio", "history", "start", "window", "at"]
    return rows.groupby(keys, observed=True)[["saved", "error"]].mean().reset_index()


# ---- what is shown ---------------------------------------------------------------------------


def _answer(
    analysis: Analysis, by_seed: "pd.DataFrame", losses: list[Comparison]
) -> tuple[str, ...]:
    """Whether the steps before the window may be thinned out and by which order, in one sentence:
    what the solver does wrong there, and what training lost by it."""
    share = middle_share(by_seed)
    errors = _errors_before(by_seed, share)
    clauses = []
    if errors:
        simplest, level = min(errors), simultaneous_level(len(errors) - 1)
        parts = []
        for order, values in errors.items():
            text = f"{interval(geometric(list(values.values())), DIGITS)} by order {order}"
            if order != simplest:
                ratio = ratio_interval(values, errors[simplest], level)
                note = "" if side(ratio) else ", not significant"
                text += f" (times {interval(ratio, 2)} of order {simplest}{note})"
            parts.append(text)
        clauses.append(
            f"with {_percent(share)} of the steps before the window left, the final latents lie "
            f"off those to which the ODE leads there by {listed(parts)}"
        )
    known = [c for c in losses if len(c.seeds) >= MIN_SEEDS]
    if known:
        parts = [
            f"{interval(c.simultaneous, signed=True)} in {analysis.label(c.arm)} "
            f"({verdict_words(c)}{_detectable(c)})"
            for c in known
        ]
        clauses.append(
            f"trained so, {analysis.measure} differs from that of {analysis.sweep.reference_label} "
            f"by {listed(parts)}"
        )
    elif losses:
        clauses.append("what training loses by it cannot be concluded from so few seeds")
    text = "; ".join(clauses)
    return (f"{text[0].upper()}{text[1:]}.",) if text else ()


def _brief(analysis: Analysis, by_seed: "pd.DataFrame", losses: list[Comparison]) -> str:
    """Empty where nothing was measured before the window."""
    share = middle_share(by_seed)
    thin, whole = _errors_before(by_seed, share), _errors_before(by_seed, 1.0).get("1")
    if not thin or not whole:
        return ""
    level = simultaneous_level(len(thin))
    parts = [
        f"{interval(ratio_interval(values, whole, level), 2)} by order {order}"
        for order, values in thin.items()
    ]
    text = (
        f"With {_percent(share)} of the steps before the window left, the final latents' error is "
        f"that of all steps by Euler times {listed(parts)}"
    )
    different = [c for c in losses if c.verdict in ("better", "worse")]
    shown = [c.detectable for c in losses if math.isfinite(c.detectable)]
    if different:
        words = [f"{c.verdict} in {analysis.label(c.arm)}" for c in different]
        text += f"; trained so, {analysis.measure} is {listed(words)}"
    elif shown:
        text += (
            f"; trained so, no loss of {analysis.measure} is shown (smallest detectable loss "
            f"{number(min(shown))} to {number(max(shown))})"
        )
    saved = [
        1
        - analysis.by_name(c.arm).cost.evaluations / analysis.by_name(c.reference).cost.evaluations
        for c in losses
    ]
    if saved:
        text += (
            f"; {100 * max(saved):.1f} % of a run's evaluations are saved at most, counted after "
            "sharing"
        )
    return f"{text}."


def _errors_before(by_seed: "pd.DataFrame", share: float) -> dict[str, dict[int, float]]:
    """By order and seed: the error of the trained model's images, with a random window, where
    `share` of the steps before it are left."""
    rows = pick(by_seed, model="trained", at="image", place="before", ratio=share, window="sde")
    return {
        str(order): _means(of_order) for order, of_order in rows.groupby("order", observed=True)
    }


def _detectable(comparison: Comparison) -> str:
    shown = number(comparison.detectable)
    return "" if shown == NOTHING else f"; smallest detectable difference {shown}"


def _means(rows: "pd.DataFrame") -> dict[int, float]:
    """The mean error by seed."""
    return {int(str(s)): float(e) for s, e in rows.groupby("seed")["error"].mean().items()}


def _sentences(by_seed: "pd.DataFrame") -> tuple[str, ...]:
    share = middle_share(by_seed)
    trained = pick(by_seed, model="trained", at="image")
    sentences = []
    before = pick(trained, place="before", ratio=share)
    after = pick(trained, place="after", ratio=share, history="keep")
    for window in WINDOWS:
        parts = []
        for position, at_position in (("before", before), ("after", after)):
            chosen = at_position[at_position["window"] == window]
            for order in dict.fromkeys(order for order, _ in solvers(by_seed, position)):
                rows = chosen[chosen["order"] == order]
                if len(rows):
                    parts.append((position, order, *over_seeds(rows)))
        if not parts:
            continue
        texts = []
        for position in ("before", "after"):
            of_position = [p for p in parts if p[0] == position]
            if of_position:
                errors = listed(
                    [f"{interval(e, DIGITS)} by order {o}" for _, o, _, e in of_position]
                )
                saved = number(sum(s for _, _, s, _ in of_position) / len(of_position), 1)
                texts.append(f"{position} it, {saved} evaluations saved: {errors}")
        taken = "the ODE's" if window == "ode" else "random"
        sentences.append(
            f"With {_percent(share)} of the steps left and the window's steps {taken}, the final "
            f"latents lie off the ODE's by, {'; '.join(texts)}."
        )
    sentences += _history_sentence(trained, share)
    own_error = over_seeds(pick(by_seed, model="trained", place="reference"))[1]
    sentences.append(
        f"The reference differs from one of half its steps by {number(own_error.mean, 5)}, more "
        "than its own error."
    )
    return tuple(sentences)


def _history_sentence(trained: "pd.DataFrame", share: float) -> list[str]:
    """Whether a solver that goes on from random steps does worse than one that begins anew."""
    rows = pick(trained, place="after", ratio=share, window="sde")
    orders = sorted({order for order, history in solvers(rows, "after") if history == "restart"})
    parts = []
    for order in orders:
        kept, anew = (
            _means(pick(rows, order=order, history=history)) for history in ("keep", "restart")
        )
        level = simultaneous_level(len(orders))
        parts.append(f"{interval(ratio_interval(kept, anew, level), 2)} by order {order}")
    if not parts:
        return []
    return [
        f"After a window of random steps, with {_percent(share)} of the steps left, a solver that "
        "goes on from the window's predictions (sampler.history: keep) has the error of one that "
        f"begins anew times {listed(parts)} (paired by seed; these intervals hold together). "
        "Whether training is the better for it is another question."
    ]


def _table(by_seed: "pd.DataFrame") -> Table:
    rows = []
    for position in ("before", "after"):
        kinds = [("1", "keep"), *(k for k in solvers(by_seed, position) if k != ("1", "keep"))]
        for order, history in kinds:
            solver = pick(by_seed, place=position, order=order, history=history)
            for share in sorted(solver["ratio"].unique(), reverse=True):
                one = pick(solver, ratio=share)
                trained = pick(one, model="trained")
                cells = [
                    _cell(pick(trained, at="state")),
                    _cell(pick(trained, at="image", window="ode")),
                    _cell(pick(trained, at="image", window="sde")),
                    _cell(pick(one, model="base", at="image", window="ode")),
                    _cell(pick(one, model="base", at="image", window="sde")),
                ]
                name = f"{order}, begun anew" if history == "restart" else order
                saved = number(over_seeds(one)[0], 1)
                rows.append((f"{position} the window", name, _percent(share), saved, *cells))
    return Table(
        "Relative distance from the ODE",
        (
            *("place", "order", "steps left", "NFE saved", "at the window's first step"),
            *("final, window by the ODE", "final, window random"),
            *("base model: final, window by the ODE", "base model: final, window random"),
        ),
        tuple(rows),
        "Root mean square of the difference over that of the ODE's state, mean over images, the "
        "window's positions and the runs of a seed; geometric mean over seeds [95 % Student "
        "interval on the logarithm]. NFE: network evaluations per image. 100 %: all steps of the "
        "sampler, before the window by Euler.",
    )


def _cell(rows: "pd.DataFrame") -> str:
    return interval(over_seeds(rows)[1], DIGITS) if len(rows) else NOTHING


def _percent(share: float) -> str:
    return f"{100 * share:.10g} %"


# ---- beside it: what training lost -----------------------------------------------------------


def _losses(analysis: Analysis) -> list[Comparison]:
    """The sweep's comparisons of arms that take fewer of the steps before the window than their
    reference, and differ from it in nothing else."""
    configs = {run.arm: run.config for run in reversed(analysis.sweep.runs)}
    found = []
    for comparison in analysis.compared:
        thin, whole = configs[comparison.arm], configs[comparison.reference]
        sampler = whole.sampler.model_copy(update={"head_ratio": thin.sampler.head_ratio})
        if (
            thin.sampler.head_ratio < whole.sampler.head_ratio
            and whole.model_copy(update={"sampler": sampler, "seed": thin.seed}) == thin
        ):
            found.append(comparison)
    return found


def _loss_table(analysis: Analysis, losses: list[Comparison]) -> Table:
    rows = []
    for c in losses:
        left, right = analysis.by_name(c.arm), analysis.by_name(c.reference)
        rows.append(
            (
                analysis.label(c.arm),
                analysis.label(c.reference),
                interval(c.simultaneous, signed=True),
                number(c.detectable),
                verdict_words(c),
                number(sum(right.cost.nfe_rollout) / 2 - sum(left.cost.nfe_rollout) / 2, 1),
            )
        )
    return Table(
        "What thinning out before the window did to training",
        (
            *("arm", "against", f"difference in {analysis.measure}"),
            *("smallest detectable difference", "verdict", "NFE saved"),
        ),
        tuple(rows),
        "After training, on held-out prompts; paired by seed [intervals that hold for all "
        "comparisons of the sweep together with 95 %]. NFE saved: per image of a rollout, mean "
        "over the run.",
    )
