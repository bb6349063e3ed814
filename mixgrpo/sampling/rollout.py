"""Runs a plan over groups of images and computes what the images share only once.

With the same initial noise in a group, all its images are the same up to the first random step:
the steps before it and the velocity at it are evaluated once per prompt. This changes no result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixgrpo.maths.dpm import DPMSolver
from mixgrpo.maths.steps import (
    Coefficients,
    SDEStep,
    log_prob,
    ode_step,
    predict_x0,
    sde_step,
    step_coefficients,
)
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import Plan


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


def plan_coefficients(plan: Plan, index: int) -> Coefficients:
    """What random step `index` of `plan` does, by its sampler's kernel."""
    return step_coefficients(
        plan.sigmas[index],
        plan.sigmas[index + 1],
        eta=plan.sampler.eta,
        kind=plan.sampler.kernel,
        sigma_max=plan.sigmas[1],
    )


def sde_transition(plan: Plan, index: int, x: Tensor, v: Tensor, noise: Tensor) -> SDEStep:
    """Random step `index` of `plan` from x, by its sampler's kernel; x and noise broadcast."""
    return sde_step(
        x,
        v,
        plan.sigmas[index],
        plan.sigmas[index + 1],
        eta=plan.sampler.eta,
        kind=plan.sampler.kernel,
        sigma_max=plan.sigmas[1],
        noise=noise,
    )


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
    latents in one forward. `share=False` evaluates every image on its own from the first step on,
    to the same result (for tests and measurements).
    """
    group = step_noise.shape[1]
    x = initial_noise if share else _expand(initial_noise, group)
    final = x
    solver = DPMSolver(plan.sampler.order, plan.sampler.variant)
    seen: list[Tensor] = []  # x0 predictions, [P, 1 or N, ...]
    window: list[WindowStep] = []
    trained = set(plan.window)
    random_steps = 0
    for index, kind in enumerate(plan.kinds):
        sigma = float(plan.sigmas[index])
        together = x.shape[1] if kind != "sde" or index not in trained else chunk
        v = _velocity(velocity, x, sigma, conditioning, together, limit)
        x0 = predict_x0(x, v, sigma)
        if kind == "sde":
            step = _random_step(plan, index, x, v, step_noise[:, :, random_steps], together)
            random_steps += 1
            if index in trained:
                window.append(step)
            x = step.sample
        elif kind == "ode":
            x = ode_step(x, v, sigma, plan.sigmas[index + 1])
        else:
            if index == plan.tail_begin:
                solver.reset()
                if plan.sampler.history == "keep" and plan.sampler.order > 1:
                    for earlier in seen[1 - plan.sampler.order :]:
                        solver.observe(_expand(earlier, x.shape[1]))
            x = solver.step(x, x0, plan.sigmas, index)
        seen.append(x0)
        del seen[:-2]  # no solver looks further back
        final = x0.to(x.dtype) if plan.sampler.decode == "x0" else x
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
        found = [velocity(flat[rows], sigma, take(text, rows)) for rows in slices(len(flat), limit)]
        parts.append(_whole(found, 0).unflatten(0, part.shape[:2]))
    return _whole(parts, 1)


def _whole(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _random_step(
    plan: Plan, index: int, x: Tensor, v: Tensor, noise: Tensor, chunk: int
) -> WindowStep:
    """SDE step `index` from x [P, 1 or N, ...] with noise [P, N, ...]."""
    sample, mean, std = sde_transition(plan, index, x, v, noise)
    means = _expand(mean, noise.shape[1])
    densities = [
        log_prob(
            sample[:, images].flatten(0, 1),
            means[:, images].flatten(0, 1),
            std,
            plan.sampler.density,
        ).unflatten(0, (len(x), -1))
        for images in slices(noise.shape[1], chunk)
    ]
    return WindowStep(index, x, sample, mean, torch.cat(densities, 1))


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
    x = noise
    for i in range(len(sigmas) - 1):
        v = velocity(x, float(sigmas[i]), conditioning)
        x = ode_step(x, v, sigmas[i], sigmas[i + 1])
    return x


def _expand(x: Tensor, group: int) -> Tensor:
    return x.expand(x.shape[0], group, *x.shape[2:])
