"""The clipped objective: values by hand, where the gradient vanishes, what no number can hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixgrpo.maths.objective import clipped_terms, kl_step_weights
from tests.mixgrpo import oracle

CLIP = 0.2


def loss_of(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss of one entry and its derivative by the log-ratio."""
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms = clipped_terms(log_ratio, torch.tensor([advantage], dtype=torch.float64), CLIP)
    (gradient,) = torch.autograd.grad(terms, log_ratio)
    return float(terms.detach()), float(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # too far in the good direction: nothing more to earn
        (0.5, 2.0, -1.0, -1.0),  # too far in the bad direction: still pulled back
        (0.9, -2.0, 1.8, 1.8),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert loss_of(ratio, advantage) == (pytest.approx(loss), pytest.approx(gradient))


def some(seed: int, size: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_ratio, a = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return 0.3 * log_ratio, a


@given(st.integers(0, 1000), st.floats(1e-4, 0.9))
def test_agrees_with_the_oracle(seed: int, clip: float) -> None:
    log_ratio, a = some(seed)
    expected = oracle.objective(np.exp(log_ratio.numpy()), a.numpy(), clip)
    np.testing.assert_allclose(clipped_terms(log_ratio, a, clip).numpy(), expected, rtol=1e-12)


def test_before_the_first_update_the_gradient_is_that_of_the_policy_gradient() -> None:
    log_ratio, a = some(3)
    log_ratio = torch.zeros_like(log_ratio).requires_grad_()
    (gradient,) = torch.autograd.grad(clipped_terms(log_ratio, a, 1e-4).mean(), log_ratio)
    assert torch.allclose(gradient, -a / len(a))


def test_an_unbounded_ratio_is_clipped_away_or_seen() -> None:
    """The clip is a bound in the good direction only."""
    log_ratio = torch.tensor([5.0])
    for clip in (1e-4, 0.2):
        good, bad = (float(clipped_terms(log_ratio, torch.tensor([a]), clip)) for a in (1.0, -1.0))
        assert good == pytest.approx(-1 - clip)
        assert bad == pytest.approx(math.exp(5), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "gradient"),
    [
        (1e4, 0.0, 0.0, 0.0),  # infinity times 0
        (math.inf, 0.0, 0.0, 0.0),
        (-1e4, 0.0, 0.0, 0.0),
        (-math.inf, 0.0, 0.0, 0.0),
        (1e4, -0.0, 0.0, 0.0),
        (1e4, 2.0, -2 * (1 + CLIP), 0.0),  # clipped: its gradient is not 0 times infinity either
        (-1e4, 2.0, 0.0, 0.0),
        (-math.inf, 2.0, 0.0, 0.0),
        (-1e4, -2.0, 2 * (1 - CLIP), 0.0),
        (-math.inf, -2.0, 2 * (1 - CLIP), 0.0),
        (1e4, -2.0, math.inf, math.inf),  # nothing bounds it: seen, and no update made of it
    ],
)
def test_a_ratio_beyond_all_numbers(
    log_ratio: float, advantage: float, value: float, gradient: float, dtype: torch.dtype
) -> None:
    """Beside an ordinary entry, which it must not spoil."""
    given_ = torch.tensor([log_ratio, 0.0], dtype=dtype, requires_grad=True)
    terms = clipped_terms(given_, torch.tensor([advantage, 1.0], dtype=dtype), CLIP)
    (slope,) = torch.autograd.grad(terms.sum(), given_)
    assert terms.tolist() == pytest.approx([value, -1.0], rel=1e-6)
    assert slope.tolist() == pytest.approx([gradient, -1.0], rel=1e-6)


def test_a_ratio_that_is_no_number_is_not_hidden() -> None:
    for advantage in (1.0, -1.0, 0.0):
        terms = clipped_terms(torch.tensor([math.nan]), torch.tensor([advantage]), CLIP)
        assert terms.isnan().all()


def test_flow_grpos_kl_leaves_dt_out() -> None:
    """Golden values: T = 25, shift 3; its std is g sqrt(-dt) but for cps, which has no dt."""
    dts = [-0.013699, -0.014470, -0.015309, -0.016223, -0.027747, -0.095785]
    for kernel in ("flow", "dance"):
        assert kl_step_weights("flow-grpo", kernel, dts) == [-dt for dt in dts]  # type: ignore[arg-type]
        assert kl_step_weights("exact", kernel, dts) == [1.0] * 6  # type: ignore[arg-type]
    assert kl_step_weights("flow-grpo", "cps", dts) == [1.0] * 6
