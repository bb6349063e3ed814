"""Judges a policy on held-out prompts: ODE sampling, fixed noise, every reward.

The only measure by which settings are compared. Rewards of a rollout are not: they change with the
window's position alone, because late noise does less damage than early noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.errors import RepeatableError, RunError
from mixgrpo.models import Policy
from mixgrpo.randomness import normal
from mixgrpo.rewards import Reward
from mixgrpo.rollout import Velocity, sample_ode
from mixgrpo.schedule import sigma_schedule


def choose(prompts: list[str], count: int) -> list[str]:
    """`count` of the prompts (0: all), chosen by their text so that no kind is preferred."""
    chosen = sorted(prompts, key=lambda p: hashlib.sha256(p.encode()).digest())[: count or None]
    return [p for p in prompts if p in chosen]


@dataclass(frozen=True)
class Evaluation:
    """Images of held-out prompts and their scores."""

    prompts: list[str]
    images: Tensor
    """[prompts, images per prompt, 3, H, W] in [0, 1]."""
    scores: dict[str, Tensor]
    """By reward: [prompts, images per prompt]."""


def evaluation_noise(
    seed: int, prompts: Sequence[str], images: int, shape: tuple[int, ...]
) -> Tensor:
    """Initial noise [prompts * images, ...]; each depends on (seed, prompt, index) alone."""
    return torch.stack(
        [normal(shape, "evaluation", seed, p, i) for p in prompts for i in range(images)]
    )


def evaluate(
    policy: Policy,
    velocity: Velocity,
    rewards: Sequence[Reward],
    prompts: list[str],
    noise: Tensor,
    steps: int,
    shift: float,
    batch: int = 128,
) -> Evaluation:
    """Sample every prompt by the ODE from `noise` [prompts * images, ...] and score the images.

    Batches of the same size give the same bytes; `batch` is part of what is held fixed.
    """
    per_prompt = len(noise) // len(prompts)
    repeated = [p for p in prompts for _ in range(per_prompt)]
    sigmas = sigma_schedule(steps, shift, torch.float64)
    images = []
    for begin in range(0, len(repeated), batch):
        part = slice(begin, begin + batch)
        with torch.no_grad():
            conditioning = policy.encode(repeated[part])
            latents = sample_ode(velocity, sigmas, conditioning, noise[part])
            images.append(policy.decode(latents))
    pixels = torch.cat(images)
    scores = {r.name: score(r, pixels, repeated).unflatten(0, (-1, per_prompt)) for r in rewards}
    return Evaluation(prompts, pixels.unflatten(0, (-1, per_prompt)), scores)


def score(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores [B] in float32 on the CPU. Errors name the reward and a prompt.

    RunError where the reward cannot be reached (OSError); RepeatableError where it raises anything
    else, or returns what are no scores. A failed reward is never replaced by a number: a zero
    would enter the advantages as if the images were bad.
    """
    about = f"reward {reward.name} on {len(prompts)} images, the first of {prompts[0]!r}"
    try:
        values: object = reward.score(images, prompts)
    except OSError as error:
        raise RunError(f"{about}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise RepeatableError(f"{about}: {type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor):
        raise RepeatableError(f"{about}: returned a {type(values).__name__}, not a tensor")
    if tuple(values.shape) != (len(prompts),):
        raise RepeatableError(
            f"{about}: returned shape {tuple(values.shape)}, not ({len(prompts)},)"
        )
    values = values.detach().float().cpu()
    if not bool(values.isfinite().all()):
        bad = prompts[int((~values.isfinite()).nonzero()[0])]
        raise RepeatableError(f"reward {reward.name}: returned NaN or Inf for {bad!r}")
    return values
