"""What a reader of a report must know beside its findings: what is missing, how to read it."""

import math
from collections.abc import Sequence

from harness.analysis.analyse import Analysis
from harness.comparison import Comparison
from harness.text import listed, p_value


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
                f"{analysis.label(comparison.arm)} is compared over {len(comparison.seeds)} seeds; "
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


def _notes_of_looks(analysis: Analysis) -> list[str]:
    if not analysis.sweep.looks:
        return []
    return [
        "Seeds were added until it was decided: verdicts, their intervals and p values are those "
        "of an arm's last look and allow for looking often (error spending). The intervals of "
        "gains, other rewards, times and equal budgets are those of a fixed number of seeds, and "
        "miss the truth somewhat more often than 5 times in 100."
    ]


def statistics_notes(analysis: Analysis) -> list[str]:
    """How to read the numbers: what an interval says and what it does not."""
    notes = [
        *_notes_of_looks(analysis),
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
    if any(estimate.known and not estimate.varies for estimate in written):
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
            "where the interval of its difference excludes zero, widened so that all "
            f"{family} intervals hold together with 95 % (Bonferroni)."
            if family > 1
            else "The arm is compared with the reference seed by seed: runs with the same seed "
            "share prompts, initial noise and evaluation noise. It is called better or worse only "
            "where the 95 % interval of its difference excludes zero.",
        )
        notes.insert(2, _tests_note(tested))
        only_holm = [c for c in tested if c.verdict == "undecided" and c.p_holm < 0.05]
        if only_holm:
            arms = listed([f"{analysis.label(c.arm)} (p = {p_value(c.p_holm)})" for c in only_holm])
            notes.insert(
                3,
                f"Close call: by Holm's test alone, {arms} would be significantly different from "
                "the reference; by the interval, which decides here, not.",
            )
    if any(c.verdict == "undecided" for c in tested):
        notes.append(
            "Undecided is not the same as equal: more seeds may show a difference, or that there "
            "is none worth the margin."
        )
    if any(c.verdict == "equal" and c.tested for c in tested):
        notes.append(
            "Equal does not say that there is no difference: it says that a difference, if there "
            "is one, is smaller than the margin, which the sweep file sets (`margin:`)."
        )
    if any(c.spread.moderated for c in tested):
        notes.append(
            "The spread of an arm's differences is raised towards that of the other arms where its "
            "own is small by chance (empirical Bayes, Smyth 2004; never lowered)."
        )
    parts = [
        f"{analysis.label(arm)} from iteration {m}"
        for arm, m in analysis.shared_until.items()
        if m > 0
    ]
    if parts:
        notes.append(
            "Trained by the same code, arms with the same seed are bit-identical until their "
            f"windows first differ. They begin to differ from {analysis.sweep.reference_label}: "
            f"{listed(parts)}."
        )
    for group in analysis.same_schedule:
        notes.append(
            f"{listed([analysis.label(name) for name in group])} are the same schedule "
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
