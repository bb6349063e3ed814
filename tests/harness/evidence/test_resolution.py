"""Power and seeds needed against scipy and simulations."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.evidence.moderation import Spread
from harness.evidence.resolution import (
    chance_of_difference,
    chance_of_equality,
    detectable_difference,
    detectable_effect,
    sd_range,
    seeds_for_difference,
    seeds_for_equality,
)

SPREAD = Spread(0.02, 7, 0.02)


@pytest.mark.parametrize(
    ("n", "effect", "error"), [(6, 1.2, 0.05), (8, 0.5, 0.05 / 3), (6, 0, 0.1)]
)
def test_the_chance_of_a_difference_is_that_of_a_simulated_t_test(n, effect, error):
    values = np.random.default_rng(0).standard_normal((40_000, n)) + effect
    p = scipy_stats.ttest_1samp(values, 0.0, axis=1).pvalue
    assert chance_of_difference(effect, n, error) == pytest.approx(
        float((p < error).mean()), abs=0.01
    )
    assert chance_of_difference(detectable_effect(n, error, 0.8), n, error) == pytest.approx(0.8)


def test_the_chance_of_equality_is_that_of_a_simulation():
    x = np.random.default_rng(0).standard_normal((40_000, 8))
    half = scipy_stats.t.isf(0.025, 7) * x.std(1, ddof=1) / math.sqrt(8)
    seen = (np.abs(x.mean(1)) + half <= 1.1).mean()
    assert chance_of_equality(1.1, 8) == pytest.approx(float(seen), abs=0.008)
    assert chance_of_equality(0.1, 8) == pytest.approx(0, abs=0.01)


def test_infinite_degrees_of_freedom_are_the_normal_distribution():
    z = scipy_stats.norm.isf(0.025)
    expected = scipy_stats.norm.sf(z - 2) + scipy_stats.norm.cdf(-z - 2)
    assert chance_of_difference(1.0, 4, 0.05, math.inf) == pytest.approx(expected)
    expected = 2 * scipy_stats.norm.cdf(2 * 2 - z) - 1
    assert chance_of_equality(2.0, 4, 0.05, math.inf) == pytest.approx(expected)


def test_the_range_of_the_spread_holds_the_truth_80_times_in_100():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(2000):
        sd = float(rng.standard_normal(8).std(ddof=1))
        low, high = sd_range(Spread(sd, 7, sd))
        held.append(low <= 1 <= high)
    assert np.mean(held) == pytest.approx(0.8, abs=0.03)


def test_the_range_knows_the_floor():
    low, high = sd_range(Spread(0.02, 7, 0.02, floor=0.018))
    assert (low, high) == (0.018, pytest.approx(0.02 * math.sqrt(7 / scipy_stats.chi2.ppf(0.1, 7))))
    assert sd_range(Spread(0.02, math.inf, 0.02)) == (0.02, 0.02)


def test_the_smallest_detectable_difference_has_the_power():
    found = detectable_difference(SPREAD, 8, 0.05 / 3)
    assert found.low < found.estimate < found.high
    assert found.estimate == pytest.approx(0.02 * detectable_effect(8, 0.05 / 3, 0.8))
    assert math.isnan(detectable_difference(SPREAD, 2).estimate)
    moderated = Spread(0.02, 11, 0.02, True)
    assert detectable_difference(moderated, 8).estimate < detectable_difference(SPREAD, 8).estimate


def test_seeds_needed_are_the_fewest():
    found = seeds_for_difference(SPREAD, 8, 0.015, 0.05 / 3)
    n = int(found.estimate)
    assert chance_of_difference(0.75, n, 0.05 / 3) >= 0.8
    assert chance_of_difference(0.75, n - 1, 0.05 / 3) < 0.8
    assert found.low < found.estimate < found.high
    equal = int(seeds_for_equality(SPREAD, 8, 0.015).estimate)
    assert chance_of_equality(0.75, equal) >= 0.8 > chance_of_equality(0.75, equal - 1)
    assert seeds_for_difference(SPREAD, 8, 1e-6).estimate == math.inf
    assert seeds_for_difference(SPREAD, 8, 10.0).estimate == 3
