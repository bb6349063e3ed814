"""Chances of designs with looks against the table of the specification."""

import math

import pytest

from harness.evidence.moderation import Spread
from harness.evidence.power import chances, needed, scaled
from harness.evidence.resolution import chance_of_difference, chance_of_equality
from harness.evidence.sequential import Plan

GOLDEN = [
    # comparisons, rho, effect in sd, power, mean seeds
    (1, 2.0, 0.5, 0.755, 25.6),
    (1, 2.0, 0.8, 0.990, 18.2),
    (1, 2.0, 2.0, 1.0, 8.5),
    (3, 2.0, 0.8, 0.963, 21.3),
    (8, 2.0, 0.5, 0.426, 29.7),
    (8, 2.0, 1.2, 1.0, 16.4),
    (1, 3.0, 0.5, 0.770, 26.6),
    (1, 1.0, 0.8, 0.984, 16.6),
]


@pytest.mark.parametrize(("comparisons", "rho", "effect", "power", "seeds"), GOLDEN)
def test_power_and_mean_seeds_of_the_specification(comparisons, rho, effect, power, seeds):
    found = chances(Plan(comparisons=comparisons, rho=rho), effect)
    assert found.better == pytest.approx(power, abs=0.011)
    assert found.seeds == pytest.approx(seeds, abs=0.15)
    assert found.better + found.worse + found.equal + found.undecided == pytest.approx(1)


@pytest.mark.parametrize(("comparisons", "false"), [(1, 0.0525), (3, 0.0173), (8, 0.0058)])
def test_false_claims_of_the_specification(comparisons, false):
    found = chances(Plan(comparisons=comparisons), 0.0, studies=60_000)
    assert found.better + found.worse == pytest.approx(false, abs=0.003)


def test_a_single_look_is_the_fixed_design():
    plan = Plan((8,))
    assert chances(plan, 1.0).better == pytest.approx(chance_of_difference(1.0, 8), abs=0.01)
    found = chances(plan, 0.0, 1.2)
    assert found.equal == pytest.approx(chance_of_equality(1.2, 8), abs=0.01)
    # A spread that other arms help to know.
    assert chances(plan, 1.0, added=6).better == pytest.approx(
        chance_of_difference(1.0, 8, degrees_of_freedom=13), abs=0.01
    )


def test_a_difference_of_the_margin_is_seldom_called_equal():
    found = chances(Plan(), 0.8, 0.8)
    assert found.equal <= 0.0275
    assert chances(Plan(), 0.0, 0.8).equal > 0.9


def test_needed_seeds_have_the_chance():
    spread = Spread(0.02, 7, 0.02)
    for goal in ("difference", "equality"):
        found = needed(spread, 8, 0.02, goal=goal, comparisons=3)
        plan = scaled(Plan(comparisons=3), int(found.most.estimate))
        effect, margin = (1.0, None) if goal == "difference" else (0.0, 1.0)
        at = chances(plan, effect, margin)
        assert max(at.better, at.equal) >= 0.8
        assert found.average.estimate == pytest.approx(at.seeds)
        assert found.fixed.estimate <= found.most.estimate <= found.fixed.estimate + 3
        assert found.average.estimate < found.most.estimate
        assert found.most.low < found.most.estimate < found.most.high
    more = needed(spread, 8, 0.02, comparisons=3, chance=0.9)
    assert more.most.estimate > needed(spread, 8, 0.02, comparisons=3).most.estimate


def test_out_of_reach_is_infinite():
    found = needed(Spread(1.0, 7, 1.0), 8, 1e-5)
    assert (found.fixed.estimate, found.most.estimate) == (math.inf, math.inf)
