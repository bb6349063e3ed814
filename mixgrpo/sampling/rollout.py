"""Runs a plan over groups of images and computes what the images share only once.

With the same initial noise in a group, all its images are the same up to the first random step:
the steps before it and the velocity at it are evaluated once per prompt. This changes no result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixgrpo.maths.steps import Density, log_prob
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import Plan, StepKind
from mixgrpo.sampling.walk import Step, walk, walk_plan


@dataclass(frozen=True)
class WindowStep:
    """One trained step as the rollout took it; what the update needs to judge it again."""

    index: int
    """Index of the step in the plan."""
    latents: Tensor
    """Before the step: [P, 1, ...] where the group shares them, else [P, N, ...]."""
    sample: Tensor
    """After the step: [P, N, ...]."""
    mean: Tensor
    """Of the step's distribution under the rollout policy: like `latents`, float32 or better."""
    log_prob: Tensor
    """Of `sample` under the rollout policy: [P, N]."""

    @property
    def shared(self) -> bool:
        """Whether the images of a group begin the step from the same latents."""
        return self.latents.shape[1] < self.sample.shape[1]


@dataclass(frozen=True)
class Rollout:
    """P groups of N images, each from pure noise to the image."""

    plan: Plan
    latents: Tensor
    """What is decoded: [P, N, ...]."""
    window: list[WindowStep] = field(repr=False)


def repeat(conditioning: Conditioning, times: int) -> Conditioning:
    """Every row `times` times in a row: P rows -> P * times rows."""
    return {k: v.repeat_interleave(times, 0) for k, v in conditioning.items()}


def take(conditioning: Conditioning, rows: slice | Tensor) -> Conditioning:
    """Some rows."""
    return {k: v[rows] for k, v in conditioning.items()}


def slices(count: int, size: int | None) -> Iterator[slice]:
    """0 .. count - 1 in consecutive slices of `size`, the last one shorter; none: one slice."""
    size = size or max(1, count)
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


@torch.no_grad()
def rollout(
    velocity: Velocity,
    plan: Plan,
    conditioning: Conditioning,
    initial_noise: Tensor,
    step_noise: Tensor,
    chunk: int,
    limit: int | None = None,
    share: bool = True,
) -> Rollout:
    """Sample P groups of N images along `plan` (MixGRPO Alg. 1, lines 5 to 12).

    conditioning: P rows. initial_noise: [P, 1, ...] shared by a group, or [P, N, ...]. step_noise:
    [P, N, S, ...], the noise of each image at each of the S random steps. `chunk`: images per
    prompt and forward inside the window; with the number that an update takes, the update has the
    same batch geometry, so that the ratio before the first update is exactly 1. `limit`: the most
    latents in one forward. `share=False` evaluates every image by itself from the first step on,
    to the same result (for tests and measurements).
    """
    group = step_noise.shape[1]
    trained = set(plan.window) & set(plan.sde)

    def at(x: Tensor, sigma: float, index: int) -> Tensor:
        together = chunk if index in trained else x.shape[1]
        return _velocity(velocity, x, sigma, conditioning, together, limit)

    noise = dict(zip(plan.sde, step_noise.unbind(2), strict=True))
    final = initial_noise
    window: list[WindowStep] = []
    for step in walk_plan(at, plan, initial_noise if share else _expand(final, group), noise):
        if step.index in trained:
            window.append(_window_step(step, group, chunk, plan.sampler.density))
        final = step.x0.to(step.x.dtype) if plan.sampler.decode == "x0" else step.after
    return Rollout(plan, _expand(final, group), window)


def _velocity(
    velocity: Velocity,
    x: Tensor,
    sigma: float,
    conditioning: Conditioning,
    together: int,
    limit: int | None,
) -> Tensor:
    """The velocity at x [P, 1 or N, ...], `together` images of every prompt in one forward."""
    parts = []
    for images in slices(x.shape[1], together):
        part = x[:, images]
        flat, text = part.flatten(0, 1), repeat(conditioning, part.shape[1])
        some = [velocity(flat[rows], sigma, take(text, rows)) for rows in slices(len(flat), limit)]
        parts.append(_whole(some, 0).unflatten(0, part.shape[:2]))
    return _whole(parts, 1)


def _whole(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _window_step(step: Step, group: int, chunk: int, density: Density) -> WindowStep:
    """A random step from x [P, 1 or N, ...] to N images, with the log-prob of each."""
    assert step.random is not None
    sample, mean, std = step.random
    means = _expand(mean, group)
    densities = [
        log_prob(
            sample[:, images].flatten(0, 1), means[:, images].flatten(0, 1), std, density
        ).unflatten(0, (len(sample), -1))
        for images in slices(group, chunk)
    ]
    return WindowStep(step.index, step.x, sample, mean, torch.cat(densities, 1))


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same plan, one group after the other."""
    if len(rollouts) == 1:
        return rollouts[0]
    window = [
        WindowStep(
            index=steps[0].index,
            latents=torch.cat([s.latents for s in steps]),
            sample=torch.cat([s.sample for s in steps]),
            mean=torch.cat([s.mean for s in steps]),
            log_prob=torch.cat([s.log_prob for s in steps]),
        )
        for steps in zip(*(r.window for r in rollouts), strict=True)
    ]
    return Rollout(rollouts[0].plan, torch.cat([r.latents for r in rollouts]), window)


@torch.no_grad()
def sample_ode(
    velocity: Velocity, sigmas: Tensor, conditioning: Conditioning, noise: Tensor
) -> Tensor:
    """Images by the ODE alone: noise [B, ...] at sigma = 1 -> latents [B, ...] at sigma = 0."""
    kinds: list[StepKind] = ["ode"] * (len(sigmas) - 1)
    x = noise
    for step in walk(lambda x, sigma, _: velocity(x, sigma, conditioning), sigmas, kinds, x):
        x = step.after
    return x


def _expand(x: Tensor, group: int) -> Tensor:
    return x.expand(x.shape[0], group, *x.shape[2:])
