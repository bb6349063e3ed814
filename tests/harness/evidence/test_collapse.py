"""Collapse: exact rates, centres with and without, probability of improvement."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.evidence.collapse import (
    centre,
    outcome,
    probability_of_improvement,
    rate_interval,
)


@pytest.mark.parametrize(("count", "n"), [(0, 8), (1, 8), (3, 20), (8, 8)])
def test_the_rate_has_the_exact_interval(count, n):
    found = rate_interval(count, n)
    low = stats.beta.ppf(0.025, count, n - count + 1) if count else 0.0
    high = stats.beta.ppf(0.975, count + 1, n - count) if count < n else 1.0
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(rate_interval(0, 0).low)


def test_an_arm_with_and_without_its_collapsed_seeds():
    values = [0.6, 0.62, 0.64, 0.66, 0.1, math.nan]
    found = outcome(values, [False] * 4 + [True, True])
    assert (found.collapsed, found.rate.estimate) == (2, pytest.approx(1 / 3))
    assert found.all_seeds.seeds == 5
    assert found.all_seeds.mean.estimate == pytest.approx(0.524)
    assert found.without_collapsed.mean.estimate == pytest.approx(0.63)
    assert found.without_collapsed.median == pytest.approx(0.63)
    low, high = stats.ttest_1samp(values[:4], 0).confidence_interval()
    mean = found.without_collapsed.mean
    assert (mean.low, mean.high) == pytest.approx((low, high))
    assert found.without_collapsed.interquartile_mean == pytest.approx(0.63)
    # The middle half: one of five from each end.
    assert found.all_seeds.interquartile_mean == pytest.approx((0.6 + 0.62 + 0.64) / 3)


def test_all_collapsed_and_what_is_refused():
    found = outcome([0.1, 0.2], [True, True])
    assert found.without_collapsed.seeds == 0
    assert math.isnan(found.without_collapsed.median)
    assert not centre([0.1, 0.2]).mean.known
    with pytest.raises(ValueError, match="collapsed run"):
        outcome([0.1, math.nan], [True, False])
    with pytest.raises(ValueError, match="marks"):
        outcome([0.1], [])


def test_the_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 9), rng.integers(0, 6, 7)
    found = probability_of_improvement(list(x), list(y))
    assert found.estimate == pytest.approx(stats.mannwhitneyu(x, y).statistic / 63)
    other = probability_of_improvement(list(y), list(x))
    assert (other.low, other.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_its_bounds_solve_newcombes_equation():
    found = probability_of_improvement([1, 2, 3, 4, 7], [0, 1.5, 2.5, 0.5, 5])
    for theta in (found.low, found.high):
        shape = 1 + 4 * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        z = (found.estimate - theta) / math.sqrt(theta * (1 - theta) * shape / 25)
        assert abs(z) == pytest.approx(stats.norm.isf(0.025))


def test_runs_that_separate_are_no_certainty():
    apart = probability_of_improvement([3, 4, 5, 6, 7], [0, 1, 1, 2, 2])
    assert (apart.estimate, apart.high) == (1, 1)
    assert 0.5 < apart.low < 0.9
    below = probability_of_improvement([0, 1, 1, 2, 2], [3, 4, 5, 6, 7])
    assert (below.estimate, below.low) == (0, 0)
    assert below.high == pytest.approx(1 - apart.low)
    assert probability_of_improvement([1, 2, -math.inf], [0, 0, 0]).estimate == pytest.approx(2 / 3)
    assert not probability_of_improvement([1, 2], [0, 0]).known
    assert math.isnan(probability_of_improvement([], [1.0]).estimate)
    with pytest.raises(ValueError, match="ranked"):
        probability_of_improvement([math.nan], [1.0])


@pytest.mark.parametrize(("n", "shift"), [(5, 0.0), (8, 1.0), (8, 2.0)])
def test_its_interval_covers(n, shift):
    rng = np.random.default_rng(n)
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    held = [
        probability_of_improvement(
            list(rng.standard_normal(n) + shift), list(rng.standard_normal(n))
        ).holds(truth)
        for _ in range(800)
    ]
    assert 0.92 <= np.mean(held) <= 0.98
