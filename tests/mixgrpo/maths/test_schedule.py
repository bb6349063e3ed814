"""Sigma grids: the golden table, their shape, the tail after the window."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.maths.schedule import shift_times, sigma_schedule, tail_schedule
from tests.mixgrpo import oracle

GOLDEN_SIGMA = {
    0: 1.000000,
    1: 0.986301,
    2: 0.971831,
    3: 0.956522,
    5: 0.923077,
    11: 0.792453,
    17: 0.585366,
    23: 0.206897,
}
GOLDEN_DT = {
    0: -0.013699,
    1: -0.014470,
    2: -0.015309,
    3: -0.016223,
    5: -0.018315,
    11: -0.027747,
    17: -0.046904,
    23: -0.095785,
}


def test_golden_sigmas() -> None:
    sigmas = sigma_schedule(25, 3.0, torch.float64)
    for i, sigma in GOLDEN_SIGMA.items():
        assert float(sigmas[i]) == pytest.approx(sigma, abs=5e-7)
        assert float(sigmas[i + 1] - sigmas[i]) == pytest.approx(GOLDEN_DT[i], abs=5e-7)


def test_shift_is_the_one_of_the_literature_not_of_the_papers_print() -> None:
    # s t / (1 + (s - 1) t) at t = 1/2, s = 3 is 3/4; with the printed sign it would be 1.5 / 0.
    assert float(shift_times(torch.tensor(0.5), 3.0)) == 0.75
    assert torch.equal(shift_times(torch.tensor([0.3]), 1.0), torch.tensor([0.3]))


@given(st.integers(1, 60), st.floats(0.2, 8))
def test_grid_is_the_formula_and_falls_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = sigma_schedule(steps, shift, torch.float64).numpy()
    np.testing.assert_allclose(sigmas, oracle.schedule(steps, shift), atol=1e-14)
    assert sigmas.shape == (steps + 1,)
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert (np.diff(sigmas) < 0).all()


def test_dtype_rounds_last() -> None:
    assert sigma_schedule(25).dtype == torch.float32
    assert torch.equal(sigma_schedule(25), sigma_schedule(25, dtype=torch.float64).float())


@given(st.data(), st.integers(2, 40), st.floats(0.2, 8))
def test_tail_runs_from_its_step_to_zero(data: st.DataObject, steps: int, shift: float) -> None:
    begin = data.draw(st.integers(0, steps - 1))
    count = data.draw(st.integers(1, steps - begin))
    tail = tail_schedule(steps, begin, count, shift, torch.float64).numpy()
    np.testing.assert_allclose(tail, oracle.grid(steps, shift, begin, count)[begin:], atol=1e-14)
    assert len(tail) == count + 1
    assert tail[0] == pytest.approx(float(sigma_schedule(steps, shift, torch.float64)[begin]))
    assert tail[-1] == 0.0
    assert (np.diff(tail) < 0).all()


def test_a_tail_of_all_its_steps_is_the_schedule_itself() -> None:
    whole = sigma_schedule(25, 3.0, torch.float64)
    assert torch.allclose(tail_schedule(25, 10, 15, 3.0, torch.float64), whole[10:], atol=1e-15)


def test_tail_is_uniform_before_the_shift_not_after_it() -> None:
    tail = tail_schedule(10, 5, 2, 3.0, torch.float64)
    # t = 0.5, 0.25, 0 -> 0.75, 0.5, 0.
    assert tail.tolist() == pytest.approx([0.75, 0.5, 0.0])


@pytest.mark.parametrize("steps", [0, -1])
def test_no_schedule_without_steps(steps: int) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        sigma_schedule(steps)


@pytest.mark.parametrize(("begin", "count"), [(-1, 2), (10, 1), (3, 0)])
def test_no_tail_outside_the_trajectory(begin: int, count: int) -> None:
    with pytest.raises(ValueError, match="no tail"):
        tail_schedule(10, begin, count)
