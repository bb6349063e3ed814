"""One step of a trajectory from sigma to sigma_next: deterministic, or random with its log-prob.

x_sigma = (1 - sigma) x0 + sigma eps; the network predicts v = eps - x0; dt = sigma_next - sigma is
negative. Everything is computed in float32 or better. Sigmas are host numbers (a float or a 0-dim
CPU tensor), so that no step waits for a device.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["flow", "dance", "cps"]
Density = Literal["normalised", "released"]
Sigma = float | Tensor


class Coefficients(NamedTuple):
    """Coefficients of a random step x' = a x + b v + std noise, all host numbers."""

    x: float
    """a"""
    v: float
    """b"""
    std: float


class SDEStep(NamedTuple):
    """A random step: x' = mean + std * noise."""

    sample: Tensor
    """x' [B, ...], in the dtype of x."""
    mean: Tensor
    """[B, ...], in float32 or better."""
    std: Tensor
    """[], on the CPU whatever the device: the same for every image and element."""


def step_coefficients(
    sigma: Sigma, sigma_next: Sigma, *, eta: float, kind: Kernel, sigma_max: Sigma
) -> Coefficients:
    """The coefficients of x, v and noise in a random step.

    flow and dance, with a noise level g (Flow-GRPO Eq. 9, MixGRPO Eq. 4, DanceGRPO Eq. 8):

        mean = x (1 + g^2 dt / (2 sigma)) + v (1 + g^2 (1 - sigma) / (2 sigma)) dt
        std  = g sqrt(-dt)

    * flow: g = eta sqrt(sigma / (1 - sigma)), where at sigma = 1 the denominator takes
      `sigma_max`, the schedule's second entry, for sigma.
    * dance: g = eta.

    cps, coefficients-preserving sampling (Flow-CPS):

        std  = sigma' sin(eta pi / 2)
        mean = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) eps_hat
        x0 = x - sigma v,  eps_hat = x + (1 - sigma) v

    ValueError for steps that do not go down.
    """
    s, s_next = float(sigma), float(sigma_next)
    dt = s_next - s
    if not 0 <= s_next < s <= 1:
        raise ValueError(f"a step goes from sigma {s} down to {s_next}, within [0, 1]")
    if kind == "cps":
        std = s_next * math.sin(eta * math.pi / 2)
        kept = math.sqrt(s_next**2 - std**2)
        return Coefficients((1 - s_next) + kept, kept * (1 - s) - (1 - s_next) * s, std)
    below_one = float(sigma_max) if s == 1 else s
    g = eta if kind == "dance" else eta * math.sqrt(s / (1 - below_one))
    x = 1 + g**2 * dt / (2 * s)
    v = (1 + g**2 * (1 - s) / (2 * s)) * dt
    return Coefficients(x, v, g * math.sqrt(-dt))


def ode_step(x: Tensor, v: Tensor, sigma: Sigma, sigma_next: Sigma) -> Tensor:
    """Euler step x' = x + dt v of the probability-flow ODE (MixGRPO Eq. 3), [B, ...]."""
    dt = float(sigma_next) - float(sigma)
    return (wide(x) + dt * wide(v)).to(x.dtype)


def predict_x0(x: Tensor, v: Tensor, sigma: Sigma) -> Tensor:
    """x0 = x - sigma v, in float32 or better. [B, ...] -> [B, ...]."""
    return wide(x) - float(sigma) * wide(v)


def sde_step(
    x: Tensor,
    v: Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    eta: float,
    kind: Kernel,
    sigma_max: Sigma,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SDEStep:
    """A random step that keeps the ODE's marginals. x, v, noise: [B, ...].

    The kernels are those of `step_coefficients`. Without `noise` it is drawn from `generator`.
    ValueError for steps that do not go down.
    """
    c = step_coefficients(sigma, sigma_next, eta=eta, kind=kind, sigma_max=sigma_max)
    mean = wide(x) * c.x + wide(v) * c.v
    if noise is None:
        noise = torch.randn(x.shape, generator=generator, dtype=mean.dtype, device=x.device)
    sample = (mean + c.std * wide(noise)).to(x.dtype)
    return SDEStep(sample, mean, torch.tensor(c.std, dtype=mean.dtype))


def log_prob(sample: Tensor, mean: Tensor, std: Tensor, density: Density = "normalised") -> Tensor:
    """Log-density of `sample` under N(mean, std^2), averaged over the elements of each image.

        normalised: mean over elements of -(x' - mean)^2 / (2 std^2) - log std - log(2 pi) / 2
        released:   mean over elements of -(x' - mean)^2, as in the released code for cps

    sample, mean: [B, ...]; std: [] or [B], on the CPU; returns [B]. The average (not the sum) over
    the D elements is what clip ranges in the literature refer to (Flow-GRPO Eq. 10); the
    log-density itself is D times larger. A step without noise (std = 0) has no density; its value
    is 0, so that its ratio is 1 and its gradient 0.
    """
    squares = (wide(sample) - mean).square().flatten(1).mean(1)
    positive, scale = _positive(std, squares)
    if density == "released":
        return -squares * positive
    normal = -squares / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)
    return normal * positive


def gaussian_kl(mean: Tensor, mean_reference: Tensor, std: Tensor) -> Tensor:
    """KL between step Gaussians of the same std, averaged over elements (Flow-GRPO Eq. 11).

    mean over elements of (mean - mean_reference)^2 / (2 std^2); [B, ...] -> [B]; std: [] or [B],
    on the CPU. Zero where std = 0, as no density exists there.
    """
    squares = (mean - mean_reference).square().flatten(1).mean(1)
    positive, scale = _positive(std, squares)
    return squares / (2 * scale**2) * positive


def _positive(std: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """1 where std > 0, else 0; and std with 1 for 0. Computed on the CPU, so that no step waits."""
    positive = std > 0
    scale = torch.where(positive, std, torch.ones_like(std)).to(like.dtype)
    if std.dim():
        return positive.to(like.device, like.dtype), scale.to(like.device)
    return positive.to(like.dtype), scale


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()
