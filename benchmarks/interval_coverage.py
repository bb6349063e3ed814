"""How often an interval that says 95 % holds the true mean, and how often equal arms look unequal.

python -m benchmarks.interval_coverage

Normal values whose truth is known: intervals of the mean of n seeds, and sweeps of four arms that
do not differ. Then, without simulation, the difference that n seeds can show. Last, how often a
page of curves that stay level shows one that turned (`harness.reporting.views.turn`). Takes
seconds; the same numbers every time. Whole studies, moderated spreads and looks:
`benchmarks.interval_coverage_studies`.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from harness.comparison import compare
from harness.reporting.views.turn import best_of_others, since
from harness.stats import LEVEL, detectable_difference, mean_interval
from mixgrpo import cli

SEEDS = (3, 5, 8, 10, 20)
ARMS = 4
CURVES, EVALUATIONS = 6, 10
"""Held-out curves of a page, and how often each was evaluated."""
RESAMPLES = 1000

Values = npt.NDArray[np.float64]


def student(values: Values) -> float:
    """The fraction of rows [R, n] whose Student interval holds 0."""
    found = [mean_interval([float(v) for v in row]) for row in values]
    return sum(i.low <= 0 <= i.high for i in found) / len(found)


def bootstrap(values: Values, rng: np.random.Generator) -> float:
    """The same of the percentile bootstrap."""
    held = 0
    for row in values:
        means = row[rng.integers(0, len(row), (RESAMPLES, len(row)))].mean(1)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        held += bool(low <= 0 <= high)
    return held / len(values)


def false_verdicts(values: Values) -> float:
    """The fraction of sweeps [R, arms, n] of equal arms in which any is called better or worse."""
    wrong = 0
    for sweep in values:
        arms = {str(a): dict(enumerate(map(float, row))) for a, row in enumerate(sweep)}
        found = compare(arms, "0").values()
        wrong += any(c.verdict in ("better", "worse") for c in found)
    return wrong / len(values)


def lead(values: Values) -> float:
    """By how much the best of the arms' means is above the reference's, on average [R, arms, n]."""
    means = values.mean(2)
    return float((means.max(1) - means[:, 0]).mean())


def table(simulations: int, seeds: Sequence[int] = SEEDS) -> str:
    """One row per number of seeds, as Markdown."""
    lines = [
        "| seeds | Student interval holds the truth | percentile bootstrap holds it "
        f"| false verdict in a sweep of {ARMS} equal arms | the best arm's lead there, in sd |",
        "|---|---|---|---|---|",
    ]
    rng = np.random.default_rng(0)
    for n in (1, *seeds):
        sweeps = rng.standard_normal((simulations, ARMS, n))
        if n == 1:
            lines.append(f"| 1 | no interval | no interval | no verdict | {lead(sweeps):.2f} |")
            continue
        own = rng.standard_normal((simulations, n))
        shares = (student(own), bootstrap(own, rng), false_verdicts(sweeps))
        cells = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {n} | {cells} | {lead(sweeps):.2f} |")
    return "\n".join(lines)


def resolution(seeds: Sequence[int] = SEEDS) -> str:
    """What true difference has an 80 % chance of a verdict, in sd of the paired differences."""
    lines = ["| seeds | one comparison | three comparisons |", "|---|---|---|"]
    for n in seeds:
        found = (detectable_difference(1.0, n, family) for family in (1, ARMS - 1))
        lines.append(f"| {n} | {' | '.join(f'{effect:.2f}' for effect in found)} |")
    return "\n".join(lines)


def false_turns(values: Values) -> tuple[float, float]:
    """The fraction of pages [R, curves, n, evaluations] of level curves in which any seems to have
    turned: each with its own 95 %, and as the view has it, all curves together."""
    wrong = np.zeros(2)
    for page in values:
        losses = [list(since(curves, best_of_others(curves))) for curves in page]
        for k, level in enumerate((LEVEL, 1 - (1 - LEVEL) / len(page))):
            wrong[k] += any(mean_interval(loss, level).high < 0 for loss in losses)
    alone, together = wrong / len(values)
    return float(alone), float(together)


def turning(simulations: int, seeds: Sequence[int] = SEEDS) -> str:
    """One row per number of seeds, as Markdown."""
    lines = [
        f"| seeds | false turn in a page of {CURVES} level curves, each with 95 % | all together |",
        "|---|---|---|",
    ]
    rng = np.random.default_rng(1)
    for n in seeds:
        shares = false_turns(rng.standard_normal((simulations, CURVES, n, EVALUATIONS)))
        lines.append(f"| {n} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


def main(
    simulations: Annotated[int, typer.Option(metavar="R", min=1, help="Of each case.")] = 2000,
) -> None:
    """Print how far intervals of few seeds can be trusted."""
    print(table(simulations), resolution(), turning(simulations), sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
