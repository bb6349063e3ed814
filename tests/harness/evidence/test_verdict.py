"""Verdicts: the four, what decides them, and what may not decide."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.evidence.moderation import moderate, plain
from harness.evidence.verdict import compare, simultaneous_level

BETTER = [0.031, 0.018, 0.027, 0.022, 0.035]


def test_the_interval_is_scipys():
    found = compare(BETTER)
    low, high = stats.ttest_1samp(BETTER, 0).confidence_interval()
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert (found.pairs, found.spread.degrees_of_freedom) == (5, 4)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        (BETTER, None, "better"),
        (BETTER, 0.01, "better"),
        ([-x for x in BETTER], 0.01, "worse"),
        ([0.001, -0.002, 0.002, 0.0, -0.001], 0.01, "equal"),
        ([0.001, -0.002, 0.002, 0.0, -0.001], None, "undecided"),
        ([0.03, -0.04, 0.02, 0.01, -0.02], 0.01, "undecided"),
    ],
)
def test_the_four_verdicts(differences, margin, verdict):
    assert compare(differences, margin=margin).verdict == verdict


def test_a_real_difference_within_the_margin_is_equal_and_keeps_its_sign():
    found = compare(BETTER, margin=0.05)
    assert (found.verdict, found.sign) == ("equal", 1)


def test_near_zero_spread_is_not_better():
    near = [0.1, 0.1, 0.10001]
    found = compare(near)
    assert (found.verdict, found.reason, found.interval.known) == ("undecided", "no spread", False)
    # A floor that evaluation makes gives an honest interval, whatever it then says.
    floored = compare(near, spread=plain(near, 0.08))
    assert (floored.verdict, floored.reason) == ("undecided", "interval")
    assert compare(near, spread=plain(near, 0.005)).verdict == "better"
    rng = np.random.default_rng(0)
    others = {str(k): list(0.2 * rng.standard_normal(8)) for k in range(4)}
    spread = moderate({**others, "near": near})["near"]
    assert compare(near, spread=spread).verdict == "undecided"


def test_arms_that_compute_the_same_are_equal():
    found = compare([0.0] * 5)
    assert (found.verdict, found.reason, found.sign) == ("equal", "identical", 0)
    assert compare([0.0] * 2).reason == "too few pairs"


@pytest.mark.parametrize("differences", [[0.5] * 5, [0.1 + 0.2, 0.3, 0.3]])
def test_seeds_that_do_not_vary_conclude_nothing(differences):
    found = compare(differences, margin=0.01)
    assert (found.verdict, found.reason, found.sign) == ("undecided", "no spread", 0)


def test_identical_outcomes_are_equal_where_the_floor_is_small():
    same = [0.0] * 8
    assert compare(same, margin=0.01, spread=plain(same, 0.01)).verdict == "equal"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pairs(count):
    found = compare([0.5] * count, margin=0.01)
    assert (found.verdict, found.reason) == ("undecided", "too few pairs")
    assert math.isnan(found.interval.low)


def test_what_is_refused():
    for differences, options, message in [
        ([0.1, math.nan, 0.2], {}, "finite"),
        (BETTER, {"margin": 0.0}, "margin"),
        (BETTER, {"level": 95}, "level"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(differences, **options)


def test_a_level_of_one_has_no_bounds():
    found = compare(BETTER, level=1.0, margin=0.01)
    assert (found.verdict, found.interval.low) == ("undecided", -math.inf)


def test_simultaneous_level():
    assert simultaneous_level(8) == pytest.approx(1 - 0.05 / 8)
