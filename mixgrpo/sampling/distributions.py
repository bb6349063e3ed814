"""How images are distributed: how far apart they are, and how far SDE and ODE have drifted."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mixgrpo.sampling.rollout import Rollout
from mixgrpo.sampling.walk import plan_coefficients

FEATURE_GRID = 4
"""Features of an image: its colours averaged over this many cells a side."""

_PIXEL_VARIANCE = 1e-4
"""Added to every feature's variance: a cell that is black in all images has none."""


def diversity(images: Tensor) -> Tensor:
    """Root-mean-square distance between two images of a prompt, [P].

    images: [P, n, 3, H, W] in [0, 1], n at least 2. Falls towards 0 where a policy collapses to
    one image per prompt.
    """
    # Two independent draws differ by twice the variance.
    return (2 * images.flatten(2).var(1).mean(1)).sqrt()


def step_drift(sampled: Rollout) -> Tensor:
    """KL of each trained step's Gaussian from one of the same std around its ODE step, [P].

    mean over steps, images and elements of (mean - (x + dt v))^2 / (2 std^2): by how much the
    random step's drift leaves the ODE from the same start. Steps without noise are left out.
    """
    plan = sampled.plan
    terms = []
    for step in sampled.window:
        c = plan_coefficients(plan, step.index)
        if c.std == 0 or c.v == 0:
            continue
        dt = float(plan.sigmas[step.index + 1]) - float(plan.sigmas[step.index])
        x = step.latents.to(step.mean.dtype)
        v = (step.mean - c.x * x) / c.v
        difference = step.mean - (x + dt * v)
        terms.append(difference.square().flatten(1).mean(1) / (2 * c.std**2))
    if not terms:
        return sampled.latents.new_zeros(len(sampled.latents))
    return torch.stack(terms).mean(0)


def image_drift(random: Tensor, deterministic: Tensor) -> Tensor:
    """KL per feature between the images that SDE and ODE reach from the same noise, [P].

    random: [P, N, 3, H, W] by the SDE; deterministic: [P, 1 or N, 3, H, W] by the ODE. Per prompt
    two Gaussians with the variance of the SDE's images: (m_sde - m_ode)^2 / (2 variance), mean
    over features, less the 1 / (2 N) that the mean of N images differs by chance. 0 on average
    where the SDE spreads around the ODE's image without moving it.
    """
    ours, theirs = _features(random), _features(deterministic)
    group = ours.shape[1]
    variance = ours.var(1) + _PIXEL_VARIANCE
    squares = (ours.mean(1) - theirs.mean(1)).square()
    return ((squares - ours.var(1) / group) / (2 * variance)).mean(1)


def _features(images: Tensor) -> Tensor:
    """[P, n, 3, H, W] -> [P, n, 48]."""
    pooled = adaptive_avg_pool2d(images.flatten(0, 1), FEATURE_GRID)
    features: Tensor = pooled.flatten(1).unflatten(0, images.shape[:2])
    return features
