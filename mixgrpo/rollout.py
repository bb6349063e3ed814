"""Runs a plan over groups of images and computes what the images share only once.

With the same initial noise in a group, all its images are the same up to the window's first step:
the steps before it and the velocity at it are evaluated once per prompt. This changes no result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixgrpo.dpm import DPMSolver
from mixgrpo.models import Conditioning
from mixgrpo.plan import Plan
from mixgrpo.steps import SDEStep, log_prob, ode_step, predict_x0, sde_step

Velocity = Callable[[Tensor, float, Conditioning], Tensor]
"""(latents [B, ...], sigma, conditioning of B rows) -> velocity [B, ...]."""


class CountedVelocity:
    """A velocity that counts its evaluations, one per latent."""

    def __init__(self, velocity: Velocity) -> None:
        self._velocity = velocity
        self.evaluations = 0

    def __call__(self, latents: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        self.evaluations += len(latents)
        return self._velocity(latents, sigma, conditioning)


@dataclass(frozen=True)
class WindowStep:
    """One SDE step as the rollout took it; what the update needs to judge it again."""

    index: int
    """Index of the step in the plan."""
    latents: Tensor
    """Before the step: [P, ...] where the group shares them, else [P, N, ...]."""
    sample: Tensor
    """After the step: [P, N, ...]."""
    log_prob: Tensor
    """Of `sample` under the rollout policy: [P, N]."""
    shared: bool
    """Whether `latents` are shared by the group."""


@dataclass(frozen=True)
class Rollout:
    """P groups of N images, each from pure noise to sigma = 0."""

    plan: Plan
    latents: Tensor
    """[P, N, ...] at sigma = 0."""
    window: list[WindowStep] = field(repr=False)


def repeat(conditioning: Conditioning, times: int) -> Conditioning:
    """Every row `times` times in a row: P rows -> P * times rows."""
    return {k: v.repeat_interleave(times, 0) for k, v in conditioning.items()}


def sde_transition(plan: Plan, index: int, x: Tensor, v: Tensor, noise: Tensor | None) -> SDEStep:
    """Step `index` of `plan` as its sampler's kernel takes it; tensors [B, ...]."""
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
    share: bool = True,
) -> Rollout:
    """Sample P groups of N images along `plan` (MixGRPO Alg. 1, lines 5 to 12).

    conditioning: P rows. initial_noise: [P, ...], one per group. step_noise: [P, N, w, ...], the
    noise of each image at each SDE step. `chunk`: images per prompt and forward inside the window;
    with the number that an update takes, the update's replay has the same batch geometry, so that
    the ratio before the first update is exactly 1. `share=False` evaluates every image on its own
    from the first step on, to the same result (for tests and measurements).
    """
    group = step_noise.shape[1]
    if group % chunk:
        raise ValueError(f"a chunk of {chunk} does not divide a group of {group}")
    chunked = repeat(conditioning, chunk)
    whole = repeat(conditioning, group)
    # [P, 1, ...] while the group is one image, [P, N, ...] from the first SDE step on.
    x = initial_noise.unsqueeze(1)
    if not share:
        x = _expand(x, group)
    solver = DPMSolver(plan.sampler.order, plan.sampler.variant)
    seen: list[Tensor] = []  # x0 predictions, [P, 1 or N, ...]
    window: list[WindowStep] = []
    for index, kind in enumerate(plan.kinds):
        sigma = float(plan.sigmas[index])
        if kind == "sde":
            noise = step_noise[:, :, len(window)]
            step, x0 = _window_step(velocity, plan, index, x, noise, conditioning, chunked, chunk)
            window.append(step)
            seen.append(x0)
            x = step.sample
            continue
        flat = x.flatten(0, 1)
        v = velocity(flat, sigma, conditioning if x.shape[1] == 1 else whole)
        if kind == "ode":
            seen.append(predict_x0(flat, v, sigma).unflatten(0, x.shape[:2]))
            after = ode_step(flat, v, sigma, plan.sigmas[index + 1])
        else:
            if index == plan.tail_begin and plan.sampler.history == "keep":
                for x0 in seen[1 - plan.sampler.order :] if plan.sampler.order > 1 else []:
                    solver.observe(_expand(x0, x.shape[1]).flatten(0, 1))
            after = solver.step(flat, predict_x0(flat, v, sigma), plan.sigmas, index)
        x = after.unflatten(0, x.shape[:2])
        del seen[:-2]  # no solver looks further back
    return Rollout(plan, _expand(x, group), window)


def _window_step(
    velocity: Velocity,
    plan: Plan,
    index: int,
    x: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    chunked: Conditioning,
    chunk: int,
) -> tuple[WindowStep, Tensor]:
    """One SDE step of all groups, and its x0 predictions [P, 1 or N, ...]."""
    prompts, group = noise.shape[:2]
    sigma = float(plan.sigmas[index])
    shared = x.shape[1] == 1
    v_shared = velocity(x[:, 0], sigma, conditioning) if shared else None
    samples, log_probs, x0s = [], [], []
    for begin in range(0, group, chunk):
        images = slice(begin, begin + chunk)
        if v_shared is not None:
            x_chunk = _rows(x, chunk)
            v = v_shared.repeat_interleave(chunk, 0)
        else:
            x_chunk = x[:, images].flatten(0, 1)
            v = velocity(x_chunk, sigma, chunked)
            x0s.append(predict_x0(x_chunk, v, sigma).unflatten(0, (prompts, chunk)))
        step = sde_transition(plan, index, x_chunk, v, noise[:, images].flatten(0, 1))
        samples.append(step.sample.unflatten(0, (prompts, chunk)))
        log_probs.append(log_prob(step.sample, step.mean, step.std).unflatten(0, (prompts, chunk)))
    if v_shared is not None:
        x0s.append(predict_x0(x[:, 0], v_shared, sigma).unsqueeze(1))
    taken = WindowStep(
        index=index,
        latents=x[:, 0] if shared else x,
        sample=torch.cat(samples, 1),
        log_prob=torch.cat(log_probs, 1),
        shared=shared,
    )
    return taken, torch.cat(x0s, 1)


def replay(
    velocity: Velocity,
    plan: Plan,
    step: WindowStep,
    images: slice,
    conditioning: Conditioning,
    chunked: Conditioning,
) -> SDEStep:
    """The distribution of one SDE step for some images of every group, under today's policy.

    conditioning: P rows; chunked: the same repeated for the images of the slice. Returns a step
    whose mean is [P * images, ...]; its sample is that mean. Differentiable.
    """
    sigma = float(plan.sigmas[step.index])
    size = images.stop - images.start
    if step.shared:
        x = step.latents.repeat_interleave(size, 0)
        v = velocity(step.latents, sigma, conditioning).repeat_interleave(size, 0)
    else:
        x = step.latents[:, images].flatten(0, 1)
        v = velocity(x, sigma, chunked)
    return sde_transition(plan, step.index, x, v, torch.zeros_like(x))


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


def _rows(x: Tensor, times: int) -> Tensor:
    return x[:, 0].repeat_interleave(times, 0)


def _expand(x: Tensor, group: int) -> Tensor:
    return x.expand(x.shape[0], group, *x.shape[2:])
