"""Group advantages: by hand, by an oracle, and what must not change them."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mixgrpo.maths.advantages import group_advantages, has_variance
from tests.mixgrpo import oracle

Aggregate = Literal["sum", "mean", "reward"]
AGGREGATES: list[Aggregate] = ["sum", "mean", "reward"]


def rewards_of(seed: int, prompts: int = 3, group: int = 6, count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(prompts, group, generator=generator, dtype=torch.float64) * 10**i
        for i, name in enumerate("abcd"[:count])
    }


def test_by_hand() -> None:
    # Mean 2, std with N - 1 degrees of freedom 1; the other: mean 20, std 10.
    rewards = {"a": torch.tensor([[1.0, 2.0, 3.0]]), "b": torch.tensor([[30.0, 10.0, 20.0]])}
    weights = {"a": 1.0, "b": 2.0}
    for aggregate, expected in {
        "sum": [-1.0 + 2.0, 0.0 - 2.0, 1.0 + 0.0],
        "mean": [0.5, -1.0, 0.5],
        # 61, 22, 43: mean 42, std sqrt((19^2 + 20^2 + 1) / 2) = 19.519.
        "reward": [19 / math.sqrt(381), -20 / math.sqrt(381), 1 / math.sqrt(381)],
    }.items():
        got = group_advantages(rewards, weights, aggregate)  # type: ignore[arg-type]
        assert got[0].tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000), st.sampled_from(AGGREGATES), st.integers(1, 3), st.integers(2, 12))
def test_agrees_with_the_oracle(seed: int, aggregate: Aggregate, count: int, group: int) -> None:
    rewards = rewards_of(seed, group=group, count=count)
    weights = {k: 0.5 + i for i, k in enumerate(rewards)}
    got = group_advantages(rewards, weights, aggregate)
    expected = oracle.advantages({k: v.numpy() for k, v in rewards.items()}, weights, aggregate)
    assert got.shape == (3, group)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, -12.3, 1e6, 1e-9])
@pytest.mark.parametrize("group", [2, 3, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_group_without_variance_gets_exactly_zero(
    value: float, group: int, dtype: torch.dtype, aggregate: Aggregate
) -> None:
    informative = torch.arange(group, dtype=dtype)
    rewards = {"a": torch.stack([torch.full((group,), value, dtype=dtype), informative])}
    got = group_advantages(rewards, {"a": 1.0}, aggregate)
    assert (got[0] == 0).all()
    assert (got[1] != 0).any()
    assert has_variance(rewards["a"]).tolist() == [False, True]


def test_a_constant_reward_leaves_the_others_as_they_are() -> None:
    rewards = {"a": torch.randn(2, 5), "flat": torch.full((2, 5), 0.1)}
    alone = group_advantages({"a": rewards["a"]}, {"a": 1.0})
    both = group_advantages(rewards, {"a": 1.0, "flat": 3.0})
    assert torch.equal(alone, both)


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False, width=32), min_size=2, max_size=16))
def test_one_rewards_advantage_is_bounded(values: list[float]) -> None:
    got = group_advantages({"a": torch.tensor([values], dtype=torch.float64)}, {"a": 1.0})
    n = len(values)
    assert float(got.abs().max()) <= (n - 1) / math.sqrt(n) * (1 + 1e-9)


def test_the_bound_is_reached() -> None:
    one_of_twelve = torch.zeros(1, 12, dtype=torch.float64)
    one_of_twelve[0, 4] = 1
    got = group_advantages({"a": one_of_twelve}, {"a": 1.0})
    assert float(got.max()) == pytest.approx(11 / math.sqrt(12), rel=1e-6)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_scale_and_offset_of_a_reward_do_not_matter_but_in_reward_aggregation(
    seed: int, scale: float, offset: float
) -> None:
    assume(not 0.9 < scale < 1.1)
    rewards = rewards_of(seed)
    moved = {**rewards, "b": rewards["b"] * scale + offset}
    weights = dict.fromkeys(rewards, 1.0)
    for aggregate in AGGREGATES:
        same = torch.allclose(
            group_advantages(rewards, weights, aggregate),
            group_advantages(moved, weights, aggregate),
            atol=1e-5,
        )
        assert same == (aggregate != "reward")


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        *((scale, torch.float32) for scale in (1e-30, 1e-20, 1e-8, 1e8, 1e30)),
        *((scale, torch.float64) for scale in (1e-300, 1e-30, 1e-20, 1e-8, 1e8, 1e30, 1e300)),
    ],
)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_scale_of_all_rewards_does_not_matter(
    scale: float, aggregate: Aggregate, dtype: torch.dtype
) -> None:
    rewards = {k: v.to(dtype) for k, v in rewards_of(5).items()}
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}
    scaled = {k: v * scale for k, v in rewards.items()}
    expected, got = (group_advantages(r, weights, aggregate) for r in (rewards, scaled))
    # A product rounds in the rewards' own dtype.
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-9)
    assert float(got.abs().max()) > 0.5


def test_a_small_spread_around_a_large_mean() -> None:
    """1000 +- 0.1: what float32 can hold of the rewards is used to the last bit."""
    exact = [999.9, 1000.1, 1000.0, 999.95, 1000.05]
    by_hand = np.array(exact) - np.mean(exact)
    by_hand /= np.std(exact, ddof=1)
    for dtype, error in ((torch.float64, 1e-7), (torch.float32, 5e-4)):
        given_ = torch.tensor([exact], dtype=dtype)
        got = group_advantages({"a": given_}, {"a": 1.0})
        np.testing.assert_allclose(got[0].numpy(), by_hand, atol=error)
        held = given_[0].double().numpy()
        np.testing.assert_allclose(
            got[0].numpy(), (held - held.mean()) / held.std(ddof=1), rtol=1e-7, atol=1e-10
        )
    assert got.dtype == torch.float64


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("value", [0.1, 1e-30, -7.0, 1e30])
def test_rounding_is_no_variance(value: float, aggregate: Aggregate) -> None:
    """The last bits of float32 do not become advantages, whatever holds them."""
    one = torch.tensor(value)
    up, down = (torch.nextafter(one, torch.tensor(v)) for v in (math.inf, -math.inf))
    group = torch.stack([one, up, down, one])
    for noisy in (group, group.double()):
        rewards = {"a": torch.stack([noisy, torch.arange(4).to(noisy) * one])}
        got = group_advantages(rewards, {"a": 1.0}, aggregate)
        assert (got[0] == 0).all()
        assert (got[1] != 0).all()
        assert has_variance(rewards["a"]).tolist() == [False, True]


def test_terms_that_cancel_leave_their_rounding() -> None:
    """The sum of two rewards is no more exact than the larger of them."""
    a = torch.tensor([[1000.1, 1000.1, 1000.1]])
    rewards = {"a": a, "b": -torch.nextafter(a, torch.tensor([[2000.0, 0.0, 2000.0]]))}
    assert (group_advantages(rewards, {"a": 1.0, "b": 1.0}, "reward") == 0).all()


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (
            "sum",
            [
                [-0.492807, -0.433013, -0.895923, 1.821743],
                [-1.136903, -0.783349, 0.952029, 0.968223],
            ],
        ),
    ],
)
def test_golden_values(aggregate: Aggregate, expected: list[list[float]]) -> None:
    rewards = {
        "a": torch.tensor([[0.1, 0.3, 0.2, 0.6], [0.5, 0.5, 0.9, 0.7]]),
        "b": torch.tensor([[1, 0, 0, 1], [2, 2.5, 2, 3.5]]),
    }
    got = group_advantages(rewards, {"a": 1.0, "b": 0.5}, aggregate)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_groups_do_not_touch_and_advantages_sum_to_zero(aggregate: Aggregate) -> None:
    rewards = rewards_of(0)
    weights = dict.fromkeys(rewards, 1.0)
    got = group_advantages(rewards, weights, aggregate)
    assert torch.allclose(got.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-10)
    changed = {k: v.clone() for k, v in rewards.items()}
    changed["a"][1] += torch.arange(6)
    other = group_advantages(changed, weights, aggregate)
    assert torch.equal(got[[0, 2]], other[[0, 2]])
    assert not torch.equal(got[1], other[1])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_order_of_names_changes_no_bit(aggregate: Aggregate) -> None:
    rewards = {k: v.float() for k, v in rewards_of(1, count=4).items()}
    weights = {"a": 0.1, "b": 0.7, "c": 1.3, "d": 0.3}
    results = []
    for names in itertools.permutations(rewards):
        shuffled = {k: rewards[k] for k in names}
        results.append(group_advantages(shuffled, weights, aggregate))
        backward = {k: weights[k] for k in reversed(names)}
        results.append(group_advantages(shuffled, backward, aggregate))
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 1.0, "c": 1.0}])
def test_names_must_match(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="do not match"):
        group_advantages({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}, weights)
