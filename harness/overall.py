"""What all studies say together, in numbers: each question's effect, the paper's differences beside
it, and the arms whose reward and cost are set side by side.

Claims rest on each study's own intervals (`harness.stats`). What the paper printed was measured on
another model and task: it is set beside, never against. Sentences are in `overall_words`, tables in
`overall_tables`, figures in `overall_plots`; `overall_page` makes files of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness import findings, paper
from harness.front import Point, points
from harness.spec import Sweep
from harness.stats import Comparison, seeds_needed
from harness.studies import Study

Kind = Literal["differs", "alike", "told", "open"]
"""Whether an arm is told apart from the reference, none is, the study compares none and is answered
otherwise, or nothing can be concluded."""

SCORES = ("ir", "hps")
"""The paper's scores that are looked at: those it prints in every table."""


@dataclass(frozen=True)
class Printed:
    """What the paper prints for a study's comparison, in one score."""

    score: str
    same: str | None
    """The row that stands beside the arm of the study's largest effect."""
    base: str
    """The row that stands beside the reference, or else the table's first."""
    differences: dict[str, tuple[float, ...]]
    """Row minus the base: as the table has it, and as other tables would (`paper`)."""

    @property
    def largest(self) -> str:
        """The row that differs most, as the table has it."""
        return max(self.differences, key=lambda row: abs(self.differences[row][0]))

    @property
    def noise(self) -> tuple[float, float] | None:
        return paper.noise(self.score)

    @property
    def exceeds(self) -> bool:
        """Whether any row differs by more than a setting printed twice does from itself, whichever
        of the printed values is taken."""
        if self.noise is None:
            return False
        return any(min(map(abs, d)) > self.noise[1] for d in self.differences.values())


@dataclass(frozen=True)
class Question:
    study: Study
    kind: Kind
    effect: Comparison | None
    """The largest of those that are told apart from the reference; where none is, of all."""
    needed: int | None
    """Seeds that would resolve a difference as large as the one seen, where it is not resolved."""
    printed: tuple[Printed, ...]

    @property
    def answer(self) -> str:
        """In one line: what the study's own views say, then which arms differ."""
        arms = findings.one_line(self.study.analysis)
        said = self.study.said
        return " ".join((*said, arms) if self.study.analysis.compared or not said else said)

    @property
    def effect_label(self) -> str:
        if self.effect is None:
            return ""
        return self.study.analysis.by_name(self.effect.arm).arm.label


@dataclass(frozen=True)
class Overall:
    questions: tuple[Question, ...]
    points: tuple[Point, ...]
    absent: tuple[tuple[Sweep, str], ...]
    """Studies that have no results, and why."""


def put_together(studies: Sequence[Study], absent: Sequence[tuple[Sweep, str]]) -> Overall:
    return Overall(tuple(map(ask, studies)), tuple(points(studies)), tuple(absent))


def ask(study: Study) -> Question:
    """A study's question with the effect that answers it."""
    compared = study.analysis.compared
    told = [c for c in compared if c.verdict in ("better", "worse")]
    alike = [c for c in compared if c.verdict in ("indistinguishable", "identical")]
    kind: Kind = "differs" if told else "alike" if alike else "open"
    if not compared and study.said:
        kind = "told"
    candidates = told or [c for c in compared if c.simultaneous.known and c.simultaneous.varies]
    effect = max(candidates, key=lambda c: abs(c.simultaneous.mean), default=None)
    needed = None if effect is None or told else _needed(effect)
    return Question(study, kind, effect, needed, _printed(study, effect))


def _needed(effect: Comparison) -> int | None:
    try:
        return seeds_needed(effect.simultaneous.sd, effect.simultaneous.mean, effect.family)
    except ValueError:  # a difference of nothing, or out of reach
        return None


def _printed(study: Study, effect: Comparison | None) -> tuple[Printed, ...]:
    table = study.sweep.paper
    rows = {r.published_row for r in study.analysis.arms if r.published_row is not None}
    if table is None or not rows:
        return ()
    own = None if effect is None else study.analysis.by_name(effect.arm).published_row
    reference = study.analysis.reference.published_row
    if reference is None:  # the paper does not print it: its rows are compared with its first
        reference, own = next(row for row in paper.find(table).rows if row in rows), None
    found = []
    for score in SCORES:
        differences = {
            row: value
            for row, value in paper.differences(table, reference, score).items()
            if row in rows
        }
        if differences:
            same = own if own in differences else None
            found.append(Printed(score, same, reference, differences))
    return tuple(found)
