"""Adjusted p values by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness import comparison
from harness.evidence.families import benjamini_hochberg, expected_false_claims, holm


def test_holm_is_that_of_the_present_statistics():
    rng = np.random.default_rng(0)
    p = {str(k): float(v) for k, v in enumerate(rng.random(12) ** 3)} | {"none": math.nan}
    found = holm(p)
    assert {k: v.adjusted for k, v in found.items()} == pytest.approx(
        comparison.holm(p), nan_ok=True
    )
    assert not found["none"].claimed
    assert found["0"].p == p["0"]


def test_holm_claims_what_is_at_most_the_error():
    found = holm({"a": 0.01, "b": 0.02, "c": 0.03})
    assert [c.claimed for c in found.values()] == [True, True, True]
    assert [round(c.adjusted, 4) for c in found.values()] == [0.03, 0.04, 0.04]
    assert not holm({"a": 0.03, "b": 0.04})["a"].claimed


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(1).random(20) ** 2
    found = benjamini_hochberg({str(k): float(v) for k, v in enumerate(p)} | {"x": math.nan}, 0.1)
    expected = scipy_stats.false_discovery_control(p)
    assert [found.comparisons[str(k)].adjusted for k in range(20)] == pytest.approx(expected)
    assert found.tests == 20
    assert found.claims == int((expected <= 0.1).sum())
    assert found.expected_false == pytest.approx(0.1 * found.claims)
    assert found.expected_false_unadjusted == pytest.approx(2.0)


def test_benjamini_hochberg_keeps_its_promise():
    rng = np.random.default_rng(2)
    z = rng.standard_normal((400, 20))
    z[:, :5] += 3
    wrong = []
    for p in 2 * scipy_stats.norm.sf(np.abs(z)):
        found = benjamini_hochberg({str(k): float(v) for k, v in enumerate(p)}, 0.2)
        claimed = [k for k in range(20) if found.comparisons[str(k)].claimed]
        wrong.append(sum(k >= 5 for k in claimed) / max(1, len(claimed)))
    assert np.mean(wrong) <= 0.2


def test_expected_false_claims_and_what_is_refused():
    assert expected_false_claims([0.05, 0.05, 0.02]) == pytest.approx(0.12)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 1.2})
    assert holm({}) == {}
    assert benjamini_hochberg({}).claims == 0
