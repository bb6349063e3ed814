"""Phrases that several views share."""

from collections.abc import Mapping

from harness.analysis import Analysis
from harness.findings import largest_first
from harness.numbers import interval
from harness.stats import Comparison
from harness.words import listed


def compared(
    analysis: Analysis, comparisons: Mapping[str, Comparison], with_sizes: bool = True
) -> str:
    """Which arms are better or worse than the reference, and that the others are not told apart."""
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
            return "nothing can be concluded"
        who = "no arm" if alike > 1 else "the arm"
        said = f"{who} is {'' if alike > 1 else 'not '}told apart from {reference}"
    else:
        said = f"{' and '.join(parts)} than {reference}"
        if alike:
            said += f", {alike} of {len(comparisons)} not told apart from it"
    return said + (f", and about {unknown} nothing can be concluded" if unknown else "")


def label(analysis: Analysis, arm: str) -> str:
    return analysis.by_name(arm).arm.label
