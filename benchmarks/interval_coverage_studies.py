"""Simulated studies whose truth is known: what intervals, verdicts and looks of the harness hold.

python -m benchmarks.interval_coverage_studies

A study is several arms against one reference, paired by seed: differences of any two arms have
correlation 0.5 and spread 1. Each row simulates it many times in three worlds: no effects and no
margin, so that nothing but a false claim stops an arm early; every arm worse by exactly a margin of
1; and arms that are 0, 0.5, 1 and 2 better in turn, with that margin.
Writes benchmarks/results/interval_coverage_studies.md; the same numbers every time. The verdicts
are those of `harness.evidence`, computed for all studies at once (a test compares them with
`harness.evidence.sequential.follow` study by study).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import typer
from scipy import special, stats

from harness.evidence.moderation import moderated
from harness.evidence.sequential import LOOKS, nominal_levels, power_spending
from harness.evidence.verdict import MIN_PAIRS, simultaneous_level
from mixgrpo import cli
from mixgrpo.files.atomic import write_text

Values = npt.NDArray[np.float64]
Rule = Literal["plain", "raised", "published"]
Shape = Literal["normal", "lognormal runs", "lognormal", "lognormal, sigma 1"]
"""Of a paired difference: normal; of two runs with lognormal scores (sigma 0.5), so symmetric with
heavy tails; itself lognormal with sigma 0.5 (skewness 1.75) or 1 (6.2)."""
SIGMA = {"lognormal runs": 0.5, "lognormal": 0.5, "lognormal, sigma 1": 1.0}

RESULTS = Path("benchmarks/results")
STUDIES = 20_000
STUDIES_WITH_COLLAPSE = 4_000
"""Fewer, because every study has boundaries of its own there."""
COLLAPSE = 0.1
DEPTHS = (3.0, 6.0, 10.0)
"""By how much a collapsed run is worse, in sd."""
MARGIN = 1.0
EFFECTS = (0.0, 0.5, 1.0, 2.0)
LEVEL = 0.95
WANTED = (0.94, 0.96)
MOST_FALSE = 0.055


@dataclass(frozen=True)
class Case:
    """One row: a kind of study."""

    seeds: tuple[int, ...]
    """The looks; one number is a fixed design."""
    arms: int
    shape: Shape = "normal"
    spread_df: float = math.inf
    """Of the inverse chi-squared from which the arms' variances come; infinite: equal."""
    collapse: bool = False
    rule: Rule = "raised"

    @property
    def words(self) -> tuple[str, ...]:
        """The cells that name it."""
        return (
            f"{self.seeds[0]}" if len(self.seeds) == 1 else f"looks, at most {self.seeds[-1]}",
            str(self.arms),
            self.shape,
            "equal" if math.isinf(self.spread_df) else f"differ, d0 = {self.spread_df:g}",
            "1 in 10" if self.collapse else "none",
            self.rule,
        )


@dataclass(frozen=True)
class Found:
    """What came of simulated studies [R] of arms [G]."""

    misses: npt.NDArray[np.bool_]
    """Arms [R, G] of which any printed interval missed the truth."""
    differs: npt.NDArray[np.bool_]
    """Arms called better or worse."""
    equal: npt.NDArray[np.bool_]
    seeds: Values
    """Seeds planned until the arm stopped [R, G]."""


def differences(case: Case, studies: int, rng: np.random.Generator) -> Values:
    """Paired differences [R, G, n] of mean 0 and, before spreads differ, sd 1."""
    shape = (studies, case.arms, case.seeds[-1])
    shared = rng.standard_normal((studies, 1, shape[2]))
    x = rng.standard_normal(shape)
    if case.shape == "lognormal runs":
        x = (_lognormal(x, case.shape) - _lognormal(shared, case.shape)) / math.sqrt(2)
    else:
        x = math.sqrt(0.5) * (shared + x)
        x = x if case.shape == "normal" else _lognormal(x, case.shape)
    if math.isfinite(case.spread_df):
        x *= np.sqrt(case.spread_df / rng.chisquare(case.spread_df, (*shape[:2], 1)))
    return x


def _lognormal(z: Values, shape: Shape) -> Values:
    """Standard normal values made lognormal, of mean 0 and sd 1."""
    s2 = SIGMA[shape] ** 2
    return (np.exp(math.sqrt(s2) * z) - math.exp(s2 / 2)) / math.sqrt(math.expm1(s2) * math.exp(s2))


def collapses(case: Case, studies: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Whether a run collapsed [R, 1 + G, n], the reference first."""
    return rng.random((studies, 1 + case.arms, case.seeds[-1])) < COLLAPSE * case.collapse


def simulate(
    case: Case,
    x: Values,
    paired: npt.NDArray[np.bool_],
    effects: Sequence[float] = (0.0,),
    margin: float | None = None,
    comparisons: int | None = None,
) -> Found:
    """Verdicts on differences x [R, G, n] of which `paired` [R, G, n] can be used.

    `effects` of the arms in turn; `comparisons` share the error: the arms, unless given.
    """
    studies, arms, _ = x.shape
    truth = np.resize(np.asarray(effects, dtype=float), arms)
    y = np.where(paired, x + truth[:, None], 0.0)
    error = 1 - simultaneous_level(comparisons or arms, LEVEL)
    n, mean, variance = (np.zeros((studies, arms)) for _ in range(3))
    misses, differs, equal = (np.zeros((studies, arms), dtype=bool) for _ in range(3))
    active, seeds = ~equal, np.zeros((studies, arms))
    made: list[npt.NDArray[np.int64]] = []
    for look in case.seeds:
        now = paired[:, :, :look].sum(2)
        made.append(now)
        at_look = active & (now > n)
        n = np.where(at_look, now, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            new_mean = y[:, :, :look].sum(2) / now
            squares = (paired[:, :, :look] * (y[:, :, :look] - new_mean[..., None]) ** 2).sum(2)
            mean = np.where(at_look, new_mean, mean)
            variance = np.where(at_look, squares / (now - 1), variance)
        df = n - 1
        used, df_used = (
            (variance, df)
            if case.rule == "plain"
            else moderated(variance, df, lowers=case.rule == "published")
        )
        p = nominal(case, np.stack(made, axis=-1), error)
        usable = at_look & (n >= MIN_PAIRS)
        with np.errstate(invalid="ignore", divide="ignore"):
            half = special.stdtrit(df_used, 1 - p / 2) * np.sqrt(used / n)
        misses |= usable & (np.abs(mean - truth) > half)
        same = usable & (np.abs(mean) + half <= (-1.0 if margin is None else margin))
        other = usable & ~same & (np.abs(mean) > half)
        equal |= same
        differs |= other
        seeds = np.where(active, look, seeds)
        active = active & ~same & ~other
    return Found(misses, differs, equal, seeds)


def nominal(case: Case, made: npt.NDArray[np.int64], error: float) -> Values:
    """The nominal level [R, G] of the last look, of pairs [R, G, looks] that looks had."""
    if len(case.seeds) == 1:
        return np.full(made.shape[:2], error)
    spending = power_spending(error)
    histories, which = np.unique(made.reshape(-1, made.shape[2]), axis=0, return_inverse=True)
    levels = []
    for history in histories:
        # A look without a new pair is none.
        looks: dict[int, int] = {}
        for seeds, pairs in zip(case.seeds, history, strict=False):
            if pairs:
                looks.setdefault(int(pairs), seeds)
        spent = [spending(seeds / case.seeds[-1]) for seeds in looks.values()]
        levels.append(nominal_levels(list(looks), spent)[-1] if looks else 0.0)
    return np.asarray(levels)[which.reshape(made.shape[:2])]


@dataclass(frozen=True)
class Row:
    """What a row of the table says, each a fraction but the seeds."""

    case: Case
    studies: int
    one: float
    """Arms whose printed intervals, as of a sole comparison, held the truth at every look."""
    together: float
    """Studies of arms with effects, all of whose intervals held it."""
    false: float
    """Studies without effects in which any arm was called better or worse."""
    false_equal: float
    """Studies of arms that are the margin worse in which any was called equal."""
    rate_held: float
    """Arms whose Clopper-Pearson interval held the rate of collapse; NaN without collapse."""
    seeds: float
    """Per arm with effects, on average."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The marks that are missed."""
        found = []
        if not WANTED[0] <= self.one <= WANTED[1]:
            found.append("covers " + ("less" if self.one < WANTED[0] else "more"))
        if self.false > MOST_FALSE:
            found.append("false claims")
        if self.false_equal > MOST_FALSE:
            found.append("false equal")
        if self.rate_held < LEVEL:
            found.append("rate of collapse")
        return tuple(found)


def row(case: Case, studies: int) -> Row:
    """Simulate one row."""
    rng = np.random.default_rng(0)
    x = differences(case, studies, rng)
    collapsed = collapses(case, studies, rng)
    paired = ~(collapsed[:, 1:] | collapsed[:, :1])
    alone = simulate(case, x, paired, comparisons=1)
    null = simulate(case, x, paired)
    mixed = simulate(case, x, paired, EFFECTS, MARGIN)
    edge = simulate(case, x, paired, (-MARGIN,), MARGIN)
    rate = math.nan
    if case.collapse:
        n = case.seeds[-1]
        held = np.array(
            [
                bool(found.low <= COLLAPSE <= found.high)
                for found in (
                    stats.binomtest(k, n).proportion_ci(LEVEL, "exact") for k in range(n + 1)
                )
            ]
        )
        rate = float(held[collapsed[:, 1:].sum(2)].mean())
    return Row(
        case,
        studies,
        one=1 - float(alone.misses.mean()),
        together=1 - float(mixed.misses.any(1).mean()),
        false=float(null.differs.any(1).mean()),
        false_equal=float(edge.equal.any(1).mean()),
        rate_held=rate,
        seeds=float(mixed.seeds.mean()),
    )


FIXED = ((8,), (32,))
SHAPES: tuple[Shape, ...] = ("normal", "lognormal runs", "lognormal")
SECTIONS: dict[str, list[Case]] = {
    "The rule of the harness": [
        Case(seeds, arms, shape, collapse=collapse)
        for seeds in (*FIXED, LOOKS)
        for arms in (3, 8)
        for shape in SHAPES
        for collapse in (False, True)
    ],
    "One arm": [
        Case(seeds, 1, shape, rule="plain") for seeds in (*FIXED, LOOKS) for shape in SHAPES
    ],
    "Rules for the spread": [
        Case(seeds, arms, spread_df=spread_df, rule=rule)
        for seeds in ((5,), (8,), LOOKS)
        for arms in (3, 8)
        for spread_df in (math.inf, 4.0)
        for rule in ("plain", "raised", "published")
    ],
    "Very skewed differences": [
        Case(seeds, arms, "lognormal, sigma 1", rule=rule)
        for seeds in (*FIXED, LOOKS)
        for arms in (3, 8)
        for rule in ("plain", "raised")
    ],
}

HEAD = (
    "seeds",
    "arms",
    "differences",
    "spreads",
    "collapse",
    "spread rule",
    "one arm's interval holds",
    "all of a study hold",
    "false claims per study",
    "false equal per study",
    "rate of collapse held",
    "seeds per arm",
    "marks missed",
)


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for r in rows:
        cells = (
            *r.case.words,
            *(f"{x:.1%}" for x in (r.one, r.together, r.false, r.false_equal)),
            "" if math.isnan(r.rate_held) else f"{r.rate_held:.1%}",
            f"{r.seeds:.1f}",
            ", ".join(r.problems) or "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kept(studies: int) -> str:
    """How often Student's interval of an arm's mean holds it where collapsed seeds stay in, and
    where they are counted apart."""
    kept_at = " | ".join(f"kept, {depth:g} sd worse" for depth in DEPTHS)
    lines = [f"| seeds | {kept_at} | counted apart |", "|---|" + "---|" * len(DEPTHS) + "---|"]
    rng = np.random.default_rng(1)
    for n in (5, 8, 16, 32):
        x = rng.standard_normal((studies, n))
        gone = rng.random((studies, n)) < COLLAPSE
        everything = np.ones_like(gone)
        shares = [_held(x - d * gone, everything, -d * COLLAPSE) for d in DEPTHS]
        shares.append(_held(x, ~gone, 0.0))
        lines.append(f"| {n} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


def _held(values: Values, used: npt.NDArray[np.bool_], truth: float) -> float:
    m = used.sum(1)
    mean = (values * used).sum(1) / np.maximum(m, 1)
    squares = (used * (values - mean[:, None]) ** 2).sum(1)
    enough, m = m >= MIN_PAIRS, np.maximum(m, MIN_PAIRS)
    half = special.stdtrit(m - 1, (1 + LEVEL) / 2) * np.sqrt(squares / (m - 1) / m)
    return float((np.abs(mean - truth) <= half)[enough].mean())


def page(studies: int, studies_with_collapse: int) -> str:
    """All tables as Markdown."""
    parts = [
        "# Intervals and verdicts in simulated studies",
        "Written by `python -m benchmarks.interval_coverage_studies`. "
        f"{studies:,} studies per row, {studies_with_collapse:,} with collapse. Wanted: one arm's "
        f"interval holds the truth in {WANTED[0]:.0%} to {WANTED[1]:.0%}, and at most "
        f"{MOST_FALSE:.1%} of studies make a false claim. {NOTES}",
    ]
    for title, cases in SECTIONS.items():
        rows = [row(c, studies_with_collapse if c.collapse else studies) for c in cases]
        parts += [f"## {title}", *([WHY[title]] if title in WHY else []), table(rows)]
    parts += [
        "## Collapse kept in the mean",
        "One run in ten collapses: coverage of Student's 95 % interval of an arm's mean, with "
        "collapsed seeds in the mean or counted apart.",
        kept(studies),
    ]
    return "\n\n".join(parts) + "\n"


NOTES = (
    "A number of seeds is a fixed design. With looks, an interval counts as one that holds where "
    "those of all looks of the arm do. `plain`: the arm's own spread. `published`: moderated over "
    "the arms as in Smyth (2004), at most on the degrees of freedom of all arms together. "
    "`raised`: the same, never below the arm's own; what the harness uses."
)
WHY = {
    "The rule of the harness": (
        "Lognormal runs: the difference of two runs with lognormal scores, which is symmetric. "
        "Equal arms always give symmetric differences, since exchanging an arm with the reference "
        "changes the sign alone. Lognormal: skewed differences of mean 0 (skewness 1.75), which "
        "need an arm that changes the shape and not the mean. Few seeds miss there, with any rule "
        "for the spread: seeds that lack the long tail have a low mean and a small spread "
        "together, so the interval is narrow where it is wrong (Johnson 1978), and the small "
        "levels of early looks rest on just those samples. More seeds cure it, slowly. Covers "
        "more: a spread that is raised by the others and never lowered is too large on average "
        "where all are equal, and heavy tails do the same to Student's interval. Collapsed seeds "
        "are counted apart, and their rate has an interval of its own, which is exact and so "
        "covers more than it says."
    ),
    "One arm": "Nothing is moderated: what looks and skewed differences alone do.",
    "Rules for the spread": (
        "The published rule keeps its promise where all arms spread alike and breaks it where they "
        "do not: from three to eight arms d0 is badly known, often infinite, and then the arms "
        "with the largest spread, which make most false claims, get the common one. Raising alone "
        "keeps the error in both worlds and costs a point of coverage beyond 95 % where all are "
        "equal."
    ),
    "Very skewed differences": (
        "Skewness 6.2, to show where Student's interval ends. Here it needs hundreds of seeds."
    ),
}


def main(
    studies: Annotated[int, typer.Option(metavar="R", min=1, help="Of each row.")] = STUDIES,
    studies_with_collapse: Annotated[
        int, typer.Option(metavar="R", min=1, help="Of each row with collapse.")
    ] = STUDIES_WITH_COLLAPSE,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the table.")] = RESULTS,
) -> None:
    """Simulate studies and write how often their intervals and verdicts are right."""
    text = page(studies, studies_with_collapse)
    write_text(out / "interval_coverage_studies.md", text)
    print(text)


if __name__ == "__main__":
    cli.run(main)
