"""The report's tables as text, a few narrow ones that fit a page. All numbers: `csvfile`.

The same measurements give the same bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.analysis.analyse import Analysis, ArmResult
from harness.analysis.cost import Quartiles
from harness.analysis.seconds import ONE_CORE
from harness.comparison import Comparison
from harness.reporting.phrases import verdict_words, worth
from harness.study import paper
from harness.text import NOTHING, interval, number, p_value, seconds
from mixgrpo.text.escape import markdown, markdown_block

if TYPE_CHECKING:
    pass

PUBLISHED_NAMES = {
    "nfe_old": "NFE_old",
    "nfe_theta": "NFE_θ",
    "seconds_per_iteration": "s / iteration",
    "seconds_per_image": "s / image",
    "hps": "HPS-v2.1",
    "clip": "CLIP",
    "pick": "PickScore",
    "ir": "ImageReward",
    "ur": "UnifiedReward",
}


@dataclass(frozen=True)
class Table:
    """A table as text: the first column names the arm."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def _count(value: float) -> str:
    return NOTHING if not math.isfinite(value) else f"{value:.1f}".removesuffix(".0")


def _range(bounds: tuple[float, float]) -> str:
    low, high = (_count(value) for value in bounds)
    return low if low == high else f"{low} to {high}"


def _quartiles(quartiles: Quartiles) -> str:
    if not math.isfinite(quartiles.median):
        return NOTHING
    return f"{seconds(quartiles.median)} ({seconds(quartiles.low)} to {seconds(quartiles.high)})"


def difference_cell(comparison: Comparison) -> str:
    """The difference and its verdict."""
    verdict = comparison.verdict if comparison.tested else ""
    return f"{interval(comparison.simultaneous, signed=True)} {verdict}".strip()


def tables(analysis: Analysis) -> list[Table]:
    """The tables of the report, in the order a reader wants them."""
    parts = [verdicts(analysis), _quality(analysis)]
    if analysis.compared:
        parts.append(_comparison(analysis))
    if analysis.others:
        parts.append(_other_rewards(analysis))
    if analysis.others and analysis.compared:
        parts.append(_other_comparisons(analysis))
    parts.append(_cost(analysis))
    if any(result.published.values for result in analysis.arms):
        parts.append(_published(analysis))
    return parts


def verdicts(analysis: Analysis) -> Table:
    """The answer: every arm with its verdict, reward and cost, and what the paper printed."""
    score = next((s for s in ("ir", "hps") if _prints(analysis, s)), None)
    rows = []
    for result in analysis.arms:
        comparison, cost = result.comparison, result.cost
        ratio = NOTHING if cost.time_ratio is None else number(cost.time_ratio.mean, 2)
        row = [
            analysis.label(result.arm.name),
            "reference" if comparison is None else verdict_words(comparison),
            NOTHING if comparison is None else interval(comparison.simultaneous, signed=True),
            number(result.rewards[analysis.measure].after.mean),
            *(_range(cost.nfe_rollout), _range(cost.nfe_train)),
            _evaluations_ratio(analysis, result),
            ratio,
        ]
        if score is not None:
            row += _published_beside(analysis, result, score)
        rows.append(tuple(row))
    columns = ["arm", "verdict", "difference", analysis.measure, "NFE_old", "NFE_θ"]
    columns += ["evaluations ×", "seconds ×"]
    if score is not None:
        name = PUBLISHED_NAMES[score]
        columns += [f"published: {name}", f"published: difference in {name}"]
    return Table(
        "The answer, arm by arm",
        tuple(columns),
        tuple(rows),
        f"Difference: in {analysis.measure} on held-out prompts after training, arm minus "
        f"{analysis.sweep.reference_label}, paired by seed, with the interval that holds for all "
        f"arms together with 95 %. {_meaning(analysis)} "
        "×: per iteration, as a multiple of the reference's; the interval of the seconds is in "
        "the table of the cost."
        + (" Published: another model and task, one run per row." if score else ""),
    )


def _prints(analysis: Analysis, score: str) -> bool:
    return any(result.published.values.get(score) is not None for result in analysis.arms)


def _evaluations_ratio(analysis: Analysis, result: ArmResult) -> str:
    if result.comparison is None:
        return NOTHING
    return number(
        result.cost.evaluations / analysis.by_name(result.comparison.reference).cost.evaluations, 2
    )


def _published_beside(analysis: Analysis, result: ArmResult, score: str) -> tuple[str, str]:
    """What the paper printed for an arm, and its difference to the reference's."""
    value = result.published.values.get(score)
    if value is None:
        return NOTHING, NOTHING
    reference = analysis.sweep.references[result.arm.name]
    base = analysis.by_name(reference).published.values.get(score)
    difference = NOTHING if base is None else number(value - base, signed=True)
    return number(value), NOTHING if result.comparison is None else difference


def _quality(analysis: Analysis) -> Table:
    rows = []
    for result in analysis.arms:
        change = result.rewards[analysis.measure]
        rows.append(
            (
                analysis.name_in_table(result.arm.name),
                str(len(result.seeds)),
                interval(change.before),
                interval(change.after),
                interval(change.change, signed=True),
            )
        )
    return Table(
        f"The reward {analysis.measure} on held-out prompts",
        ("arm", "seeds", "before", "after", "gain"),
        tuple(rows),
        "Mean over seeds [95 % Student interval, each of one arm alone; the sentences above have "
        "those that hold for all arms together, which are wider]. The gain is paired by seed. In "
        f"these arms the reward is {analysis.role(analysis.measure)}.",
    )


def _comparison(analysis: Analysis) -> Table:
    return Table(
        f"Compared with {analysis.sweep.reference_label}: {analysis.measure} on held-out prompts",
        (
            *("arm", "pairs", "difference", "p (t, Holm)", "p (sign-flip, Holm)"),
            *("smallest detectable difference", "verdict"),
        ),
        tuple(
            (
                analysis.label(comparison.arm),
                str(len(comparison.seeds)),
                interval(comparison.simultaneous, signed=True),
                p_value(comparison.p_holm),
                p_value(comparison.p_sign_flip_holm),
                number(comparison.detectable),
                verdict_words(comparison),
            )
            for comparison in analysis.compared
        ),
        "Arm minus reference after training, paired by seed. The intervals hold for all "
        "comparisons together with 95 % and decide the verdict. Smallest detectable difference: "
        "the true difference with an 80 % chance of better or worse; a smaller one may be detected "
        "too, with less chance. A dash: nothing could be tested.",
    )


def _meaning(analysis: Analysis) -> str:
    """What the verdicts say, in words."""
    known = [c for c in analysis.compared if c.margin is not None]
    text = "Better, worse: the interval excludes zero."
    if known:
        of_gain = f" ({analysis.sweep.margin})" if analysis.sweep.margin.of_gain else ""
        text += (
            f" Equal: the interval lies within ±{worth(known)}{of_gain}, also where it excludes "
            "zero."
        )
    if len(known) < len(analysis.compared):
        text += " An arm whose reference shows no gain has no margin, and is not called equal."
    return text


def _other_rewards(analysis: Analysis) -> Table:
    columns = ["arm"]
    for reward in analysis.others:
        columns += [f"{reward} before", "after", "change"]
    rows = []
    for result in analysis.arms:
        row = [analysis.name_in_table(result.arm.name)]
        for reward in analysis.others:
            change = result.rewards[reward]
            row += [number(change.before.mean), number(change.after.mean)]
            row.append(interval(change.change, signed=True))
        rows.append(tuple(row))
    return Table(
        "The other rewards on held-out prompts",
        tuple(columns),
        tuple(rows),
        f"{_roles(analysis)} Changes have the 95 % Student interval of one arm alone. Where a "
        "reward falls that an arm does not train on, while one rises that it does, that is reward "
        "hacking.",
    )


def _other_comparisons(analysis: Analysis) -> Table:
    rows = []
    for comparison in analysis.compared:
        cells = [
            difference_cell(analysis.other_comparisons[reward][comparison.arm])
            for reward in analysis.others
        ]
        rows.append((analysis.label(comparison.arm), *cells))
    return Table(
        f"Compared with {analysis.sweep.reference_label}: the other rewards on held-out prompts",
        ("arm", *analysis.others),
        tuple(rows),
        "Arm minus reference after training, paired by seed. The intervals of one reward hold for "
        "all arms together with 95 %, those of different rewards each by itself. Better and worse: "
        "the interval excludes zero. These rewards have no margin: no arm is equal in them.",
    )


def _roles(analysis: Analysis) -> str:
    """Which rewards the arms train on, and which are only measured, arm by arm if they differ."""
    by_role: dict[str, list[str]] = {}
    for reward in (*analysis.trained, *analysis.held_out):
        by_role.setdefault(analysis.role(reward), []).append(reward)
    roles = "; ".join(f"{', '.join(rewards)}: {role}" for role, rewards in by_role.items())
    return f"{roles}."


def _cost(analysis: Analysis) -> Table:
    rows = [
        (
            analysis.name_in_table(result.arm.name),
            _range(result.cost.nfe_rollout),
            _range(result.cost.nfe_train),
            _count(result.cost.evaluations),
            _count(result.cost.backward),
            _quartiles(result.cost.seconds),
            NOTHING if result.cost.time_ratio is None else interval(result.cost.time_ratio),
        )
        for result in analysis.arms
    ]
    return Table(
        "Cost",
        (
            *("arm", "NFE_old", "NFE_θ", "evaluations / iteration", "backward / iteration"),
            *("s / iteration (quartiles)", "time ratio to reference"),
        ),
        tuple(rows),
        "NFE_old and NFE_θ count per image, as the paper does. Evaluations and backward passes "
        "are counted, after sharing. Seconds: median over iterations and seeds without the first "
        "two iterations, and without what is measured beside the training (health); their ratio is "
        "paired by seed, each with its own 95 % interval"
        + (
            f". They are {ONE_CORE}, so that a small difference between runs that ran "
            "beside other work means little."
            if analysis.core_time
            else ", and means little where runs shared a machine."
        ),
    )


def _published(analysis: Analysis) -> Table:
    assert analysis.sweep.paper is not None
    source = paper.find(analysis.sweep.paper)
    columns = [c for c in source.columns if c in PUBLISHED_NAMES]
    rows = []
    for result in analysis.arms:
        change = result.rewards[analysis.measure]
        row = [
            analysis.name_in_table(result.arm.name),
            interval(change.after),
            result.published.row or NOTHING,
        ]
        for column in columns:
            value = result.published.values.get(column)
            costs = column.startswith(("nfe", "seconds"))
            row.append(NOTHING if value is None else f"{value:g}" if costs else f"{value:.3f}")
        rows.append(tuple(row))
    return Table(
        f"Published beside measured: {source.title}",
        (
            *("arm", f"measured here: {analysis.measure}", "published row"),
            *(f"published: {PUBLISHED_NAMES[column]}" for column in columns),
        ),
        tuple(rows),
        f"The columns on the right: {source.label}. Scores of another model, task and reward: only "
        "the order of the arms can be set side by side, not the numbers.",
    )


def markdown_list(sentences: Iterable[str]) -> list[str]:
    """A list as one block of Markdown; none without sentences."""
    items = [f"* {markdown_block(sentence)}" for sentence in sentences]
    return ["\n".join(items)] if items else []


def markdown_section(table: Table, level: str = "##", links: Sequence[str] = ()) -> list[str]:
    """A table with its title and note, block by block. `links`: where each row's name leads."""
    title = f"{level} {markdown_block(table.title)}"
    return [title, markdown_table(table, links), markdown_block(table.note)]


def markdown_table(table: Table, links: Sequence[str] = ()) -> str:
    """The columns and rows alone, without title and note."""
    lines = [_markdown_row(map(markdown, table.columns)), f"|{'---|' * len(table.columns)}"]
    for index, row in enumerate(table.rows):
        first, *rest = map(markdown, row)
        lines.append(_markdown_row([f"[{first}]({links[index]})" if links else first, *rest]))
    return "\n".join(lines)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
