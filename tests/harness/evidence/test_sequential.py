"""Looks: nominal levels of the specification, and error and decisions in simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.evidence.sequential import (
    LOOKS,
    Plan,
    decide,
    follow,
    nominal_levels,
    obrien_fleming_spending,
    power_spending,
    sequential_p,
)

FRACTIONS = [n / 32 for n in LOOKS]
GOLDEN = [
    (power_spending(0.05), ".00122 .00231 .00500 .00833 .0210 .0362"),
    (power_spending(0.05 / 3), ".000407 .000746 .00160 .00263 .00665 .0112"),
    (power_spending(0.05 / 8), ".000153 .000274 .000585 .000944 .00241 .00400"),
    (power_spending(0.05, 3.0), ".000191 .000654 .00216 .00487 .0181 .0423"),
    (power_spending(0.05, 1.0), ".00781 .00697 .00954 .0115 .0194 .0243"),
    (obrien_fleming_spending(0.05), "7.1e-7 8.8e-5 .00134 .00507 .0215 .0410"),
]


@pytest.mark.parametrize(("spending", "levels"), GOLDEN)
def test_golden_levels_to_the_digits_given(spending, levels):
    errors = nominal_levels(LOOKS, [spending(f) for f in FRACTIONS])
    for found, text in zip(errors, levels.split(), strict=True):
        mantissa, _, exponent = text.partition("e")
        last_digit = 10 ** -(len(mantissa.partition(".")[2])) * 10 ** int(exponent or 0)
        assert found == pytest.approx(float(text), abs=0.51 * last_digit)


def test_the_error_is_spent_as_said_in_simulated_brownian_motion():
    rng = np.random.default_rng(0)
    steps = np.diff([0, *FRACTIONS])
    paths = np.cumsum(rng.standard_normal((200_000, 6)) * np.sqrt(steps), axis=1)
    z = stats.norm.isf(np.array([look.error for look in Plan().all_looks()]) / 2)
    crossed = np.maximum.accumulate(np.abs(paths) / np.sqrt(FRACTIONS) >= z, axis=1)
    assert crossed.mean(0) == pytest.approx(0.05 * np.array(FRACTIONS) ** 2, abs=0.0016)


def test_limits_of_levels():
    assert nominal_levels([32], [0.05]) == pytest.approx((0.05,))
    assert nominal_levels([16, 32, 36], [0.02, 0.05, 0.05])[2] == 0  # all is spent
    assert nominal_levels([1], [obrien_fleming_spending(0.05)(1e-4)]) == (0.0,)
    # Only ratios of information matter.
    assert nominal_levels([1, 3], [0.01, 0.05]) == pytest.approx(
        nominal_levels([10, 30], [0.01, 0.05])
    )
    with pytest.raises(ValueError, match="growing"):
        nominal_levels([5, 5], [0.01, 0.02])


def test_a_skipped_look_gives_its_error_to_the_next():
    whole, skipped = Plan().all_looks(), Plan().all_looks([(5, 5), (12, 12)])
    assert [look.seeds for look in skipped] == [5, 12, 16, 24, 32]
    assert skipped[0] == whole[0]
    assert skipped[1].error > whole[2].error  # nothing was spent at 8
    assert skipped[1].spent == whole[2].spent == pytest.approx(0.05 * (12 / 32) ** 2)
    assert [look.seeds for look in Plan().all_looks([(7, 7)])] == [7, 8, 12, 16, 24, 32]


def test_seeds_without_a_pair_do_not_leave_error_unspent():
    looks = Plan().all_looks([(5, 4), (8, 7)])
    assert [look.pairs for look in looks] == [4, 7, 11, 15, 23, 31]
    assert looks[-1].spent == pytest.approx(0.05)
    # All looks lose the same fraction of pairs: the levels are as planned.
    halved = Plan().all_looks([(2 * n, n) for n in (5, 8, 16)])
    assert [k.error for k in halved] == pytest.approx(
        [k.error for k in Plan().all_looks([(n, n) for n in (10, 16, 32)])]
    )


def study(rng, effects, sd=0.02, n=32):
    shared = rng.standard_normal(n)
    return {
        str(k): list(e + sd * math.sqrt(0.5) * (shared + rng.standard_normal(n)))
        for k, e in enumerate(effects)
    }


def test_a_decision_says_the_boundary_and_how_far_it_is():
    x = study(np.random.default_rng(1), [0.03])["0"][:5]
    found = decide(x, Plan(comparisons=3), margin=0.02)
    assert found.look.error == pytest.approx(0.000407, abs=1e-6)
    assert found.boundary == pytest.approx(stats.t.isf(found.look.error / 2, 4))
    assert found.statistic == pytest.approx(stats.ttest_1samp(x, 0).statistic)
    assert found.comparison.level == 1 - found.look.error
    assert found.verdict == "undecided"
    assert found.next_look is not None
    assert found.next_look.pairs == 8
    assert found.to_difference == pytest.approx(found.boundary - abs(found.statistic))
    assert found.to_difference > 0
    assert found.equality_statistic == pytest.approx(
        min(
            stats.ttest_1samp(x, -0.02).statistic,
            -stats.ttest_1samp(x, 0.02).statistic,
        )
    )
    for options in ({"earlier": [(5, 5)]}, {"seeds": 4}, {"seeds": 8, "earlier": [(8, 4)]}):
        with pytest.raises(ValueError, match="a look at"):
            decide(x, Plan(), **options)


def test_the_verdict_is_what_boundaries_say():
    rng = np.random.default_rng(2)
    for effect in (0.0, 0.01, 0.02, 0.05):
        for decisions in follow(
            study(rng, [effect] * 4), Plan(comparisons=4), margin=0.02
        ).values():
            *before, last = decisions
            assert not any(d.decided for d in before)
            assert [d.look.pairs for d in decisions] == list(LOOKS[: len(decisions)])
            assert (last.verdict == "equal") == (last.to_equality <= 0)
            if last.verdict in ("better", "worse"):
                assert last.to_difference <= 0
            assert last.decided or last.look.pairs == 32
            assert last.next_look is None


def test_an_arm_with_fewer_pairs_is_looked_at_once_more_with_those_it_has():
    rng = np.random.default_rng(3)
    arms = study(rng, [0.0, 0.0, 0.0]) | {"short": study(rng, [0.0])["0"][:7], "none": []}
    found = follow(arms, Plan(comparisons=4))
    assert [d.look.pairs for d in found["short"]] == [5, 7]
    assert found["short"][1].look.spent == pytest.approx(0.05 / 4 * (7 / 32) ** 2)
    assert found["none"] == ()


def test_a_seed_without_a_pair_leaves_the_looks_where_they_are():
    values = study(np.random.default_rng(5), [0.0])["0"][:12]
    gap = [*values[:2], math.nan, *values[3:5], *[math.nan] * 3, *values[8:]]
    found = follow({"a": gap}, Plan())["a"]
    # The look at 8 seeds would have the four pairs of that at 5.
    assert [(d.look.seeds, d.look.pairs) for d in found] == [(5, 4), (12, 8)]
    assert found[1].comparison.mean == pytest.approx(np.nanmean(gap))


def test_false_claims_of_a_study_by_looks():
    rng = np.random.default_rng(4)
    plan, wrong, wrong_equal = Plan((5, 8, 12), comparisons=3), 0, 0
    studies = 120
    for _ in range(studies):
        found = follow(study(rng, [0.0] * 3, n=12), plan)
        wrong += any(d[-1].decided for d in found.values())
        edge = follow(study(rng, [-0.02] * 3, n=12), plan, margin=0.02)
        wrong_equal += any(d[-1].verdict == "equal" for d in edge.values())
    assert wrong / studies <= 0.055 + 3 * 0.02
    assert wrong_equal / studies <= 0.055 + 3 * 0.02


def test_a_repeated_p_crosses_exactly_at_its_error():
    looks = [(5, 5), (8, 8), (12, 12)]
    p = sequential_p([0.2, 0.004, 0.001], looks, 32)
    for error, crossed in ((p * 1.01, True), (p * 0.99, False)):
        levels = nominal_levels(LOOKS[:3], [power_spending(error)(f) for f in FRACTIONS[:3]])
        assert any(a <= b for a, b in zip([0.2, 0.004, 0.001], levels, strict=True)) == crossed
    assert sequential_p([0.03], [(32, 32)], 32) == pytest.approx(0.03, rel=1e-3)
    assert sequential_p([1.0], [(5, 5)], 32) == 1.0
    with pytest.raises(ValueError, match="looks"):
        sequential_p([0.1], looks, 32)
