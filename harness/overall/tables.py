"""The tables of the overall report: questions, the front, the paper's noise, the cost."""

import math
from typing import TYPE_CHECKING

from harness.overall.front import COSTS, front, steps
from harness.overall.questions import SCORES, Overall, Printed, Question
from harness.reporting.tables import PUBLISHED_NAMES, Table
from harness.study import paper
from harness.text import NOTHING, interval, number, seconds

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = {
    "higher": "significant",
    "lower": "significant",
    "not significant": "not significant",
    "unknown": "unknown: too few shared seeds, or the same with every seed",
}


def questions_table(overall: Overall) -> Table:
    """One row per question: answer, effect, resolution, and what the paper printed."""
    (low, high), (_, hps) = (paper.noise(score) or (math.nan, math.nan) for score in SCORES)
    return Table(
        "All questions",
        (
            *("study", "question", "answer", "largest effect", "seeds"),
            *("smallest detectable difference", "seeds for the margin"),
            *("published differences", "published: against the paper's noise"),
        ),
        tuple(_question_row(question) for question in overall.questions),
        "Largest effect: of the arms that are better or worse than the reference, or, "
        "where none is, of all; arm minus reference [interval that holds for all comparisons of "
        "the study together with 95 %]; none where a measurement other than the arms' reward "
        "answers. Answer and "
        "effect stand at equal iterations. Seeds for the margin: how many show a true difference "
        "as large as the margin, where the largest effect is undecided. Published: "
        "another model and task, one run per row; the same pair of arms, then the row that differs "
        "most from the reference's; two numbers where the paper prints a setting with different "
        "scores. One setting differs from itself between the paper's tables by "
        f"{low:.3f} to {high:.3f} in ImageReward, and by {hps:.3f} in HPS-v2.1, where one setting "
        "alone shows it. Beyond: a row differs by more than the largest of these, whichever value "
        "is taken. Within: every row by less than the smallest. Of its size: between them.",
    )


def _question_row(question: Question) -> tuple[str, ...]:
    analysis, effect = question.study.analysis, question.effect
    counts = sorted({len(result.seeds) for result in analysis.arms})
    sweep = question.study.sweep
    complete = bool(sweep.looks) or counts == [len(sweep.seeds)]
    seeds_done = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    needed = NOTHING
    if question.needed is not None:
        low, high = (f"{value:,.0f}" for value in (question.needed.low, question.needed.high))
        needed = f"{question.needed.estimate:,.0f} ({low} to {high})"
    return (
        question.study.sweep.name,
        question.study.sweep.question,
        question.answer,
        NOTHING
        if effect is None
        else f"{interval(effect.simultaneous, signed=True)} ({question.effect_label})",
        seeds_done if complete else f"{seeds_done} of {len(sweep.seeds)}",
        NOTHING if effect is None else number(effect.detectable),
        needed,
        "; ".join(map(_published, question.printed)) or NOTHING,
        ", ".join(f"{PUBLISHED_NAMES[p.score]} {p.against_noise}" for p in question.printed)
        or NOTHING,
    )


def _published(printed: Printed) -> str:
    def of(row: str) -> str:
        values = [number(value, signed=True) for value in printed.differences[row]]
        return f"{' or '.join(values)} ({row} − {printed.base})"

    name, largest = PUBLISHED_NAMES[printed.score], of(printed.largest)
    if printed.same is None or printed.same == printed.largest:
        return f"{name} {largest}"
    return f"{name} {of(printed.same)}, largest {largest}"


def front_table(overall: Overall) -> Table | None:
    if not overall.points:
        return None
    on = {cost: {p.label for p in front(overall.points, cost)} for cost in COSTS}
    against = {cost: {s.point.label: s for s in steps(overall.points, cost)} for cost in COSTS}
    rows = []
    for point in overall.points:
        row = [point.label, point.study, interval(point.reward)]
        for cost in COSTS:
            spent = point.cost.get(cost)
            mean = NOTHING if spent is None else _amount(cost, spent.mean)
            row.append(f"{mean}{' (front)' if point.label in on[cost] else ''}")
            step = against[cost].get(point.label)
            row.append(
                NOTHING
                if step is None
                else f"{interval(step.difference, signed=True)} to {step.against.label}: "
                f"{VERDICTS[step.verdict]}"
            )
        rows.append(tuple(row))
    return Table(
        "Reward and cost of every arm",
        (
            *("arm", "study", "reward after training"),
            *("seconds / run", "to the best that takes no more seconds"),
            *("evaluations / run", "to the best that takes no more evaluations"),
        ),
        tuple(rows),
        "Mean over seeds [95 % Student interval]. Front: no arm that costs no more has a higher "
        "mean. Beside the cost: the difference to the best mean among the arms that cost no more, "
        "paired by seed. Which arm that is depends on the same rewards, so that the intervals are "
        "those that hold for all pairs of these arms together with 95 %. Arms that are not "
        "significantly different may change places with other seeds.",
    )


def _amount(cost: str, value: float) -> str:
    return f"{value:,.0f}" if cost == "evaluations" else seconds(value)


def paper_noise_table() -> Table:
    """The same settings with the scores that the paper prints for them."""
    rows = []
    for repeated in paper.REPEATED:
        values: dict[float, list[str]] = {}
        for value, table, row in repeated.printed:
            place = f"source: {table}" if row is None else paper.find(table).title
            values.setdefault(value, []).append(place)
        printed = "; ".join(f"{v:.3f} ({', '.join(places)})" for v, places in values.items())
        rows.append(
            (
                repeated.setting,
                PUBLISHED_NAMES[repeated.score],
                printed,
                number(repeated.spread),
            )
        )
    low, high = paper.noise("ir") or (math.nan, math.nan)
    return Table(
        "The paper's visible noise: one setting, printed several times",
        ("setting", "score", "printed", "spread"),
        tuple(rows),
        "Published for FLUX.1-dev and HPDv2, one run per row, no seeds. The spread is the largest "
        f"value minus the smallest: {low:.3f} to {high:.3f} in ImageReward. A difference of two "
        "rows below the smallest spread is within the visible noise, one above the largest is "
        "beyond it, one between them is of its size. One beyond it is not thereby shown: few "
        "settings are printed twice, and the largest of several differences is large by choice. A "
        "value whose source is another table of the paper is not in the tables kept here.",
    )


def costs_table(overall: Overall) -> Table:
    """What each study took, and all of them; runs that several studies share once in the sum."""
    import pandas as pd

    rows = []
    frames = []
    for question in overall.questions:
        study = question.study
        finished, asked = len(study.runs), len(study.sweep.runs)
        copied = int(study.runs["copied"].sum())
        rows.append(
            (
                study.sweep.name,
                f"{finished} of {asked}{f' ({copied} copied)' if copied else ''}",
                *_costs(study.runs),
            )
        )
        frames.append(study.runs)
    if frames:
        # Of equal runs the one that computed most: the others began from copies.
        every = pd.concat(frames, ignore_index=True).sort_values("shared", kind="stable")
        every = every.drop_duplicates("hash")
        rows.append(("all, shared runs once", str(len(every)), *_costs(every)))
    return Table(
        "What the studies took",
        (
            *("study", "runs", "training, hours", "of one core, hours", "evaluation, hours"),
            "network evaluations",
        ),
        tuple(rows),
        "Hours are summed over runs, whichever ran side by side. What was copied from another run "
        "counts where it was computed, whole runs and first iterations alike. Training by the "
        "clock has everything that an iteration does; of one core: the process's time on the "
        "processor, where it was measured. Evaluation on held-out prompts comes on top. Network "
        "evaluations are those of the training, counted after sharing.",
    )


def _costs(runs: "pd.DataFrame") -> tuple[str, ...]:
    hours = [
        number(float(runs[column].sum(skipna=False)) / 3600, 2)
        for column in ("seconds", "seconds_core", "seconds_evaluation")
    ]
    return (*hours, f"{float(runs['evaluations'].sum()) / 1e6:.1f} M")
