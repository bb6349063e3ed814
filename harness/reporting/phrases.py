"""Phrases that sentences about arms have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.analysis.analyse import Analysis
from harness.stats import Comparison
from harness.text import interval, listed, number

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


def with_sizes(analysis: Analysis, comparisons: Iterable[Comparison]) -> list[str]:
    return [f"{analysis.label(c.arm)} (by {size(c)})" for c in comparisons]


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


def compared(analysis: Analysis, comparisons: Mapping[str, Comparison], sizes: bool = True) -> str:
    """Which arms are better or worse than the reference, and how many are not significantly
    different from it."""
    reference, parts = analysis.sweep.reference_label, []
    for verdict in ("better", "worse"):
        different = with_verdict(comparisons.values(), verdict)
        if different:
            arms = [
                analysis.label(c.arm)
                + (f" ({interval(c.simultaneous, signed=True)})" if sizes else "")
                for c in different
            ]
            parts.append(f"{listed(arms)} {are(arms)} {verdict}")
    verdicts = [c.verdict for c in comparisons.values()]
    alike = verdicts.count("indistinguishable") + verdicts.count("identical")
    unknown = verdicts.count("too few") + verdicts.count("no variance")
    if not parts:
        if alike == 0:
            return "no arm can be judged"
        who = "no arm is" if alike > 1 else "the arm is not"
        text = f"{who} significantly different from {reference}"
    else:
        text = f"{' and '.join(parts)} than {reference}"
        if alike:
            text += f", {alike} of {len(comparisons)} not significantly different from it"
    return text + (f", and {unknown} cannot be judged" if unknown else "")
