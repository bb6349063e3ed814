"""The sentences of a report, each made from the numbers: what was found, and what was not.

Says "cannot conclude" and "not significantly different" where that is so. Every claim about a
difference rests on `Comparison.verdict`, every claim about a change on an interval that leaves zero
out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.analysis.analyse import Analysis, ArmResult
from harness.stats import MIN_SEEDS, Comparison, Interval, seeds_needed
from harness.text import interval, listed, number, p_value

MOST_QUOTED = 6
"""A sentence quotes the numbers of so many arms and names the others; where names say little, it
counts them instead."""

MOST_IN_A_LINE = 4
"""As many names a line of a table has room for."""


@dataclass(frozen=True)
class Finding:
    """What a report says of one reward, with the kind that decides where it is said."""

    kind: Literal["change", "hacking"]
    """`hacking`: it fell while a trained reward rose."""
    text: str


def answer(analysis: Analysis) -> str:
    """The answer to the sweep's question in one sentence."""
    reference = analysis.reference
    if not analysis.compared:
        return f"Nothing is compared: {reference.arm.label} is the only arm."
    references = [analysis.by_name(name) for name in {c.reference: 0 for c in analysis.compared}]
    if all(len(found.seeds) < MIN_SEEDS for found in references):
        who = (
            f"the reference {reference.arm.label} has {_seeds(reference)}"
            if len(references) == 1
            else f"no reference has {MIN_SEEDS} finished seeds"
        )
        return f"Cannot conclude: {who}, and fewer than {MIN_SEEDS} say nothing about chance."
    better, worse, alike, same, unknown = (
        largest_first(c for c in analysis.compared if c.verdict in kinds)
        for kinds in (
            ("better",),
            ("worse",),
            ("indistinguishable",),
            ("identical",),
            ("too few", "no variance"),
        )
    )
    if same and not _moved(analysis, analysis.measure):
        return (
            f"Nothing was learned: no arm's {analysis.measure} on held-out prompts moved with any "
            "seed, so that there is nothing to compare."
        )
    if len(unknown) == len(analysis.compared):
        if all(c.verdict == "no variance" for c in unknown):
            return "Cannot conclude: the seeds do not vary, so nothing is known about chance."
        whose = f"the reference {reference.arm.label}" if len(references) == 1 else "its reference"
        return f"Cannot conclude: no arm shares {MIN_SEEDS} or more finished seeds with {whose}."
    parts = []
    for found, word in ((better, "better"), (worse, "worse")):
        if found:
            parts.append(_told_apart(analysis, found, word))
    if alike:
        everyone = len(alike) == len(analysis.compared) > MOST_QUOTED
        names = [_label(analysis, c) for c in alike]
        arms = f"all {len(alike)} other arms" if everyone else listed(names)
        same_as = f"not significantly different from {analysis.sweep.reference_label}"
        parts.append(f"{arms} {_is(alike)} {same_as}")
    if same:
        arms = listed([_label(analysis, c) for c in same])
        parts.append(
            f"{arms} scored exactly as {analysis.sweep.reference_label} did with every seed"
        )
    if unknown:
        arms = listed([_label(analysis, c) for c in unknown])
        parts.append(f"{arms} cannot be judged")
    return f"In {analysis.measure} on held-out prompts, {'; '.join(parts)} ({_pairs(analysis)})."


def one_line(analysis: Analysis) -> str:
    """The answer in a line of a table: which arms, not by how much."""
    reference = analysis.sweep.reference_label
    parts: list[str] = []
    for verdict, words in (
        ("better", "better than"),
        ("worse", "worse than"),
        ("indistinguishable", "not significantly different from"),
        ("identical", "with every seed the same as"),
    ):
        these = largest_first(c for c in analysis.compared if c.verdict == verdict)
        found = [_label(analysis, c) for c in these]
        if found:
            everyone = len(found) == len(analysis.compared) > MOST_IN_A_LINE
            arms = f"all {len(found)} others" if everyone else _few(found)
            parts.append(f"{arms} {_is(found)} {words} {'it' if parts else reference}")
    if not parts or not _moved(analysis, analysis.measure):
        return answer(analysis)
    unknown = sum(c.verdict in ("too few", "no variance") for c in analysis.compared)
    if unknown:
        parts.append(f"{unknown} cannot be judged")
    line = "; ".join(parts)
    return f"{line[0].upper() if line.startswith('all ') else line[0]}{line[1:]}."


def largest_first(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """What is told apart by the size of its effect; what is not keeps its order."""
    return sorted(
        comparisons,
        key=lambda c: -abs(c.simultaneous.mean) if c.verdict in ("better", "worse") else 0.0,
    )


def resolution(analysis: Analysis) -> str:
    """How large a difference this many seeds could have shown; empty where too few have run."""
    tested = [c for c in analysis.compared if math.isfinite(c.detectable)]
    if not tested:
        if not any(c.verdict in ("identical", "no variance") for c in analysis.compared):
            return ""
        return (
            "What difference could have been found is unknown: differences that are the same with "
            "every seed say nothing about chance."
        )
    low, high = (f(c.detectable for c in tested) for f in (min, max))
    # In units of its own sd every arm's smallest difference is the same for the same seeds.
    hardest = max(tested, key=lambda c: c.detectable)
    half = seeds_needed(hardest.simultaneous.sd, hardest.detectable / 2, hardest.family)
    span = number(low)
    if number(low) != number(high):
        span += f" to {number(high)} (depending on the arm)"
    return (
        f"With {_pairs(analysis)}, a true difference of {span} had an 80 % chance of being found. "
        f"To find {number(hardest.detectable / 2)}, half of the largest, takes {half} seeds per "
        "arm. These figures rest on the spread seen here, which few seeds estimate roughly."
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
    found = first.rewards[measure]
    start = (
        f"{first.arm.label}: {number(found.before.mean)} before, {number(found.after.mean)} after, "
        f"gain {interval(found.simultaneous, signed=True)}"
    )
    dropped = ""
    if fell:
        dropped = f" The reward {measure} fell in {_quoted(fell, measure)}."
    if len(rose) == len(known):
        where = "in every arm" if len(known) > 1 else "in the only arm that can be judged"
        return f"Training gained {where}: the interval of the gain lies above zero ({start})."
    if rose:
        unclear = [r for r in known if r not in rose and r not in fell]
        text = f"Training gained in {_named_or_counted([r.arm.label for r in rose], len(known))}"
        if unclear:
            text += f"; a gain is not shown in {listed([r.arm.label for r in unclear])}"
        return f"{text} ({start}).{dropped}"
    if fell:
        return f"No gain is shown ({start}).{dropped}"
    return f"No gain is shown: every interval of the gain includes zero ({start})."


def cost(analysis: Analysis) -> str:
    """Which arms take another time per iteration than the reference, and of which that is not
    known; empty where there are neither."""
    ratios = [(r.arm.label, r.cost.time_ratio_simultaneous) for r in analysis.arms]
    found = [
        f"{interval(ratio)} for {label}"
        for label, ratio in ratios
        if ratio is not None and ratio.known and not ratio.low <= 1 <= ratio.high
    ]
    text = ""
    if found:
        kind = "One core's time" if analysis.core_time else "Time"
        reference = analysis.sweep.reference_label
        text = f"{kind} per iteration, as a multiple of {reference}'s: {listed(found)}."
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
        name = f"The reward {reward} ({analysis.role(reward)})"
        fell, rose = (
            [r for r in known if r.rewards[reward].simultaneous.sign == sign] for sign in (-1, 1)
        )
        parts = [
            f"{verb} in {_of(len(found), len(known))}: {_quoted(found, reward)}"
            for verb, found in (("fell", fell), ("rose", rose))
            if found
        ]
        if not parts:
            first = next((r for r in known if r.arm.name == analysis.sweep.reference), known[0])
            moved = _moved(analysis, reward)
            verb = "is shown to change in no arm" if moved else "moved in no arm with any seed"
            parts = [f"{verb} ({_quoted([first], reward)})"]
        hacking = _hacking(analysis, reward)
        text = f"{name} {'; it '.join(parts)}.{hacking}"
        findings.append(Finding("hacking" if hacking else "change", text))
    hacking = _hacking(analysis, analysis.measure)
    if hacking:
        text = f"The reward {analysis.measure} answers the question.{hacking}"
        findings.insert(0, Finding("hacking", text))
    return findings


def in_short(analysis: Analysis, told: str = "") -> list[str]:
    """What a report begins with. `told`: what another measurement answers, before the arms."""
    said = (
        *(told, answer(analysis), resolution(analysis), gain(analysis), others_compared(analysis)),
        *(finding.text for finding in other_rewards(analysis) if finding.kind == "hacking"),
        cost(analysis),
    )
    return [sentence for sentence in said if sentence]


def others_compared(analysis: Analysis) -> str:
    """In which rewards beside the measure arms are significantly different from the reference;
    empty where in none."""
    parts = []
    for reward in analysis.others:
        comparisons = analysis.other_comparisons[reward].values()
        for word in ("better", "worse"):
            found = largest_first(c for c in comparisons if c.verdict == word)
            if found:
                arms = [f"{_label(analysis, c)} (by {_size(c)})" for c in found]
                names = listed(arms, MOST_QUOTED)
                parts.append(f"in {reward} {names} {_is(found)} {word}")
    if not parts:
        return ""
    return (
        f"Of the other rewards, compared with {analysis.sweep.reference_label} likewise, "
        f"{'; '.join(parts)}."
    )


def _hacking(analysis: Analysis, reward: str) -> str:
    """The arms in which a reward fell that they do not train on, while one rose that they do."""
    found = []
    for result in analysis.arms:
        rose = [name for name in result.trained if _direction(result, name) == 1]
        if reward not in result.trained and rose and _direction(result, reward) == -1:
            found.append(f"{result.arm.label} ({listed(rose)})")
    if not found:
        return ""
    trains = "it trains" if len(found) == 1 else "they train"
    where = _named_or_counted(found, len(analysis.arms))
    return (
        f" It fell while a reward rose that {trains} on in {where}: what the trained reward "
        "does not see got worse. That is what reward hacking looks like."
    )


def _direction(result: ArmResult, reward: str) -> int:
    change: Interval = result.rewards[reward].simultaneous
    return change.sign


def _quoted(found: Sequence[ArmResult], reward: str) -> str:
    """Arms with their own numbers of a reward."""
    parts = []
    for result in found[:MOST_QUOTED]:
        change = result.rewards[reward]
        parts.append(
            f"{result.arm.label} from {number(change.before.mean)} to {number(change.after.mean)}, "
            f"change {interval(change.simultaneous, signed=True)}"
        )
    rest = [r.arm.label for r in found[MOST_QUOTED:]]
    return "; ".join(parts) + (f"; and {listed(rest)}" if rest else "")


def missing(analysis: Analysis) -> list[str]:
    """Runs that are not in the report, seeds that a comparison could not pair, and runs that other
    code made."""
    sentences = []
    total = len(analysis.sweep.runs)
    if analysis.unfinished:
        sentences.append(
            f"{len(analysis.unfinished)} of {total} runs are not finished and not in this report."
        )
        by_state: dict[str, list[str]] = {}
        labels = {r.arm.name: r.arm.label for r in analysis.arms}
        for arm, seed, state in analysis.unfinished:
            by_state.setdefault(state, []).append(f"{labels[arm]} seed {seed}")
        sentences += [f"{state}: {listed(runs)}." for state, runs in by_state.items()]
        failed = {arm for arm, _, state in analysis.unfinished if state == "failed"}
        if failed:
            arms = listed([r.arm.label for r in analysis.arms if r.arm.name in failed])
            sentences.append(
                f"Of {arms} some runs failed: every number here is of the seeds that survived, and "
                "says nothing about those that did not."
            )
    for comparison in analysis.compared:
        if comparison.left_out:
            seeds = ", ".join(map(str, comparison.left_out))
            sentences.append(
                f"{_label(analysis, comparison)} is compared over {len(comparison.seeds)} seeds; "
                f"only one side has seed {seeds}."
            )
    if analysis.accepted_code:
        labels = {r.arm.name: r.arm.label for r in analysis.arms}
        runs = listed([f"{labels[arm]} seed {seed}" for arm, seed, _ in analysis.accepted_code])
        changed = listed(list(dict.fromkeys(text for *_, text in analysis.accepted_code)))
        sentences.append(
            f"{len(analysis.accepted_code)} of {total} runs were made by other code than the "
            f"sweep's is now, which was accepted (--accept-code-change): {runs}. What changed: "
            f"{changed}."
        )
    return sentences


def statistics_notes(analysis: Analysis) -> list[str]:
    """How to read the numbers: what an interval says and what it does not."""
    notes = [
        "An interval of an arm is a 95 % Student interval of the mean over seeds: were the sweep "
        "repeated with fresh seeds, 95 of 100 such intervals would hold the true mean. It says "
        "nothing about other prompts, models or tasks. Two intervals that overlap do not show "
        "that two arms are the same.",
        "What is said of a change through training, or of a time, holds for all arms together "
        "with 95 % (Bonferroni over the arms): its interval is wider than the arm's own in the "
        "tables.",
        "Quality is measured by ODE sampling of held-out prompts with fixed noise and averaged "
        "weights. Rollout rewards are not shown: they are not comparable across window positions, "
        "because late noise does less damage. Comparing arms by them fakes an effect.",
    ]
    written = [c.difference for c in analysis.compared]
    written += [change.change for r in analysis.arms for change in r.rewards.values()]
    if any(found.known and not found.varies for found in written):
        notes.insert(
            1,
            "Where a number is followed by (every seed), it is the same with every seed: nothing "
            "is known about chance, and there is no interval.",
        )
    tested = [c for c in analysis.compared if math.isfinite(c.p_holm)]
    if tested:
        family = tested[0].family
        notes.insert(
            1,
            "Arms are compared with the reference seed by seed: runs with the same seed share "
            "prompts, initial noise and evaluation noise. An arm is called better or worse only "
            "where the interval of its difference leaves zero out, widened so that all "
            f"{family} intervals hold together with 95 % (Bonferroni)."
            if family > 1
            else "The arm is compared with the reference seed by seed: runs with the same seed "
            "share prompts, initial noise and evaluation noise. It is called better or worse only "
            "where the 95 % interval of its difference leaves zero out.",
        )
        notes.insert(2, _tests_note(tested))
        only_holm = [c for c in tested if c.verdict == "indistinguishable" and c.p_holm < 0.05]
        if only_holm:
            arms = listed([f"{_label(analysis, c)} (p = {p_value(c.p_holm)})" for c in only_holm])
            notes.insert(
                3,
                f"Close call: Holm's test by itself would tell {arms} from the reference. The "
                "interval does not, and the interval decides here.",
            )
    if any(c.verdict == "indistinguishable" for c in tested):
        notes.append(
            "Indistinguishable is not the same as equal: a difference smaller than what this many "
            "seeds can show may well exist."
        )
    parts = [
        f"{analysis.by_name(arm).arm.label} from iteration {m}"
        for arm, m in analysis.shared_until.items()
        if m > 0
    ]
    if parts:
        notes.append(
            "Trained by the same code, arms with the same seed are bit-identical until their "
            f"windows first differ. They part from {analysis.sweep.reference_label}: "
            f"{listed(parts)}."
        )
    for group in analysis.same_schedule:
        notes.append(
            f"{listed([analysis.by_name(name).arm.label for name in group])} are the same schedule "
            "over the whole run: their configurations differ, what they compute does not."
        )
    return notes


def _tests_note(tested: Sequence[Comparison]) -> str:
    pairs, family = min(len(c.seeds) for c in tested), tested[0].family
    floor = 2.0 ** (1 - pairs)
    text = (
        "Beside it stand two p values, adjusted by Holm over the arms: of the paired t test, and "
        "of the sign-flip test, which assumes only that differences are symmetric. "
    )
    if min(1.0, floor * family) > 0.05:
        adjusted = "" if family == 1 else f", {min(1.0, floor * family):g} after adjustment"
        text += (
            f"With {pairs} seeds the sign-flip p cannot be below {floor:g}{adjusted}: it "
            "can never reach 0.05 here, and a large value is no evidence against a difference."
        )
    return text.strip()


def _moved(analysis: Analysis, reward: str) -> bool:
    """Whether training moved a reward's score on held-out prompts in any arm, with any seed."""
    changes = [r.rewards[reward].change for r in analysis.arms]
    return any(change.n and (change.varies or change.mean != 0) for change in changes)


def _label(analysis: Analysis, comparison: Comparison) -> str:
    return analysis.by_name(comparison.arm).arm.label


def _told_apart(analysis: Analysis, found: Sequence[Comparison], word: str) -> str:
    reference = analysis.sweep.reference_label
    if len(found) == 1:
        return f"{_label(analysis, found[0])} is {word} than {reference} by {_size(found[0])}"
    arms = listed([f"{_label(analysis, c)} (by {_size(c)})" for c in found])
    return f"{arms} are {word} than {reference}"


def _size(comparison: Comparison) -> str:
    found = comparison.simultaneous
    low, high = sorted((abs(found.low), abs(found.high)))
    return interval(replace(found, mean=abs(found.mean), low=low, high=high))


def _pairs(analysis: Analysis) -> str:
    counts = sorted({len(c.seeds) for c in analysis.compared if len(c.seeds) >= MIN_SEEDS})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _seeds(result: ArmResult) -> str:
    count = len(result.seeds)
    return f"{count or 'no'} finished seed{'' if count == 1 else 's'}"


def _of(count: int, total: int) -> str:
    return "every arm" if count == total else f"{count} of {total} arms"


def _named_or_counted(names: Sequence[str], total: int) -> str:
    return _of(len(names), total) if len(names) > MOST_QUOTED else listed(names)


def _is(found: Sequence[object]) -> str:
    return "is" if len(found) == 1 else "are"


def _few(parts: Sequence[str]) -> str:
    return listed(parts, MOST_IN_A_LINE - 1) if len(parts) > MOST_IN_A_LINE else listed(parts)


def compared(
    analysis: Analysis, comparisons: Mapping[str, Comparison], with_sizes: bool = True
) -> str:
    """Which arms are better or worse than the reference, and how many are not significantly
    different from it."""
    reference, parts = analysis.sweep.reference_label, []
    for verdict in ("better", "worse"):
        found = largest_first(c for c in comparisons.values() if c.verdict == verdict)
        if found:
            sizes = [
                f" ({interval(c.simultaneous, signed=True)})" if with_sizes else "" for c in found
            ]
            names = [label(analysis, c.arm) for c in found]
            arms = listed([f"{name}{size}" for name, size in zip(names, sizes, strict=True)])
            parts.append(f"{arms} {'is' if len(found) == 1 else 'are'} {verdict}")
    alike = sum(c.verdict in ("indistinguishable", "identical") for c in comparisons.values())
    unknown = (
        len(comparisons)
        - alike
        - sum(c.verdict in ("better", "worse") for c in comparisons.values())
    )
    if not parts:
        if alike == 0:
            return "no arm can be judged"
        who = "no arm" if alike > 1 else "the arm"
        said = f"{who} is {'' if alike > 1 else 'not '}significantly different from {reference}"
    else:
        said = f"{' and '.join(parts)} than {reference}"
        if alike:
            said += f", {alike} of {len(comparisons)} not significantly different from it"
    return said + (f", and {unknown} cannot be judged" if unknown else "")


def label(analysis: Analysis, arm: str) -> str:
    return analysis.by_name(arm).arm.label
