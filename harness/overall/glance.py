"""All studies at a glance: a row a study, a cell for each thing that its arms are compared in."""

from collections.abc import Iterable, Sequence

from harness.comparison import Comparison
from harness.overall.questions import Kind, Overall
from harness.overall.studies import Study
from harness.reporting.phrases import size, with_verdict
from harness.reporting.tables import Table
from harness.text import NOTHING, listed

MOST_NAMED = 2
"""A cell names at most this many arms of a verdict, and counts more."""

KINDS: dict[Kind, str] = {
    "differs": "Settings that change the reward",
    "equal": "Settings that differ by less than the margin",
    "undecided": "The seeds do not decide, at least for some arms",
    "open": "Nothing to judge yet",
    "told": "Asked about something else than the reward",
}


def glance(overall: Overall) -> Table:
    """Which arms of every study are better, worse, equal and undecided, at equal iterations,
    evaluations and seconds, and in which other rewards they differ."""
    return Table(
        "All studies at a glance",
        (
            *("study", "reward at equal iterations", "at equal evaluations", "at equal seconds"),
            "other rewards",
        ),
        tuple(_row(question.study) for question in overall.questions),
        "Arms compared with the reference of their study. Better, worse: the interval of the "
        "difference excludes zero. Equal: it lies within the study's margin, also where it "
        "excludes zero. Undecided: neither. Of the other rewards, what is better or worse. A dash: "
        "nothing is compared.",
    )


def _row(study: Study) -> tuple[str, ...]:
    analysis, at = study.analysis, study.at_equal_cost
    # Where all iterations cost as much, at equal evaluations stands what stands at iterations.
    evaluations = at.get("evaluations", {c.arm: c for c in analysis.compared})
    others = [
        f"{reward}: {text}"
        for reward in analysis.others
        if (text := _cell(study, analysis.other_comparisons[reward].values(), ("better", "worse")))
    ]
    return (
        study.sweep.name,
        _cell(study, analysis.compared) or NOTHING,
        _cell(study, evaluations.values()) or NOTHING,
        _cell(study, at.get("seconds", {}).values()) or NOTHING,
        "; ".join(others) or NOTHING,
    )


def _cell(
    study: Study,
    comparisons: Iterable[Comparison],
    verdicts: Sequence[str] = ("better", "worse", "equal", "undecided"),
) -> str:
    given = list(comparisons)
    judged = [c for c in given if c.tested or c.reason == "identical"]
    parts = []
    for verdict in verdicts:
        of_verdict = with_verdict(judged, verdict)
        if not of_verdict:
            continue
        if verdict in ("better", "worse") and len(of_verdict) <= MOST_NAMED:
            parts.append(f"{verdict}: {listed([study.analysis.label(c.arm) for c in of_verdict])}")
        else:
            parts.append(f"{_count(len(of_verdict), len(given))} {verdict}")
    if "undecided" in verdicts and len(judged) < len(given):
        parts.append(f"{_count(len(given) - len(judged), len(given))} cannot be judged")
    return "; ".join(parts)


def _count(count: int, total: int) -> str:
    return f"all {total}" if count == total > 1 else str(count)


def findings(overall: Overall) -> list[str]:
    """What a reader of ten seconds takes away: few sentences over all studies."""
    by_kind: dict[Kind, list[str]] = {}
    for question in overall.questions:
        by_kind.setdefault(question.kind, []).append(question.study.sweep.name)

    def named(kind: Kind) -> list[str]:
        return [f"{KINDS[kind]}: {listed(by_kind[kind])}."] if kind in by_kind else []

    first = [*named("differs"), *named("equal"), *named("undecided"), *named("open")]
    return [*first, *_better_at_equal_cost(overall), *named("told")]


def _better_at_equal_cost(overall: Overall) -> list[str]:
    """Which arms are better than their reference for the same cost; none or one sentence."""
    parts = []
    for kind, words in (("evaluations", "network evaluations"), ("seconds", "seconds")):
        arms = [
            f"{study.analysis.label(c.arm)} beats {study.analysis.label(c.reference)} by {size(c)}"
            for study in (question.study for question in overall.questions)
            for c in with_verdict(study.at_equal_cost.get(kind, {}).values(), "better")
        ]
        more = f" (and {len(arms) - 1} more beat their reference)" if len(arms) > 1 else ""
        parts += [f"for the same {words}, {arms[0]}{more}"] if arms else []
    text = "; ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."] if text else []
