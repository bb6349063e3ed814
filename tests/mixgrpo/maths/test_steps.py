"""One step: golden values, marginals on a Gaussian known in closed form, densities, KL."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.maths.steps import Kernel, gaussian_kl, log_prob, ode_step, predict_x0, sde_step
from tests.mixgrpo import oracle
from tests.mixgrpo.oracle import Transition

KERNELS = get_args(Kernel)

# i, sigma, dt, g, std, cx, cv of flow (eta 0.7), std of dance (eta 0.3); T = 25, shift 3.
GOLDEN = [
    (0, 1.000000, -0.013699, 5.9808, 0.70000, 0.75500, -0.013699, 0.03511),
    (1, 0.986301, -0.014470, 5.9397, 0.71450, 0.74120, -0.018016, 0.03609),
    (2, 0.971831, -0.015309, 4.1116, 0.50873, 0.86685, -0.019060, 0.03712),
    (3, 0.956522, -0.016223, 3.2833, 0.41819, 0.90858, -0.020198, 0.03821),
    (5, 0.923077, -0.018315, 2.4249, 0.32817, 0.94167, -0.022802, 0.04060),
    (11, 0.792453, -0.027747, 1.3678, 0.22784, 0.96725, -0.034545, 0.04997),
    (17, 0.585366, -0.046904, 0.8317, 0.18013, 0.97229, -0.058396, 0.06497),
    (23, 0.206897, -0.095785, 0.3575, 0.11065, 0.97041, -0.119253, 0.09285),
]


def transition(
    kind: Kernel, eta: float, sigma: float, after: float, sigma_max: float = 0.98
) -> Transition:
    """The step is linear in x and v; its coefficients, read off with unit inputs."""

    def step(x: float, v: float) -> Any:
        given = {"eta": eta, "kind": kind, "sigma_max": sigma_max}
        x_, v_ = (torch.full((1, 1), value, dtype=torch.float64) for value in (x, v))
        return sde_step(x_, v_, sigma, after, noise=torch.zeros(1, 1), **given)

    taken = step(1.0, 0.0)
    return Transition(float(taken.mean), float(step(0.0, 1.0).mean), float(taken.std))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"step {row[0]}")
def test_golden_values(row: tuple[float, ...]) -> None:
    i, sigma, dt, g, std, cx, cv, std_dance = row
    grid = [float(s) for s in sigma_schedule(25, 3.0, torch.float64)]
    s, after = grid[int(i)], grid[int(i) + 1]
    assert s == pytest.approx(sigma, abs=5e-7)
    assert after - s == pytest.approx(dt, abs=5e-7)
    flow = transition("flow", 0.7, s, after, grid[1])
    assert flow.std == pytest.approx(std, abs=5e-6)
    assert flow.std / math.sqrt(s - after) == pytest.approx(g, abs=5e-5)
    assert flow.cx == pytest.approx(cx, abs=5e-6)
    assert flow.cv == pytest.approx(cv, abs=5e-7)
    assert transition("dance", 0.3, s, after, grid[1]).std == pytest.approx(std_dance, abs=5e-6)


@given(
    st.sampled_from(KERNELS),
    st.floats(0.05, 1.0),
    st.floats(0.02, 1.0),
    st.floats(0.0, 0.99),
)
def test_coefficients_are_the_formulas(kind: Kernel, eta: float, sigma: float, part: float) -> None:
    after = sigma * part
    got, expected = transition(kind, eta, sigma, after), oracle.sde(kind, eta, sigma, after, 0.98)
    for name in ("cx", "cv", "std"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-12, abs=1e-13)


def test_dance_adds_half_g_squared_times_the_score() -> None:
    # score = -eps_hat / sigma, eps_hat = x + (1 - sigma) v; drift v - (g^2 / 2) score, dt < 0.
    s, after, eta = 0.6, 0.55, 0.3
    got, dt = transition("dance", eta, s, after), after - s
    assert got.cx == pytest.approx(1 + dt * eta**2 / (2 * s))
    assert got.cv == pytest.approx(dt * (1 + eta**2 / 2 * (1 - s) / s))


@given(st.floats(0.01, 1.0), st.floats(0.02, 1.0), st.floats(0.0, 0.99))
def test_cps_preserves_the_coefficients(eta: float, sigma: float, part: float) -> None:
    """Along x0 the coefficient is 1 - sigma', and those of the two noises add to sigma'^2."""
    after = sigma * part
    t = transition("cps", eta, sigma, after)
    # x = (1 - sigma) x0 + sigma eps and v = eps - x0.
    along_x0 = t.cx * (1 - sigma) - t.cv
    along_eps = t.cx * sigma + t.cv
    assert along_x0 == pytest.approx(1 - after, abs=1e-12)
    assert along_eps**2 + t.std**2 == pytest.approx(after**2, abs=1e-12)
    assert t.std == pytest.approx(after * math.sin(eta * math.pi / 2), abs=1e-12)


def test_cps_at_sigma_zero_returns_x0() -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    step = sde_step(x, v, 0.1, 0.0, eta=0.8, kind="cps", sigma_max=0.98, noise=torch.randn(2, 3, 4))
    assert torch.allclose(step.sample, x - 0.1 * v, atol=1e-15)
    assert float(step.std) == 0


# ---- Marginals on x0 ~ N(mu, spread^2), where the velocity E[eps - x0 | x] is linear in x.

MU = 0.7


def marginal(sigma: float, spread: float) -> tuple[float, float]:
    """Mean and variance of x_sigma = (1 - sigma) x0 + sigma eps."""
    return (1 - sigma) * MU, (1 - sigma) ** 2 * spread**2 + sigma**2


def velocity(sigma: float, spread: float) -> tuple[float, float]:
    """v = slope x + offset, the exact conditional expectation."""
    mean, variance = marginal(sigma, spread)
    slope = (sigma - (1 - sigma) * spread**2) / variance
    return slope, -MU - slope * mean


Coefficients = Callable[[float, float], Transition]


def propagate(coefficients: Coefficients, grid: list[float], spread: float) -> tuple[float, float]:
    """Mean and variance at the grid's end, carried exactly through the linear steps."""
    mean, variance = marginal(grid[0], spread)
    for s, after in pairwise(grid):
        slope, offset = velocity(s, spread)
        t = coefficients(s, after)
        mean = (t.cx + t.cv * slope) * mean + t.cv * offset
        variance = (t.cx + t.cv * slope) ** 2 * variance + t.std**2
    return mean, variance


def marginal_error(coefficients: Coefficients, steps: int, spread: float, end: float) -> float:
    grid = [float(s) for s in np.linspace(0.9, end, steps + 1)]
    mean, variance = propagate(coefficients, grid, spread)
    true_mean, true_variance = marginal(end, spread)
    return abs(mean - true_mean) + abs(variance - true_variance)


def keeps_the_marginals(coefficients: Coefficients, spread: float, end: float) -> bool:
    """The error falls in proportion to the step, and is that small: discretisation, no more."""
    coarse, fine, finest = (marginal_error(coefficients, n, spread, end) for n in (200, 400, 800))
    return finest < 4e-3 and 1.8 < coarse / fine < 2.2 and 1.8 < fine / finest < 2.2


def kernel(kind: Kernel) -> Coefficients:
    if kind != "cps":
        eta = 0.7 if kind == "flow" else 0.3
        return lambda s, after: transition(kind, eta, s, after)
    # CPS's noise does not shrink with the step at a constant eta: it preserves coefficients, and
    # marginals only in the limit of small steps with std^2 = g^2 (-dt), here with g = 0.3.
    return lambda s, after: transition(
        "cps", 2 / math.pi * math.asin(0.3 * math.sqrt(s - after) / after), s, after
    )


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("spread", [0.4, 1.3])
def test_sde_keeps_the_odes_marginals(kind: Kernel, spread: float) -> None:
    end = 0.1
    assert keeps_the_marginals(kernel(kind), spread, end)
    assert keeps_the_marginals(lambda s, after: Transition(1.0, after - s, 0.0), spread, end)


MUTATIONS: dict[str, Callable[[Transition, float, float], Transition]] = {
    "no g^2 term on x": lambda t, s, after: Transition(1.0, t.cv, t.std),
    "no g^2 term on v": lambda t, s, after: Transition(t.cx, after - s, t.std),
    "no g^2 term at all": lambda t, s, after: Transition(1.0, after - s, t.std),
    "other sign of g^2 on x": lambda t, s, after: Transition(2 - t.cx, t.cv, t.std),
    "other sign of g^2 on v": lambda t, s, after: Transition(t.cx, 2 * (after - s) - t.cv, t.std),
    "no noise": lambda t, s, after: Transition(t.cx, t.cv, 0.0),
    "g^2 without the half": lambda t, s, after: Transition(
        2 * t.cx - 1, 2 * t.cv - (after - s), t.std
    ),
    "5 % too much noise": lambda t, s, after: Transition(t.cx, t.cv, 1.05 * t.std),
}


@pytest.mark.parametrize("kind", ["flow", "dance"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_that_check_sees_a_wrong_coefficient(kind: Kernel, name: str) -> None:
    right, wrong = kernel(kind), MUTATIONS[name]
    assert not keeps_the_marginals(lambda s, a: wrong(right(s, a), s, a), 0.4, 0.1)


@pytest.mark.parametrize(("kind", "eta"), [("flow", 0.7), ("dance", 0.3)])
def test_a_whole_trajectory_from_pure_noise_ends_near_the_data(kind: Kernel, eta: float) -> None:
    # The grid is coarse and its first step special; the tolerance is the discretisation's.
    grid = [float(s) for s in sigma_schedule(200, 3.0, torch.float64)]
    mean, variance = propagate(lambda s, a: transition(kind, eta, s, a, grid[1]), grid, 0.4)
    assert mean == pytest.approx(MU, abs=0.01)
    assert variance == pytest.approx(0.16, abs=0.01)


@pytest.mark.parametrize("eta", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("steps", [3, 25])
def test_cps_is_exact_where_x0_is_known(eta: float, steps: int) -> None:
    """For one image (spread 0) the prediction of x0 is exact, and so is every marginal."""
    grid = [float(s) for s in sigma_schedule(steps, 3.0, torch.float64)]
    for i in range(1, steps + 1):
        mean, variance = propagate(lambda s, a: transition("cps", eta, s, a), grid[: i + 1], 0.0)
        assert (mean, variance) == pytest.approx(marginal(grid[i], 0.0), abs=1e-12)

    def mutated(s: float, after: float) -> Transition:
        # sigma' instead of sqrt(sigma'^2 - std^2) before eps_hat.
        std = after * math.sin(eta * math.pi / 2)
        return Transition(1.0, (1 - after) * -s + after * (1 - s), std)

    _, variance = propagate(mutated, grid[:3], 0.0)
    assert abs(variance - marginal(grid[2], 0.0)[1]) > 0.01


@pytest.mark.parametrize("kind", KERNELS)
def test_samples_have_the_mean_and_std_that_the_step_says(kind: Kernel) -> None:
    x = torch.full((1, 200_000), 0.3, dtype=torch.float64)
    step = sde_step(
        x, -x, 0.6, 0.5, eta=0.6, kind=kind, sigma_max=0.9, generator=torch.manual_seed(1)
    )
    assert float(step.sample.mean()) == pytest.approx(float(step.mean[0, 0]), abs=3e-3)
    assert float(step.sample.std()) == pytest.approx(float(step.std), rel=1e-2)


@pytest.mark.parametrize("kind", KERNELS)
def test_noise_is_given_or_drawn_from_the_generator_alone(kind: Kernel) -> None:
    x, v, noise = (torch.randn(2, 3, generator=torch.manual_seed(s)) for s in range(3))
    given: dict[str, Any] = {"eta": 0.5, "kind": kind, "sigma_max": 0.9}
    step = sde_step(x, v, 0.6, 0.5, noise=noise, **given)
    assert torch.allclose(step.sample, step.mean + step.std * noise)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(99)
        generator = torch.Generator().manual_seed(seed)
        return sde_step(x, v, 0.6, 0.5, generator=generator, **given).sample

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# ---- ODE


def test_ode_step_is_euler_and_predicts_x0() -> None:
    x, v = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.allclose(ode_step(x, v, 0.7, 0.4), x - 0.3 * v, atol=1e-15)
    assert torch.allclose(predict_x0(x, v, 0.7), x - 0.7 * v, atol=1e-15)
    # From any sigma straight to 0, Euler is the prediction of x0.
    assert torch.allclose(ode_step(x, v, 0.7, 0.0), predict_x0(x, v, 0.7), atol=1e-15)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 25])
def test_euler_trajectory_of_diffusers(steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Unshifted times: the scheduler shifts what it is given.
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    sigmas = sigma_schedule(steps, shift)
    assert torch.allclose(scheduler.sigmas, sigmas, atol=2e-7)
    matrix = torch.randn(6, 6, generator=torch.manual_seed(0))
    x = theirs = torch.randn(3, 6, generator=torch.manual_seed(1))
    for i, t in enumerate(scheduler.timesteps):
        x = ode_step(x, torch.tanh(x @ matrix) * (1 + sigmas[i]), sigmas[i], sigmas[i + 1])
        v = torch.tanh(theirs @ matrix) * (1 + t / 1000)
        theirs = scheduler.step(v, t, theirs).prev_sample
        assert torch.allclose(x, theirs, atol=2e-5)
    assert i == steps - 1


# ---- Densities


@given(st.floats(0.01, 3.0), st.integers(1, 4), st.integers(0, 2**16))
def test_log_prob_is_the_mean_over_elements_of_the_normal_density(
    std: float, batch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sample, mean = rng.normal(size=(2, batch, 3, 2, 5))
    got = log_prob(
        torch.from_numpy(sample), torch.from_numpy(mean), torch.tensor(std, dtype=torch.float64)
    )
    expected = norm.logpdf(sample, mean, std).reshape(batch, -1).mean(1)
    assert got.shape == (batch,)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


def test_log_prob_does_not_grow_with_the_number_of_elements() -> None:
    std = torch.tensor(0.5)
    small = log_prob(torch.ones(1, 4), torch.zeros(1, 4), std)
    assert torch.allclose(small, log_prob(torch.ones(1, 4000), torch.zeros(1, 4000), std))


@given(st.floats(0.05, 3.0), st.integers(0, 2**16))
def test_kl_is_that_of_the_normal_distribution(std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 2, 5, generator=generator, dtype=torch.float64)
    expected = kl_divergence(Normal(a, std), Normal(b, std)).flatten(1).mean(1)
    got = gaussian_kl(a, b, torch.tensor(std, dtype=torch.float64))
    assert torch.allclose(got, expected, rtol=1e-10)
    assert (gaussian_kl(a, a, torch.tensor(std)) == 0).all()


def test_a_step_without_noise_has_log_prob_zero_and_gradient_zero() -> None:
    mean = torch.randn(3, 4, requires_grad=True)
    zero = torch.tensor(0.0)
    for value in (log_prob(torch.randn(3, 4), mean, zero), gaussian_kl(mean, mean + 1, zero)):
        assert value.shape == (3,)
        assert (value == 0).all()
        # The last step of a CPS window is one; an update over it must still run backward.
        (gradient,) = torch.autograd.grad(value.sum(), mean)
        assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KERNELS)
def test_half_precision_comes_back_as_it_went_in_and_is_computed_wide(kind: Kernel) -> None:
    x, v = torch.randn(2, 8).bfloat16(), torch.randn(2, 8).bfloat16()
    noise = torch.randn(2, 8)
    given: dict[str, Any] = {"eta": 0.5, "kind": kind, "sigma_max": 0.9, "noise": noise}
    step = sde_step(x, v, 0.6, 0.5, **given)
    assert (step.sample.dtype, step.mean.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(step.mean, sde_step(x.float(), v.float(), 0.6, 0.5, **given).mean)
    assert log_prob(step.sample, step.mean, step.std).dtype == torch.float32
    assert ode_step(x, v, 0.6, 0.5).dtype == torch.bfloat16
    assert step.std.shape == ()


@pytest.mark.parametrize(("sigma", "after"), [(0.5, 0.5), (0.5, 0.6), (1.1, 0.5), (0.5, -0.1)])
def test_a_step_that_does_not_go_down_is_refused(sigma: float, after: float) -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="goes from sigma"):
        sde_step(x, x, sigma, after, eta=0.5, kind="flow", sigma_max=0.9)


@pytest.mark.parametrize("shift", [0.2, 0.3, 0.7, 1.0, 1.1, 3.0, 5.0, 7.3])
def test_the_first_step_of_every_schedule_is_taken(shift: float) -> None:
    # Rounding must not lift sigma_0 above 1, nor hide that it is 1 from the flow kernel.
    sigmas = sigma_schedule(25, shift, torch.float64)
    t = transition("flow", 0.7, float(sigmas[0]), float(sigmas[1]), float(sigmas[1]))
    dt = float(sigmas[1]) - 1
    assert t.std == pytest.approx(0.7 * math.sqrt(1 / (1 - float(sigmas[1])) * -dt), rel=1e-6)
