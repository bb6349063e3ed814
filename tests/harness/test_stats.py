"""The statistics on data whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.comparison import MOST_FLIPS, compare, holm, sign_flip_p
from harness.stats import (
    detectable_difference,
    mean_interval,
    paired_differences,
    paired_interval,
    ratio_interval,
)

SWEEPS = 2000


def simulate(rng, seeds, effects, shared=0.015, own=0.02):
    """One sweep: arms with the same seed share a part of their noise."""
    common = shared * rng.standard_normal(seeds)
    return {
        arm: dict(enumerate(0.6 + effect + common + own * rng.standard_normal(seeds)))
        for arm, effect in effects.items()
    }


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_intervals_cover_the_truth_95_times_in_100(seeds):
    rng = np.random.default_rng(seeds)
    effects = {"reference": 0.0, "arm": 0.01}
    mean_hits = paired_hits = 0
    for _ in range(SWEEPS):
        sweep = simulate(rng, seeds, effects)
        found = mean_interval(list(sweep["arm"].values()))
        mean_hits += found.low <= 0.61 <= found.high
        difference = compare(sweep, "reference")["arm"].difference
        paired_hits += difference.low <= 0.01 <= difference.high
    assert 0.93 <= mean_hits / SWEEPS <= 0.97
    assert 0.93 <= paired_hits / SWEEPS <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_verdicts_are_wrong_in_at_most_5_sweeps_of_100(seeds):
    rng = np.random.default_rng(100 + seeds)
    effects = dict.fromkeys(["reference", "a", "b", "c"], 0.0)
    wrong = covered = 0
    for _ in range(SWEEPS):
        found = compare(simulate(rng, seeds, effects), "reference").values()
        wrong += any(c.verdict in ("better", "worse") for c in found)
        covered += all(c.simultaneous.low <= 0 <= c.simultaneous.high for c in found)
    assert wrong / SWEEPS <= 0.06  # 0.05 and three standard errors would be 0.065
    assert covered / SWEEPS >= 0.94


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_detectable_difference_is_found_80_times_in_100(seeds):
    rng = np.random.default_rng(200 + seeds)
    own = 0.02
    # sd of a paired difference: the shared part cancels, the own parts of two arms add
    effect = detectable_difference(own * math.sqrt(2), seeds, family=2)
    effects = {"reference": 0.0, "a": effect, "b": 0.0}  # too few arms to moderate the spread
    hits = sum(
        compare(simulate(rng, seeds, effects, own=own), "reference")["a"].verdict == "better"
        for _ in range(SWEEPS)
    )
    assert hits / SWEEPS == pytest.approx(0.8, abs=0.03)


def test_holm_by_hand():
    # Sorted: .01 x 4, .02 x 3, .03 x 2 = .06 (not below .06), .04 x 1 -> not below the one before.
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with_gap = holm({"a": 0.01, "b": math.nan})
    assert with_gap["a"] == 0.01
    assert math.isnan(with_gap["b"])


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_sign_flip_equals_brute_force(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    observed = abs(values.sum())
    flips = itertools.product((1, -1), repeat=n)
    brute = np.mean([abs(np.dot(signs, values)) >= observed - 1e-12 for signs in flips])
    assert sign_flip_p(values) == pytest.approx(brute)


def test_sign_flip_limits():
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 2**5
    assert sign_flip_p([0.1] * 5) == 2 / 2**5  # ties, and sums that rounding could tell apart
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip_p([1.0, 2.0]))
    many = sign_flip_p([1.0] * 20)
    assert 0 < many < 0.001  # the +1 correction: never 0
    assert sign_flip_p([1.0] * 20) == many  # fixed seed
    values = np.random.default_rng(5).normal(0.4, 1, 16)
    assert 2 ** len(values) > MOST_FLIPS
    assert sign_flip_p(values) == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, abs=0.03)


def test_paired_t_equals_scipy():
    values = [0.1, 0.3, -0.05, 0.2]
    found = mean_interval(values)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    reference = dict.fromkeys(range(4), 0.5)
    arm = {seed: 0.5 + value for seed, value in enumerate(values)}
    compared = compare({"reference": reference, "arm": arm}, "reference")["arm"]
    assert compared.p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue)
    assert (compared.difference.low, compared.difference.high) == pytest.approx((low, high))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_seeds_conclude_nothing(count):
    values = {"reference": dict.fromkeys(range(count), 0.5), "a": dict.fromkeys(range(count), 0.9)}
    found = compare(values, "reference")["a"]
    assert (found.verdict, found.reason) == ("undecided", "too few pairs")
    assert not found.difference.known
    assert not found.simultaneous.known
    assert found.difference.sign == 0
    assert math.isnan(found.p_holm)
    assert math.isnan(found.detectable)


def test_no_variance_is_no_evidence():
    reference = {0: 0.1, 1: 0.2, 2: 0.3}
    shifted = {seed: value + 0.1 for seed, value in reference.items()}
    found = compare({"reference": reference, "same": dict(reference), "b": shifted}, "reference")
    assert (found["same"].verdict, found["same"].reason) == ("equal", "identical")
    assert (found["b"].verdict, found["b"].reason) == ("undecided", "no spread")
    for name in ("same", "b"):
        for value in ("p", "p_holm", "p_sign_flip", "p_sign_flip_holm", "detectable"):
            assert math.isnan(getattr(found[name], value)), (name, value)
    flat = mean_interval([0.5, 0.5, 0.5, 0.5])
    assert (flat.mean, flat.low, flat.high, flat.sd) == (0.5, 0.5, 0.5, 0.0)


def test_a_spread_of_nearly_nothing_is_no_evidence():
    reference = dict.fromkeys(range(3), 0.0)
    arm = {0: 0.1, 1: 0.1, 2: 0.10001}
    found = compare({"reference": reference, "a": arm}, "reference", {"reference": 0.02})["a"]
    assert (found.verdict, found.reason) == ("undecided", "no spread")
    assert not found.simultaneous.varies  # no figure may draw it as if it were shown


def test_equal_is_an_interval_within_the_margin():
    reference = dict.fromkeys(range(5), 0.5)
    arm = dict(enumerate(0.5 + d for d in (0.001, -0.002, 0.002, 0.0, 0.001)))
    low, high = scipy_stats.ttest_1samp([arm[s] - 0.5 for s in arm], 0).confidence_interval()
    most = max(abs(low), abs(high))
    values = {"reference": reference, "a": arm}
    for margin, verdict in (
        (1.01 * most, "equal"),
        (0.99 * most, "undecided"),
        (None, "undecided"),
    ):
        assert compare(values, "reference", {"reference": margin})["a"].verdict == verdict
    assert compare(values, "reference")["a"].verdict == "undecided"


def test_a_spread_that_is_small_by_chance_is_raised_by_the_other_arms():
    rng = np.random.default_rng(3)
    reference = dict.fromkeys(range(5), 0.0)
    wide = {
        f"wide{k}": dict(enumerate(map(float, 0.02 * rng.standard_normal(5)))) for k in range(6)
    }
    narrow = dict(enumerate([0.011, 0.0105, 0.0102, 0.0112, 0.0108]))
    alone = compare({"reference": reference, "a": narrow}, "reference")["a"]
    among = compare({"reference": reference, "a": narrow, **wide}, "reference")["a"]
    assert alone.verdict == "better"
    assert among.spread.sd > 3 * alone.spread.sd
    assert among.spread.measured == alone.spread.measured
    # With fewer than three arms nothing is known of what they have in common.
    two = compare({"reference": reference, "a": narrow, "b": wide["wide0"]}, "reference")["a"]
    assert not two.spread.moderated


def test_values_that_are_not_finite_are_left_out_and_counted():
    found = mean_interval([1.0, math.nan, 2.0, math.inf, 3.0])
    assert (found.n, found.dropped, found.mean) == (3, 2, 2.0)
    pairs, left_out = paired_differences({0: 1.0, 1: math.nan, 2: 3.0}, {0: 0.5, 1: 1.0, 3: 1.0})
    assert pairs == {0: 0.5}
    assert left_out == (1, 2, 3)
    assert mean_interval([math.nan]).n == 0


def test_unbalanced_seeds_use_the_pairs():
    reference = {s: 0.5 + 0.01 * s for s in range(5)}
    arm = {s: 0.6 + 0.012 * s for s in range(1, 7)}
    found = compare({"reference": reference, "a": arm}, "reference")["a"]
    assert found.seeds == (1, 2, 3, 4)
    assert found.left_out == (0, 5, 6)
    assert found.verdict == "better"
    assert paired_interval(arm, reference).dropped == 3


def test_a_reference_without_runs_and_a_lone_arm():
    values = {"reference": {}, "a": {0: 1.0, 1: 2.0, 2: 3.0}}
    assert compare(values, "reference")["a"].reason == "too few pairs"
    assert compare({"reference": {0: 1.0}}, "reference") == {}


def test_the_verdict_is_what_the_simultaneous_interval_says():
    rng = np.random.default_rng(9)
    for _ in range(200):
        sweep = simulate(rng, 5, {"reference": 0, "a": 0.03, "b": -0.04, "c": 0.0})
        for c in compare(sweep, "reference").values():
            assert (c.verdict == "better") == (c.simultaneous.low > 0)
            assert (c.verdict == "worse") == (c.simultaneous.high < 0)
            if c.verdict in ("better", "worse"):
                assert c.p_holm < 0.05  # Holm never contradicts a verdict
            assert c.simultaneous.low <= c.difference.low <= c.difference.high


def test_ratios_are_paired_and_symmetric():
    a, b = {0: 2.0, 1: 4.4, 2: 6.3}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0}
    found, inverse = ratio_interval(a, b), ratio_interval(b, a)
    assert found.n == 3
    assert found.mean == pytest.approx((2 * 2.2 * 2.1) ** (1 / 3))
    assert found.mean * inverse.mean == pytest.approx(1)
    assert found.low * inverse.high == pytest.approx(1)


def test_a_level_must_be_one():
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0, 2.0, 3.0], 95)
