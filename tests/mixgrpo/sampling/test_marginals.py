"""SDE kernels keep the marginals: whole trajectories of samples of a Gaussian mixture.

The velocity of a mixture is known in closed form, and it is truly nonlinear in x. A check compares
moments and component weights of the samples at the end with the exact ones. How sharp it is shows
by mutation: with a wrong coefficient it must fail.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.maths.steps import Kernel, ode_step, sde_step


@dataclass(frozen=True)
class Mixture:
    """Gaussians in the plane: weights [K], means [K, 2], covariances [K, 2, 2]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def sides(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Posterior of the components [K, B] and S_k^-1 (x - m_k) [K, 2, B] at x [B, 2].

        x_sigma of component k is N(m_k, S_k), m_k = (1 - sigma) mu_k and
        S_k = (1 - sigma)^2 C_k + sigma^2.
        """
        covariance = (1 - sigma) ** 2 * self.covariances + sigma**2 * torch.eye(2).double()
        offset = x.T - (1 - sigma) * self.means[:, :, None]
        solved = torch.linalg.inv(covariance) @ offset
        logits = -0.5 * (offset * solved).sum(1)
        logits += (self.weights.log() - 0.5 * torch.logdet(covariance))[:, None]
        return logits.softmax(0), solved

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """E[eps - x0 | x_sigma = x] = (x - E[x0 | x]) / sigma, [B, 2]."""
        posterior, solved = self.sides(x, sigma)
        x0 = self.means[:, :, None] + (1 - sigma) * (self.covariances @ solved)
        return (x - (posterior[:, None] * x0).sum(0).T) / sigma

    def features(self, x: Tensor) -> Tensor:
        """What is averaged over samples at sigma = 0: powers and component weights, [B, 9]."""
        a, b = x.T
        posterior, _ = self.sides(x, 0.0)
        return torch.stack([a, b, a * a, a * b, b * b, a**3, b**3, *posterior[:2]], 1)

    def expected(self) -> Tensor:
        """The expectations of `features`, [9]."""
        w, mu, c = self.weights, self.means, self.covariances
        mean = w @ mu
        second = (w[:, None, None] * (c + mu[:, :, None] * mu[:, None])).sum(0)
        third = w @ (mu**3 + 3 * mu * c.diagonal(dim1=1, dim2=2))
        return torch.cat([mean, second[0], second[1, 1:], third, w[:2]])


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = Mixture(
    tensor([0.5, 0.3, 0.2]),
    tensor([[1.0, 0.3], [-0.8, 0.9], [-0.2, -1.2]]),
    tensor([[[0.10, 0.04], [0.04, 0.06]], [[0.05, -0.02], [-0.02, 0.12]], [[0.08, 0], [0, 0.04]]]),
)


def test_the_velocity_is_the_conditional_expectation() -> None:
    """By its definition: v minimises E |eps - x0 - v(x)|^2, so its residual is orthogonal to x."""
    generator = torch.Generator().manual_seed(0)
    n, sigma = 200_000, 0.4
    which = torch.multinomial(MIXTURE.weights, n, True, generator=generator)
    eps, z = torch.randn(2, n, 2, 1, generator=generator, dtype=torch.float64)
    roots = torch.linalg.cholesky(MIXTURE.covariances)
    x0, eps = MIXTURE.means[which] + (roots[which] @ z)[..., 0], eps[..., 0]
    x = (1 - sigma) * x0 + sigma * eps
    residual = eps - x0 - MIXTURE.velocity(x, sigma)
    for test in (torch.ones_like(x), x, x.flip(1), x**2, torch.sin(3 * x)):
        products = residual * test
        assert (products.mean(0).abs() < 4.5 * products.std(0) / math.sqrt(n)).all()
    found = MIXTURE.features(x0)
    error = (found.mean(0) - MIXTURE.expected()).abs()
    assert (error < 4.5 * found.std(0) / math.sqrt(n)).all()


# ---- Trajectories


@dataclass
class Taken:
    """One step as the package took it, and all that a mutation of it can need."""

    kind: Kernel
    x: Tensor
    v: Tensor
    sigma: float
    after: float
    mean: Tensor
    std: float

    @property
    def dt(self) -> float:
        return self.after - self.sigma

    @property
    def euler(self) -> Tensor:
        return self.x + self.dt * self.v

    @property
    def drift(self) -> Tensor:
        """What the mean has beyond the ODE: -g^2/2 times the score, times dt."""
        return self.mean - self.euler

    @property
    def eps_hat(self) -> Tensor:
        return self.x + (1 - self.sigma) * self.v

    @property
    def by_eps_hat(self) -> float:
        """The factor of eps_hat: in the drift -std^2 / (2 sigma), in CPS's mean its root."""
        if self.kind == "cps":
            return math.sqrt(self.after**2 - self.std**2)
        return -(self.std**2) / (2 * self.sigma)


Mutation = Callable[[Taken], tuple[Tensor, float]]
"""The mean and std of a step that is wrong."""


def right(t: Taken) -> tuple[Tensor, float]:
    return t.mean, t.std


@dataclass(frozen=True)
class Process:
    """A kernel with its noise; `eta` of a step from (sigma, sigma')."""

    kind: Kernel
    eta: Callable[[float, float], float]
    mutation: Mutation = right

    def walk(
        self, mixture: Mixture, x: Tensor, grid: list[float], generator: torch.Generator
    ) -> Tensor:
        """All steps of `grid` are SDE steps. x: [B, 2], the samples at grid[0]."""
        for sigma, after in pairwise(grid):
            v = mixture.velocity(x, sigma)
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            step = sde_step(
                x,
                v,
                sigma,
                after,
                eta=self.eta(sigma, after),
                kind=self.kind,
                sigma_max=grid[1],
                noise=noise,
            )
            if self.mutation is right:
                x = step.sample
            else:
                mean, std = self.mutation(
                    Taken(self.kind, x, v, sigma, after, step.mean, float(step.std))
                )
                x = mean + std * noise
        return x


def constant(eta: float) -> Callable[[float, float], float]:
    return lambda sigma, after: eta


def shrinking(c: float) -> Callable[[float, float], float]:
    """CPS with std = c sigma' sqrt(-dt), the noise of an SDE with g = c sigma.

    At a constant eta the noise of a step does not shrink with the step, and CPS has no SDE as its
    limit.
    """
    return lambda sigma, after: 2 / math.pi * math.asin(c * math.sqrt(sigma - after))


SAMPLES, STEPS = 16_000, 90


def estimate(process: Process | None, steps: int) -> tuple[Tensor, Tensor]:
    """Means of the mixture's features at sigma = 0 and their standard errors; none: the ODE."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    grid = [float(s) for s in sigma_schedule(steps, 3.0, torch.float64)]
    if process is None:
        for sigma, after in pairwise(grid):
            x = ode_step(x, MIXTURE.velocity(x, sigma), sigma, after)
    else:
        x = process.walk(MIXTURE, x, grid, generator)
    found = MIXTURE.features(x)
    return found.mean(0), found.std(0) / math.sqrt(SAMPLES)


def keeps_the_marginals(process: Process | None) -> bool:
    """From pure noise, the end is the mixture, up to 4.5 standard errors and the discretisation.

    The latter is what halving the step changes: of a method of first order, as large as what is
    left.
    """
    fine, error = estimate(process, STEPS)
    coarse, _ = estimate(process, STEPS // 2)
    wrong = (fine - MIXTURE.expected()).abs()
    return bool((wrong <= 4.5 * error + (fine - coarse).abs()).all())


def test_the_ode_ends_in_the_mixture() -> None:
    assert keeps_the_marginals(None)


PROCESSES = {
    "flow": Process("flow", constant(0.7)),
    "dance": Process("dance", constant(0.7)),
    "cps": Process("cps", shrinking(1.5)),
}


@pytest.mark.parametrize(
    "process",
    [*PROCESSES.values(), Process("dance", constant(0.3)), Process("flow", constant(1.0))],
    ids=lambda p: f"{p.kind} {p.eta(1.0, 0.99):.2f}",
)
def test_sde_ends_in_the_mixture(process: Process) -> None:
    assert keeps_the_marginals(process)


MUTATIONS: dict[str, Mutation] = {
    "no score": lambda t: (t.euler, t.std),
    "twice the score": lambda t: (t.euler + 2 * t.drift, t.std),
    "other sign of the score": lambda t: (t.euler - t.drift, t.std),
    "g for g^2": lambda t: (t.euler + t.drift * math.sqrt(-t.dt) / max(t.std, 1e-9), t.std),
    "std without the root of dt": lambda t: (t.mean, t.std * math.sqrt(-t.dt)),
    "no noise": lambda t: (t.mean, 0.0),
    "a fifth too much noise": lambda t: (t.mean, 1.2 * t.std),
    "eps_hat = x + v": lambda t: (t.mean + t.by_eps_hat * t.sigma * t.v, t.std),
    "eps_hat = x": lambda t: (t.mean - t.by_eps_hat * (1 - t.sigma) * t.v, t.std),
    "sign of dt": lambda t: (t.mean - 2 * t.dt * t.v, t.std),
}

CPS_MUTATIONS: dict[str, Mutation] = {
    "sigma' before eps_hat": lambda t: (t.mean + (t.after - t.by_eps_hat) * t.eps_hat, t.std),
    "sigma' - std before eps_hat": lambda t: (
        t.mean + (t.after - t.std - t.by_eps_hat) * t.eps_hat,
        t.std,
    ),
    "1 - sigma before x0": lambda t: (t.mean + t.dt * (t.x - t.sigma * t.v), t.std),
}


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_coefficient_ends_elsewhere(kind: str, name: str) -> None:
    process = PROCESSES[kind]
    assert not keeps_the_marginals(Process(process.kind, process.eta, MUTATIONS[name]))


@pytest.mark.parametrize("name", CPS_MUTATIONS)
def test_a_wrong_coefficient_of_cps_ends_elsewhere(name: str) -> None:
    process = PROCESSES["cps"]
    assert not keeps_the_marginals(Process(process.kind, process.eta, CPS_MUTATIONS[name]))


# ---- CPS at a constant eta, as it is used


def test_cps_at_a_constant_eta_ends_elsewhere_however_small_the_step() -> None:
    """While x0 is uncertain, it does not keep marginals: the largest component gains weight."""
    process = Process("cps", constant(0.8))
    assert not keeps_the_marginals(process)
    for steps in (STEPS // 2, STEPS):
        found, error = estimate(process, steps)
        weight, expected = float(found[7]), float(MIXTURE.weights[0])
        assert weight > expected + 10 * float(error[7])


POINTS = Mixture(MIXTURE.weights, MIXTURE.means, torch.zeros(3, 2, 2).double())


def keeps_points(process: Process) -> bool:
    """From sigma 0.15 to 0.03, where a sample tells which of the points x0 it belongs to.

    There the prediction of x0 is exact, and CPS must be at every eta and step: x - (1 - sigma) x0
    keeps mean 0, for every point, and variance sigma^2, up to 4.5 standard errors and nothing more.
    """
    generator = torch.Generator().manual_seed(3)
    grid = [0.15, 0.12, 0.08, 0.07, 0.03]
    which = torch.multinomial(POINTS.weights, SAMPLES, True, generator=generator)
    eps = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    x = process.walk(POINTS, (1 - grid[0]) * POINTS.means[which] + grid[0] * eps, grid, generator)
    end = grid[-1]
    a, b = ((x - (1 - end) * POINTS.means[which]) / end).T
    c, d = POINTS.means[which].T
    found = torch.stack([a, b, a * c, b * d, a * a - 1, a * b, b * b - 1], 1)
    return bool((found.mean(0).abs() <= 4.5 * found.std(0) / math.sqrt(SAMPLES)).all())


@pytest.mark.parametrize("eta", [0.2, 0.8, 1.0])
def test_cps_keeps_the_marginals_where_x0_is_certain(eta: float) -> None:
    assert keeps_points(Process("cps", constant(eta)))


@pytest.mark.parametrize("name", [*MUTATIONS, *CPS_MUTATIONS])
def test_a_wrong_coefficient_of_cps_shows_where_x0_is_certain(name: str) -> None:
    mutation = (MUTATIONS | CPS_MUTATIONS)[name]
    assert not keeps_points(Process("cps", constant(0.8), mutation))
