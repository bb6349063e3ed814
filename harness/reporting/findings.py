"""What a report says in sentences, each made from the numbers of the analysis.

Says "cannot conclude" and "undecided" where that is so. Every claim about a
difference rests on `Comparison.verdict`, every claim about a change on an interval that excludes
zero. How to read the numbers, and what is missing, is in `notes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.analysis.analyse import Analysis, ArmResult
from harness.evidence.resolution import seeds_for_difference
from harness.reporting.phrases import (
    MOST_QUOTED,
    are,
    named_or_counted,
    of_arms,
    span,
    verdicts_in_words,
    with_size,
    with_verdict,
)
from harness.stats import LEVEL, MIN_SEEDS
from harness.text import interval, listed, number

MOST_SIZES = 2
"""The answer says by how much arms differ where no more than these do: the table has the rest."""
MOST_IN_A_LINE = 4
"""Names in one line of a table."""


@dataclass(frozen=True)
class Finding:
    """What a report says of one reward, with the kind that decides where it is said."""

    kind: Literal["change", "hacking"]
    """`hacking`: it fell while a trained reward rose."""
    text: str


def answer(analysis: Analysis) -> str:
    """The answer to the sweep's question in one sentence."""
    if not analysis.compared:
        return f"Nothing is compared: {analysis.reference.arm.label} is the only arm."
    return _inconclusive(analysis) or _verdicts(analysis)


def _inconclusive(analysis: Analysis) -> str:
    """Why there is no verdict; empty where there is one."""
    reference, arms = analysis.reference, analysis.compared
    references = [analysis.by_name(name) for name in {c.reference: 0 for c in arms}]
    if all(len(result.seeds) < MIN_SEEDS for result in references):
        seeds = len(reference.seeds)
        who = (
            f"the reference {reference.arm.label} has {seeds or 'no'} finished seed"
            f"{'' if seeds == 1 else 's'}"
            if len(references) == 1
            else f"no reference has {MIN_SEEDS} finished seeds"
        )
        return f"Cannot conclude: {who}, and fewer than {MIN_SEEDS} say nothing about chance."
    if any(c.reason == "identical" for c in arms) and not _moved(analysis, analysis.measure):
        return (
            f"Nothing was learned: no arm's {analysis.measure} on held-out prompts moved with any "
            "seed, so that there is nothing to compare."
        )
    if all(c.reason == "no spread" for c in arms):
        return "Cannot conclude: the seeds do not vary, so nothing is known about chance."
    if all(c.reason == "not looked at" for c in arms):
        first = analysis.sweep.looks[0]
        return f"Cannot conclude yet: the first look is at {first} seeds of every arm."
    if all(c.reason in ("too few pairs", "no spread", "not looked at") for c in arms):
        whose = f"the reference {reference.arm.label}" if len(references) == 1 else "its reference"
        return f"Cannot conclude: no arm shares {MIN_SEEDS} or more finished seeds with {whose}."
    return ""


def _verdicts(analysis: Analysis) -> str:
    different = with_verdict(analysis.compared, "better", "worse")
    sizes = len(different) <= MOST_SIZES
    clauses = verdicts_in_words(analysis, analysis.compared, sizes=sizes)
    measure = f"the reward {analysis.measure} on held-out prompts"
    return f"In {measure}, {'; '.join(clauses)} ({_pairs(analysis)})."


def one_line(analysis: Analysis) -> str:
    """The answer in a line of a table: which arms, not by how much."""
    if not analysis.compared or _inconclusive(analysis):
        return answer(analysis)
    line = "; ".join(verdicts_in_words(analysis, analysis.compared, most=MOST_IN_A_LINE))
    return f"{line[0].upper() if line.startswith('all ') else line[0]}{line[1:]}."


def _pairs(analysis: Analysis) -> str:
    counts = sorted({len(c.seeds) for c in analysis.compared if len(c.seeds) >= MIN_SEEDS})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def resolution(analysis: Analysis) -> str:
    """The smallest detectable difference; empty where too few have run."""
    tested = [c for c in analysis.compared if c.tested]
    if not tested:
        if all(c.reason in ("too few pairs", "not looked at") for c in analysis.compared):
            return ""
        return (
            "The smallest detectable difference is unknown: differences that are the same with "
            "every seed say nothing about chance."
        )
    smallest = span((c.detectable for c in tested), by="arm")
    text = (
        f"With {_pairs(analysis)}, the smallest detectable difference (power 80 %) is {smallest}."
    )
    undecided = [c for c in tested if c.verdict == "undecided" and c.margin is not None]
    if not undecided:
        return text
    hardest = max(undecided, key=lambda c: c.detectable)
    assert hardest.margin is not None
    needed = seeds_for_difference(
        hardest.spread, len(hardest.seeds), hardest.margin, (1 - LEVEL) / hardest.family
    )
    return (
        f"{text} To detect a difference of {number(hardest.margin)} in every undecided arm takes "
        f"about {needed.estimate:.0f} seeds ({needed.low:.0f} to {needed.high:.0f}: few seeds tell "
        "the spread only roughly)."
    )


def gain(analysis: Analysis) -> str:
    """Whether training itself changed the measure, per arm with intervals."""
    measure = analysis.measure
    known = [r for r in analysis.arms if r.rewards[measure].change.known]
    if not known:
        return (
            f"Whether training gained cannot be concluded: no arm has {MIN_SEEDS} finished seeds."
        )
    if not _moved(analysis, measure):
        return (
            f"No gain is shown: with every seed {measure} after it is exactly what it was "
            "before. A longer run or a larger optimizer.lr may show more."
        )
    rose, fell = (
        [r for r in known if r.rewards[measure].simultaneous.sign == sign] for sign in (1, -1)
    )
    first = next((r for r in known if r.arm.name == analysis.sweep.reference), known[0])
    change = first.rewards[measure]
    before, after = number(change.before.mean), number(change.after.mean)
    start = (
        f"{first.arm.label}: {before} before, {after} after, "
        f"gain {interval(change.simultaneous, signed=True)}"
    )
    dropped = ""
    if fell:
        dropped = f" The reward {measure} fell in {_quoted(fell, measure)}."
    if len(rose) == len(known):
        where = "in every arm" if len(known) > 1 else "in the only arm that can be judged"
        return f"Training gained {where}: the interval of the gain lies above zero ({start})."
    if rose:
        unclear = [r for r in known if r not in rose and r not in fell]
        text = f"Training gained in {named_or_counted([r.arm.label for r in rose], len(known))}"
        if unclear:
            text += f"; a gain is not shown in {listed([r.arm.label for r in unclear])}"
        return f"{text} ({start}).{dropped}"
    if fell:
        return f"No gain is shown ({start}).{dropped}"
    return f"No gain is shown: every interval of the gain includes zero ({start})."


def cost(analysis: Analysis) -> str:
    """Which arms take significantly more or less time per iteration than the reference, and for
    which this is not known; empty where there are neither."""
    ratios = [(r.arm.label, r.cost.time_ratio_simultaneous) for r in analysis.arms]
    different = [
        f"{interval(ratio)} for {label}"
        for label, ratio in ratios
        if ratio is not None and ratio.known and not ratio.low <= 1 <= ratio.high
    ]
    text = ""
    if different:
        kind = "One core's time" if analysis.core_time else "Time"
        reference = analysis.sweep.reference_label
        text = f"{kind} per iteration, as a multiple of {reference}'s: {listed(different)}."
    return " ".join(filter(None, (text, not_timed_together(analysis))))


def not_timed_together(analysis: Analysis) -> str:
    """Whose seconds are not compared with the reference's; empty where all are."""
    parts = []
    for result in analysis.arms:
        name = result.arm.name
        if analysis.is_reference(name):
            continue
        both = [
            s for s in result.seeds if s in analysis.by_name(analysis.sweep.references[name]).seeds
        ]
        apart = sum(not analysis.timed_together(name, seed) for seed in both)
        if apart:
            parts.append(
                result.arm.label
                if apart == len(both)
                else f"{result.arm.label} (in {apart} of {len(both)} seeds)"
            )
    if not parts:
        return ""
    return (
        f"No seconds are compared with {analysis.sweep.reference_label} of {listed(parts)}: "
        "another study trained one of the two, at another time, when the same work may have taken "
        "longer or shorter (--no-share times all runs of a sweep together)."
    )


def other_rewards(analysis: Analysis) -> list[Finding]:
    """What the rewards beside the measure did, and where reward hacking shows."""
    findings = []
    for reward in analysis.others:
        known = [r for r in analysis.arms if r.rewards[reward].change.known]
        if not known:
            continue
        parts = [
            f"{verb} in {of_arms(len(moved), len(known))}: {_quoted(moved, reward)}"
            for sign, verb in ((-1, "fell"), (1, "rose"))
            if (moved := [r for r in known if r.rewards[reward].simultaneous.sign == sign])
        ]
        if not parts:
            first = next((r for r in known if r.arm.name == analysis.sweep.reference), known[0])
            verb = (
                "is shown to change in no arm"
                if _moved(analysis, reward)
                else "moved in no arm with any seed"
            )
            parts = [f"{verb} ({_quoted([first], reward)})"]
        hacking = _hacking(analysis, reward)
        name = f"The reward {reward} ({analysis.role(reward)})"
        text = f"{name} {'; it '.join(parts)}.{hacking}"
        findings.append(Finding("hacking" if hacking else "change", text))
    hacking = _hacking(analysis, analysis.measure)
    if hacking:
        text = f"The reward {analysis.measure} answers the question.{hacking}"
        findings.insert(0, Finding("hacking", text))
    return findings


def others_compared(analysis: Analysis) -> str:
    """In which rewards beside the measure arms are significantly different from the reference;
    empty where in none."""
    parts = []
    for reward in analysis.others:
        for verdict in ("better", "worse"):
            different = with_verdict(analysis.other_comparisons[reward].values(), verdict)
            if different:
                names = listed([with_size(analysis, c) for c in different], MOST_QUOTED)
                parts.append(f"in {reward} {names} {are(different)} {verdict}")
    if not parts:
        return ""
    return (
        f"Of the other rewards, compared with {analysis.sweep.reference_label} likewise, "
        f"{'; '.join(parts)}."
    )


def _hacking(analysis: Analysis, reward: str) -> str:
    """The arms in which a reward fell that they do not train on, while one rose that they do."""
    arms = []
    for result in analysis.arms:
        direction = {name: change.simultaneous.sign for name, change in result.rewards.items()}
        rose = [name for name in result.trained if direction[name] == 1]
        if reward not in result.trained and rose and direction[reward] == -1:
            arms.append(f"{result.arm.label} ({listed(rose)})")
    if not arms:
        return ""
    trains = "it trains" if len(arms) == 1 else "they train"
    where = named_or_counted(arms, len(analysis.arms))
    return (
        f" It fell while a reward rose that {trains} on in {where}: what the trained reward "
        "does not see got worse. That is what reward hacking looks like."
    )


def in_short(analysis: Analysis, first: str = "") -> list[str]:
    """What a report begins with. `first`: the answer of a view, which then precedes the arms'."""
    sentences = (
        *(first, answer(analysis), resolution(analysis), gain(analysis), others_compared(analysis)),
        *(finding.text for finding in other_rewards(analysis) if finding.kind == "hacking"),
        cost(analysis),
    )
    return [sentence for sentence in sentences if sentence]


def _quoted(arms: Sequence[ArmResult], reward: str) -> str:
    """Arms with their own numbers of a reward."""
    parts = []
    for result in arms[:MOST_QUOTED]:
        change = result.rewards[reward]
        parts.append(
            f"{result.arm.label} from {number(change.before.mean)} to {number(change.after.mean)}, "
            f"change {interval(change.simultaneous, signed=True)}"
        )
    rest = [r.arm.label for r in arms[MOST_QUOTED:]]
    return "; ".join(parts) + (f"; and {listed(rest)}" if rest else "")


def _moved(analysis: Analysis, reward: str) -> bool:
    """Whether training moved a reward's score on held-out prompts in any arm, with any seed."""
    changes = [r.rewards[reward].change for r in analysis.arms]
    return any(change.n and (change.varies or change.mean != 0) for change in changes)
