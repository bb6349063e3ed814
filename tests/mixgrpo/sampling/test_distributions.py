"""Distances between images and between SDE and ODE, against closed forms and known draws."""

import math
from typing import Any

import pytest
import torch

from mixgrpo.sampling.distributions import diversity, image_drift, step_drift
from mixgrpo.sampling.plan import make_plan
from mixgrpo.sampling.rollout import rollout
from mixgrpo.settings.config import SamplerConfig
from tests.mixgrpo.toy import PROMPTS, ToyPolicy


def test_diversity_is_the_distance_of_two_images() -> None:
    a, b = torch.rand(2, 3, 3, 8, 8)
    images = torch.stack([a, b], 1)  # three prompts, two images each
    expected = (a - b).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(diversity(images), expected)
    same = a.unsqueeze(1).expand(-1, 5, -1, -1, -1)
    torch.testing.assert_close(diversity(same), torch.zeros(3))


def test_diversity_does_not_depend_on_the_number_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (0.2 * torch.randn(400, n, 3, 4, 4, generator=generator) for n in (2, 12))
    # Independent pixels of std s are s sqrt(2) apart.
    assert float(diversity(few).mean()) == pytest.approx(0.2 * math.sqrt(2), rel=0.02)
    assert float(diversity(many).mean()) == pytest.approx(0.2 * math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("kernel", ["flow", "dance"])
@pytest.mark.parametrize("first", [0, 2])
def test_step_drift_is_half_the_noise_times_the_score(kernel: Any, first: int) -> None:
    """The SDE's mean leaves the ODE by g^2 dt / (2 sigma) eps_hat, so that the KL is
    g^2 (-dt) / (8 sigma^2) mean of eps_hat^2."""
    policy, prompts, group = ToyPolicy(0, torch.float64), 2, 4
    plan = make_plan(SamplerConfig(steps=6, kernel=kernel, eta=0.6), range(first, first + 2))
    generator = torch.Generator().manual_seed(1)
    shape = policy.latent_shape
    initial = torch.randn(prompts, 1, *shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(prompts, group, 2, *shape, generator=generator, dtype=torch.float64)
    conditioning = policy.encode(PROMPTS[:prompts])
    sampled = rollout(policy.velocity, plan, conditioning, initial, noise, group)
    terms = []
    for step in sampled.window:
        sigma, after = (float(plan.sigmas[step.index + i]) for i in (0, 1))
        below = float(plan.sigmas[1]) if sigma == 1 else sigma
        g = 0.6 * (math.sqrt(sigma / (1 - below)) if kernel == "flow" else 1)
        images = step.latents.shape[1]
        text = {k: v.repeat_interleave(images, 0) for k, v in conditioning.items()}
        x = step.latents.flatten(0, 1)
        eps = (x + (1 - sigma) * policy.velocity(x, sigma, text)).unflatten(0, (prompts, images))
        kl = g**2 * (sigma - after) / (8 * sigma**2) * eps.square().flatten(1).mean(1)
        terms.append(kl)
    torch.testing.assert_close(step_drift(sampled), torch.stack(terms).mean(0).detach())


def test_steps_without_noise_have_no_drift() -> None:
    policy = ToyPolicy(0, torch.float64)
    plan = make_plan(SamplerConfig(steps=4, kernel="cps", eta=0.8), [3])
    shape = policy.latent_shape
    initial, noise = torch.randn(1, 1, *shape).double(), torch.randn(1, 3, 1, *shape).double()
    sampled = rollout(policy.velocity, plan, policy.encode(PROMPTS[:1]), initial, noise, 3)
    assert step_drift(sampled).tolist() == [0.0]


@pytest.mark.parametrize("group", [4, 12])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_image_drift_is_the_kl_of_shifted_gaussians(group: int, shift: float) -> None:
    """Colours of a whole image are drawn: mean over draws is shift^2 / (2 variance), without the
    1 / (2 N) that a mean of N images differs by chance."""
    generator = torch.Generator().manual_seed(2)
    prompts, std = 4000, 0.2
    colours = 0.5 + std * torch.randn(prompts, group, 3, generator=generator)
    sde = colours[..., None, None].expand(-1, -1, -1, 8, 8)
    ode = torch.full((prompts, 1, 3, 8, 8), 0.5 + shift)
    found = image_drift(sde, ode)
    # The inverse of a variance estimated from N images is (N - 1) / (N - 3) too large on average.
    expected = shift**2 / (2 * std**2) * (group - 1) / (group - 3)
    error = float(found.std()) / math.sqrt(prompts)
    chance = (group - 1) / (group - 3) / (2 * group) - 1 / (2 * group)
    assert float(found.mean()) == pytest.approx(expected + chance, abs=4 * error + 0.02 * expected)


def test_image_drift_of_own_noise_compares_with_as_many_ode_images() -> None:
    generator = torch.Generator().manual_seed(3)
    sde = torch.rand(5, 6, 3, 8, 8, generator=generator)
    assert float(image_drift(sde, sde).abs().max()) < 0.1
    moved = image_drift(sde, (sde + 0.3))
    assert float(moved.min()) > 1
