"""The simulation of benchmarks.interval_coverage_studies decides as the harness does."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.interval_coverage_studies import (
    MARGIN,
    NOTES,
    RESULTS,
    SECTIONS,
    Case,
    collapses,
    differences,
    row,
    simulate,
    table,
)
from benchmarks.interval_coverage_studies import STUDIES as STUDIES_IN_TABLE
from harness.evidence.moderation import moderate
from harness.evidence.sequential import LOOKS, Plan, follow
from harness.evidence.verdict import compare, simultaneous_level

ROOT = Path(__file__).parents[3]
STUDIES = 25


@pytest.mark.parametrize("rule", ["plain", "raised"])
@pytest.mark.parametrize("collapse", [False, True])
def test_looks_are_those_of_follow(rule, collapse):
    case = Case(LOOKS, 4, collapse=collapse, spread_df=4.0, rule=rule)
    rng = np.random.default_rng(0)
    x, gone = differences(case, STUDIES, rng), collapses(case, STUDIES, rng)
    paired = ~(gone[:, 1:] | gone[:, :1])
    effects = (0.0, 0.5, 1.5, -1.0)
    found = simulate(case, x, paired, effects, MARGIN)
    plan = Plan(comparisons=4)
    assert (paired.sum(2) < 32).any() == collapse
    seen = set()
    for s in range(STUDIES):
        arms = {
            str(g): list(np.where(paired[s, g], x[s, g] + effects[g], np.nan)) for g in range(4)
        }
        for arm, decisions in follow(arms, plan, margin=MARGIN, moderated=rule == "raised").items():
            verdict, g = decisions[-1].verdict, int(arm)
            seen.add(verdict)
            assert found.equal[s, g] == (verdict == "equal")
            assert found.differs[s, g] == (verdict in ("better", "worse"))
            assert found.seeds[s, g] == decisions[-1].look.seeds
    assert len(seen) == 4


def test_a_fixed_design_is_compare():
    case = Case((8,), 5, shape="lognormal")
    rng = np.random.default_rng(1)
    x = differences(case, STUDIES, rng)
    found = simulate(case, x, np.ones_like(x, dtype=bool), (0.0, 2.0))
    for s in range(STUDIES):
        arms = {str(g): list(x[s, g] + (2.0 if g % 2 else 0.0)) for g in range(5)}
        spreads = moderate(arms)
        for g in range(5):
            c = compare(arms[str(g)], level=simultaneous_level(5), spread=spreads[str(g)])
            assert found.differs[s, g] == (c.verdict != "undecided")
            assert found.misses[s, g] == (not c.interval.holds(2.0 if g % 2 else 0.0))


@pytest.mark.parametrize("shape", ["normal", "lognormal runs", "lognormal"])
def test_differences_have_mean_0_sd_1_and_correlate(shape):
    x = differences(Case((8,), 2, shape=shape), 20_000, np.random.default_rng(2))
    assert x.mean() == pytest.approx(0, abs=0.01)
    assert x.std() == pytest.approx(1, abs=0.02)
    correlation = np.corrcoef(x[:, 0].ravel(), x[:, 1].ravel())[0, 1]
    assert correlation == pytest.approx(0.5, abs=0.05)


def test_a_row_says_what_misses():
    found = row(Case((8,), 3, shape="lognormal, sigma 1", rule="plain"), 500)
    assert "covers less" in found.problems
    assert "| lognormal, sigma 1 |" in table([found])
    fine = row(Case((8,), 1, collapse=True, rule="plain"), 4000)
    assert fine.problems == ()
    assert fine.rate_held > 0.95


def test_the_committed_table_is_what_the_command_prints():
    text = (ROOT / RESULTS / "interval_coverage_studies.md").read_text(encoding="utf-8")
    assert NOTES in text
    for case in (Case((8,), 1, rule="plain"), Case((5,), 3)):
        line = table([row(case, STUDIES_IN_TABLE)]).splitlines()[2]
        assert line in text.splitlines()
    assert text.count("\n| ") == sum(map(len, SECTIONS.values())) + len(SECTIONS) + 5
