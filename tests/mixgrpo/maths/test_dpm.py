"""DPM-Solver++: the formulas, diffusers' solver on the same grid, and measured orders."""

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.maths.dpm import DPMSolver
from mixgrpo.maths.schedule import sigma_schedule, tail_schedule
from mixgrpo.maths.steps import ode_step, predict_x0
from tests.mixgrpo import oracle

Order = Literal[1, 2, 3]
Variant = Literal["midpoint", "heun"]
SOLVERS: list[tuple[Order, Variant]] = [
    (1, "midpoint"),
    (2, "midpoint"),
    (2, "heun"),
    (3, "midpoint"),
]


def velocity(x: Tensor, sigma: float) -> Tensor:
    """Something smooth and nonlinear of sigma and x."""
    return torch.tanh(x.roll(1, -1) * (1 + sigma)) - 0.4 * x


def run(solver: DPMSolver, x: Tensor, sigmas: Tensor) -> list[Tensor]:
    path = [x]
    for i in range(len(sigmas) - 1):
        sigma = float(sigmas[i])
        x = solver.step(x, predict_x0(x, velocity(x, sigma), sigma), sigmas, i)
        path.append(x)
    return path


@pytest.mark.parametrize(("order", "variant"), SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 14, 15, 20])
def test_steps_are_the_formulas(order: Order, variant: Variant, steps: int) -> None:
    sigmas = sigma_schedule(steps, 3.0, torch.float64)
    x = torch.randn(2, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    path = run(DPMSolver(order, variant), x, sigmas)
    y = x.numpy()
    seen: list[oracle.Array] = []
    for i in range(steps):
        sigma = float(sigmas[i])
        seen.insert(0, y - sigma * velocity(torch.from_numpy(y), sigma).numpy())
        used = min(order, i + 1)
        if i == steps - 1:
            used = 1
        elif i == steps - 2 and steps < 15:
            used = min(used, 2)
        newest = [float(sigmas[i - k]) for k in range(used)]
        y = oracle.dpm(used, variant, y, seen, newest, float(sigmas[i + 1]))
        np.testing.assert_allclose(path[i + 1].numpy(), y, atol=1e-12)


def test_first_order_is_euler() -> None:
    sigmas = sigma_schedule(25, 3.0, torch.float64)
    x = y = torch.randn(2, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    solver = DPMSolver(1)
    for i in range(25):
        v = velocity(y, float(sigmas[i]))
        x = solver.step(x, predict_x0(x, v, sigmas[i]), sigmas, i)
        y = ode_step(y, v, sigmas[i], sigmas[i + 1])
        assert torch.allclose(x, y, atol=1e-13)


def test_first_order_on_the_tail_is_diffusers_euler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = tail_schedule(25, 10, 6, 3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    assert torch.allclose(scheduler.sigmas, sigmas, atol=1e-7)
    x = theirs = torch.randn(2, 5, generator=torch.manual_seed(0))
    solver = DPMSolver(1)
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(sigmas[i])
        x = solver.step(x, predict_x0(x, velocity(x, sigma), sigma), sigmas, i)
        theirs = scheduler.step(velocity(theirs, sigma), t, theirs).prev_sample
        assert torch.allclose(x, theirs, atol=2e-6)


@pytest.mark.parametrize(("order", "variant"), SOLVERS)
@pytest.mark.parametrize("steps", [5, 10, 14, 15, 25])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_multistep_solver_of_diffusers(
    order: Order, variant: Variant, steps: int, shift: float
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type=variant,
        flow_shift=shift,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    # Its grid: uniform in unshifted t from 0.999. Ours starts at 1, so it is taken from there.
    times = (1 - 1 / 1000) * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)
    assert torch.allclose(sigmas, shift * times / (1 + (shift - 1) * times), atol=1e-6)
    x = theirs = torch.randn(2, 5, generator=torch.manual_seed(0))
    solver = DPMSolver(order, variant)
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(sigmas[i])
        x = solver.step(x, predict_x0(x, velocity(x, sigma), sigma), sigmas, i)
        theirs = scheduler.step(velocity(theirs, sigma), t, theirs).prev_sample
        assert torch.allclose(x, theirs, atol=3e-5, rtol=3e-5), i


# ---- Orders, on a Gaussian whose flow is known: x(sigma) = m + sqrt(q) z.


def exact(sigma: float) -> float:
    return (1 - sigma) * 0.7 + math.sqrt((1 - sigma) ** 2 * 0.16 + sigma**2) * 1.3


def exact_x0(x: float, sigma: float) -> float:
    """E[x0 | x] for x0 ~ N(0.7, 0.16)."""
    variance = (1 - sigma) ** 2 * 0.16 + sigma**2
    return 0.7 + (1 - sigma) * 0.16 / variance * (x - (1 - sigma) * 0.7)


def error(order: Order, variant: Variant, steps: int, solver_type: Any = DPMSolver) -> float:
    """Largest on the way from sigma = 0.9 to 0.1, after two exact predictions were observed."""
    h = 0.8 / steps
    grid = [0.9 + 2 * h, 0.9 + h, *(0.9 - i * h for i in range(steps + 1)), 0.05, 0.0]
    sigmas = torch.tensor(grid, dtype=torch.float64)
    solver = solver_type(order, variant)
    for sigma in grid[:2]:
        solver.observe(torch.tensor([[exact_x0(exact(sigma), sigma)]], dtype=torch.float64))
    x = torch.tensor([[exact(grid[2])]], dtype=torch.float64)
    largest = 0.0
    for i in range(2, steps + 2):
        x0 = torch.tensor([[exact_x0(float(x), grid[i])]], dtype=torch.float64)
        x = solver.step(x, x0, sigmas, i)
        largest = max(largest, abs(float(x) - exact(grid[i + 1])))
    return largest


def orders(order: Order, variant: Variant, solver_type: Any = DPMSolver) -> list[float]:
    errors = [error(order, variant, n, solver_type) for n in (160, 320, 640)]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize(("order", "variant"), SOLVERS[:3])
def test_error_falls_with_the_order(order: Order, variant: Variant) -> None:
    assert orders(order, variant) == pytest.approx([order] * 2, abs=0.15)


class _ThirdOrder(DPMSolver):
    """The third-order update with D2 = h^2 m'', twice the published one."""

    def step(self, x: Tensor, x0: Tensor, sigmas: Tensor, index: int) -> Tensor:
        m = [x0, *self._history]
        lam = [math.log(1 - float(s)) - math.log(float(s)) for s in sigmas[index - 2 : index + 2]]
        h, h0, h1 = lam[3] - lam[2], lam[2] - lam[1], lam[1] - lam[0]
        d2 = ((m[0] - m[1]) * h / h0 - (m[1] - m[2]) * h / h1) / ((h0 + h1) / h)
        missing = -(1 - float(sigmas[index + 1])) * ((math.expm1(-h) + h) / h**2 - 0.5) * d2
        return super().step(x, x0, sigmas, index) + missing


def test_the_published_third_order_update_converges_with_order_two() -> None:
    """As published, and in diffusers, D2 is half of h^2 m''; doubled, the order is three."""
    assert orders(3, "midpoint") == pytest.approx([2, 2], abs=0.2)
    assert orders(3, "midpoint", _ThirdOrder) == pytest.approx([3, 3], abs=0.2)
    assert error(3, "midpoint", 160) < error(2, "heun", 160)


def test_observed_history_makes_the_first_step_second_order() -> None:
    sigmas = tail_schedule(25, 10, 6, 3.0, torch.float64)
    grid = torch.cat([sigma_schedule(25, 3.0, torch.float64)[:10], sigmas])
    x, m0, m1 = torch.randn(3, 1, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    kept, restarted = DPMSolver(2), DPMSolver(2)
    kept.observe(m1)
    restarted.observe(m1)
    restarted.reset()
    s = [float(v) for v in grid]
    for solver, order in ((kept, 2), (restarted, 1)):
        got = solver.step(x, m0, grid, 10)
        expected = oracle.dpm(
            order, "midpoint", x.numpy(), [m0.numpy(), m1.numpy()], [s[10], s[9]], s[11]
        )
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-13)


@pytest.mark.parametrize(("order", "variant"), SOLVERS)
def test_the_last_step_returns_x0(order: Order, variant: Variant) -> None:
    sigmas = sigma_schedule(20, 3.0, torch.float64)
    solver = DPMSolver(order, variant)
    for _ in range(3):
        solver.observe(torch.randn(1, 4, dtype=torch.float64))
    x0 = torch.randn(1, 4, dtype=torch.float64)
    assert torch.equal(solver.step(torch.randn(1, 4).double(), x0, sigmas, 19), x0)


def test_half_precision_comes_back_as_it_went_in() -> None:
    sigmas = sigma_schedule(5)
    x = torch.randn(1, 4).bfloat16()
    assert DPMSolver(2).step(x, torch.randn(1, 4), sigmas, 0).dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", [{"order": 0}, {"order": 4}, {"order": 2, "variant": "ralston"}])
def test_an_unknown_solver_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no DPM-Solver\+\+"):
        DPMSolver(**wrong)
