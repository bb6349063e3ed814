"""Moderated spreads against the golden values of the specification and a simulation."""

import math

import numpy as np
import pytest
from scipy import special

from harness.evidence.moderation import (
    moderate,
    moderated,
    plain,
    pooled_degrees_of_freedom,
    prior,
    prior_of,
    trigamma_inverse,
)

GOLDEN = [
    (
        [0.0131, 0.0073, 0.0210, 0.0350, 0.0120],
        (2.685088, 0.013404),
        [0.013185, 0.009398, 0.019198, 0.030581, 0.012405],
    ),
    ([0.013, 0.012, 0.014, 0.0125, 0.0135], (math.inf, 0.013989), [0.013989] * 5),
    (
        [0.026, 0.026, 0.050, 0.052, 0.055, 0.038, 0.032, 0.013],
        (4.194494, 0.031602),
        [0.028229, 0.028229, 0.044017, 0.045442, 0.047600, 0.035737, 0.031851, 0.021906],
    ),
]


def with_sd(sd, n=8, mean=0.0, seed=0):
    """Values of exactly this standard deviation and mean."""
    x = np.random.default_rng(seed).standard_normal(n)
    return list(mean + sd * (x - x.mean()) / x.std(ddof=1))


@pytest.mark.parametrize(("sds", "common", "expected"), GOLDEN)
def test_golden_values_of_the_specification(sds, common, expected):
    found = prior([sd**2 for sd in sds], [7] * len(sds))
    assert (found.degrees_of_freedom, math.sqrt(found.variance)) == pytest.approx(common, abs=6e-7)
    arms = {str(k): with_sd(sd, seed=k) for k, sd in enumerate(sds)}
    published = moderate(arms, lowers=True)
    assert [s.sd for s in published.values()] == pytest.approx(expected, abs=6e-7)
    assert [s.measured for s in published.values()] == pytest.approx(sds)
    raised = moderate(arms)
    assert [s.sd for s in raised.values()] == pytest.approx(
        [max(pair) for pair in zip(sds, expected, strict=True)], abs=6e-7
    )


def test_degrees_of_freedom_are_d0_and_d_but_at_most_those_of_all_arms():
    sds = GOLDEN[0][0]
    arms = {str(k): with_sd(sd, seed=k) for k, sd in enumerate(sds)}
    assert [s.degrees_of_freedom for s in moderate(arms).values()] == pytest.approx([9.685088] * 5)
    equal = {str(k): with_sd(0.01, seed=k) for k in range(3)}
    # 3 x 7 of independent arms; variances of arms that share a reference correlate with 0.25.
    assert moderate(equal)["0"].degrees_of_freedom == pytest.approx(21 / 1.5)


def test_the_pooled_variance_has_the_degrees_of_freedom_that_a_simulation_shows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 1, 8)) + rng.standard_normal((20_000, 5, 8))
    pooled = x.var(-1, ddof=1).mean(-1)
    seen = 2 * pooled.mean() ** 2 / pooled.var()
    d = np.full(5, 7.0)
    assert pooled_degrees_of_freedom(d, np.ones(5, dtype=bool)) == pytest.approx(seen, rel=0.05)


def test_two_arms_are_not_moderated():
    arms = {"a": with_sd(0.01), "b": with_sd(0.05)}
    assert moderate(arms, 0.02) == {arm: plain(values, 0.02) for arm, values in arms.items()}
    # A third one whose differences are all the same shows nothing of chance.
    assert not moderate({**arms, "c": [0.5] * 8})["a"].moderated


def test_never_below_the_floor():
    arms = {str(k): with_sd(sd, seed=k) for k, sd in enumerate((0.01, 0.02, 0.03))}
    found = moderate(arms, {"0": 0.05, "1": 0.0, "2": 0.0})
    assert found["0"].sd == 0.05
    assert found["0"].at_floor
    assert not found["1"].at_floor
    assert plain([0.1, 0.1, 0.1], 0.02).sd == 0.02


def test_an_arm_that_hardly_varies_is_raised_and_does_not_spoil_the_others():
    arms = {str(k): with_sd(0.02, seed=k) for k in range(4)}
    flat = moderate({**arms, "flat": [0.1] * 8})
    assert flat["flat"].sd == pytest.approx(flat["0"].sd)
    assert flat["0"] == moderate(arms)["0"]
    near = moderate({**arms, "near": [0.1, 0.1, 0.10001]})["near"]
    assert near.sd > 100 * near.measured


def test_arms_with_different_numbers_of_seeds():
    arms = {"a": with_sd(0.02, 5), "b": with_sd(0.02, 12), "c": with_sd(0.021, 8), "d": [0.1]}
    found = moderate(arms)
    assert math.isnan(found["d"].sd)
    assert found["a"].degrees_of_freedom > 4
    assert found["b"].degrees_of_freedom >= 11


def test_d0_is_recovered_from_many_arms():
    rng = np.random.default_rng(1)
    variances = 0.04 * 4 / rng.chisquare(4, 20_000) * rng.chisquare(7, 20_000) / 7
    found = prior(variances, np.full(20_000, 7.0))
    assert found.degrees_of_freedom == pytest.approx(4, rel=0.06)
    assert found.variance == pytest.approx(0.04, rel=0.03)


def test_arrays_of_studies_equal_study_by_study():
    rng = np.random.default_rng(2)
    variances, df = rng.chisquare(4, (30, 5)) / 4, rng.integers(2, 9, (30, 5)).astype(float)
    variances[3, 1] = 0
    df[4, :3] = 0  # fewer than three arms vary
    together = moderated(variances, df)
    for k in range(30):
        alone = moderated(variances[k], df[k])
        assert np.allclose(together[0][k], alone[0], equal_nan=True)
        assert np.allclose(together[1][k], alone[1])
    d0, s02 = prior_of(variances[4], df[4])
    assert (d0, s02) == (0, 0)


def test_trigamma_inverse():
    y = np.geomspace(1e-3, 1e6, 200)
    assert np.allclose(trigamma_inverse(special.polygamma(1, y)), y, rtol=1e-9)
