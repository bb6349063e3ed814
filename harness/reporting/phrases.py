"""Phrases that sentences about arms have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.analysis.analyse import Analysis
from harness.comparison import Comparison
from harness.text import interval, listed, number

WHY = {
    "identical": "no score differs",
    "no spread": "the seeds do not vary",
    "too few pairs": "too few seeds",
    "not looked at": "its first look is under way",
}
"""What a verdict rests on where it is not the interval."""

MOST_QUOTED = 6
"""A sentence quotes the numbers of at most this many arms and names the others, or counts them."""


def with_verdict(comparisons: Iterable[Comparison], *verdicts: str) -> list[Comparison]:
    """Those with one of these verdicts; better and worse ones by the size of their effect, the
    largest first."""
    return sorted(
        (c for c in comparisons if c.verdict in verdicts),
        key=lambda c: -abs(c.simultaneous.mean) if c.verdict in ("better", "worse") else 0.0,
    )


def size(comparison: Comparison) -> str:
    """The difference without its sign."""
    difference = comparison.simultaneous
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return interval(replace(difference, mean=abs(difference.mean), low=low, high=high))


def with_size(analysis: Analysis, comparison: Comparison) -> str:
    return f"{analysis.label(comparison.arm)} (by {size(comparison)})"


def span(values: Iterable[float], by: str = "", signed: bool = False) -> str:
    """The smallest and the largest of some numbers; `by` says what they depend on."""
    given = list(values)
    low, high = number(min(given), signed=signed), number(max(given), signed=signed)
    if low == high:
        return low
    return f"{low} to {high}" + (f" (depending on the {by})" if by else "")


def are(arms: Sequence[object]) -> str:
    return "is" if len(arms) == 1 else "are"


def of_arms(count: int, total: int) -> str:
    return "every arm" if count == total else f"{count} of {total} arms"


def named_or_counted(names: Sequence[str], total: int) -> str:
    return of_arms(len(names), total) if len(names) > MOST_QUOTED else listed(names)


def verdict_words(comparison: Comparison) -> str:
    """A verdict in a cell of a table, with what it rests on where that is no interval."""
    why = WHY.get(comparison.reason)
    return f"{comparison.verdict}: {why}" if why else comparison.verdict


def verdicts_in_words(
    analysis: Analysis,
    comparisons: Iterable[Comparison],
    sizes: bool = False,
    most: int = MOST_QUOTED,
) -> list[str]:
    """Which arms are better, worse, equal and undecided, a clause each; the first one names the
    reference. `sizes`: all that are better or worse are named, with the size of the difference. Of
    others at most `most` are named."""
    given = list(comparisons)
    clauses: list[str] = []

    def reference() -> str:
        return "it" if clauses else analysis.sweep.reference_label

    def names(of: Sequence[Comparison]) -> str:
        if len(of) == len(given) > most:
            return f"all {len(of)} other arms"
        few = most - (len(of) > most)
        return listed([analysis.label(c.arm) for c in of], few)

    for verdict in ("better", "worse"):
        different = with_verdict(given, verdict)
        if sizes and len(different) == 1:
            (c,) = different
            clauses.append(f"{analysis.label(c.arm)} is {verdict} than {reference()} by {size(c)}")
        elif different:
            arms = (
                listed([with_size(analysis, c) for c in different]) if sizes else names(different)
            )
            clauses.append(f"{arms} {are(different)} {verdict} than {reference()}")
    equal = [c for c in given if c.verdict == "equal" and c.tested]
    if equal:
        differ = "differs" if len(equal) == 1 else "differ"
        clauses.append(f"{names(equal)} {differ} from {reference()} by less than {worth(equal)}")
    same = [c for c in given if c.reason == "identical"]
    if same:
        has = "has" if len(same) == 1 else "have"
        scores = f"exactly the scores of {analysis.sweep.reference_label}"
        clauses.append(f"{names(same)} {has} {scores} with every seed")
    undecided = [c for c in given if c.verdict == "undecided" and c.tested]
    if undecided:
        against = "" if clauses else f" compared with {reference()}"
        clauses.append(f"{names(undecided)} {are(undecided)} undecided{against}")
    unknown = [c for c in given if c.reason in ("no spread", "too few pairs", "not looked at")]
    if unknown:
        clauses.append(f"{names(unknown)} cannot be judged")
    return clauses


def worth(comparisons: Iterable[Comparison]) -> str:
    """The margins of comparisons: one number, or the smallest and the largest."""
    return span([c.margin for c in comparisons if c.margin is not None])


def compared(analysis: Analysis, comparisons: Mapping[str, Comparison]) -> str:
    """Which arms are better, worse, equal and undecided, in a clause of a sentence."""
    return ", ".join(verdicts_in_words(analysis, comparisons.values(), sizes=True))
