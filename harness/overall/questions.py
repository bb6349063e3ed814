"""What all studies say together, in numbers: each question's effect, the paper's differences beside
it, and the arms whose reward and cost are set side by side.

Claims rest on each study's own intervals (`harness.stats`). What the paper printed was measured on
another model and task: it is set beside, never against. Sentences are in `words`, tables in
`tables`, figures in `plots`; `page` makes files of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.comparison import Comparison
from harness.evidence.intervals import Interval
from harness.evidence.resolution import seeds_for_difference
from harness.overall.front import Point, points
from harness.overall.studies import Study
from harness.reporting import findings
from harness.stats import LEVEL
from harness.study import paper
from harness.study.spec import Sweep

Kind = Literal["differs", "equal", "undecided", "told", "open"]
"""Whether an arm is better or worse than the reference, all are equal, some are undecided, the
study is answered by another measurement, or nothing can be judged yet."""

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
    def against_noise(self) -> Literal["beyond", "of its size", "within", "noise unknown"]:
        """The rows' differences against the spreads of settings that are printed several times:
        beyond the largest of them, whichever printed value is taken; all below the smallest,
        whichever is taken; or between."""
        if self.noise is None:
            return "noise unknown"
        low, high = self.noise
        sizes = [tuple(map(abs, d)) for d in self.differences.values()]
        if any(min(size) > high for size in sizes):
            return "beyond"
        return "within" if all(max(size) < low for size in sizes) else "of its size"


@dataclass(frozen=True)
class Question:
    study: Study
    kind: Kind
    effect: Comparison | None
    """The largest of those that are significantly different from the reference; where none is, of
    all. None where another measurement answers."""
    needed: Interval | None
    """Seeds that show a difference as large as the margin, where the largest one is undecided."""
    printed: tuple[Printed, ...]

    @property
    def answer(self) -> str:
        """In one line: what answers beside the arms' comparison, or else what the study's own views
        say and which arms differ."""
        said = self.study.said
        if self.study.answer:
            return " ".join((self.study.answer, *said))
        arms = findings.one_line(self.study.analysis)
        return " ".join((*said, arms) if self.study.analysis.compared or not said else said)

    @property
    def effect_label(self) -> str:
        if self.effect is None:
            return ""
        return self.study.analysis.label(self.effect.arm)


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
    if study.answer:
        kind: Kind = "told" if study.is_answered else "open"
        return Question(study, kind, None, None, _printed(study, None))
    compared = study.analysis.compared
    different = [c for c in compared if c.verdict in ("better", "worse")]
    undecided = [c for c in compared if c.verdict == "undecided" and c.tested]
    equal = [c for c in compared if c.verdict == "equal" and c.margin is not None]
    kind = "differs" if different else "undecided" if undecided else "equal" if equal else "open"
    if not compared and study.said:
        kind = "told"
    candidates = different or [c for c in compared if c.tested]
    effect = max(candidates, key=lambda c: abs(c.simultaneous.mean), default=None)
    return Question(study, kind, effect, _needed(effect), _printed(study, effect))


def _needed(effect: Comparison | None) -> Interval | None:
    """Seeds that show a difference as large as the margin, where the largest one is undecided."""
    if effect is None or effect.verdict != "undecided" or effect.margin is None:
        return None
    error = (1 - LEVEL) / effect.family
    return seeds_for_difference(effect.spread, len(effect.seeds), effect.margin, error)


def _printed(study: Study, effect: Comparison | None) -> tuple[Printed, ...]:
    table = study.sweep.paper
    rows = {r.published.row for r in study.analysis.arms if r.published.row is not None}
    if table is None or not rows:
        return ()
    row_of_arm = None if effect is None else study.analysis.by_name(effect.arm).published.row
    reference = study.analysis.reference.published.row
    if effect is not None:
        reference = study.analysis.by_name(effect.reference).published.row
    if reference is None:  # the paper does not print it: its rows are compared with its first
        reference, row_of_arm = next(row for row in paper.find(table).rows if row in rows), None
    printed = []
    for score in SCORES:
        differences = {
            row: value
            for row, value in paper.differences(table, reference, score).items()
            if row in rows
        }
        if differences:
            same = row_of_arm if row_of_arm in differences else None
            printed.append(Printed(score, same, reference, differences))
    return tuple(printed)
