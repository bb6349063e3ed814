"""Collects what an iteration learns from: groups of images, sampled, decoded and scored."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.compute.clock import Clock, now
from mixgrpo.errors import RepeatableError
from mixgrpo.maths.randomness import normal
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.rewards.calls import score
from mixgrpo.rewards.protocol import Reward
from mixgrpo.sampling.inference import decoded
from mixgrpo.sampling.plan import Plan
from mixgrpo.sampling.rollout import Rollout, join, rollout, slices, take
from mixgrpo.settings.config import RunConfig


@dataclass(frozen=True)
class Collected:
    """P groups of N images and their rewards."""

    sampled: Rollout
    images: Tensor
    """[P, N, 3, H, W] in [0, 1]."""
    rewards: dict[str, Tensor]
    """[P, N] by name, on the CPU."""


def initial_noise(
    config: RunConfig, iteration: int, prompts: list[str], shape: tuple[int, ...]
) -> Tensor:
    """[P, 1, ...] where a group shares it, else [P, N, ...]; by (seed, iteration, prompt, image)"""
    name, group = (config.seed, iteration), config.rollout.group_size
    if config.rollout.noise == "shared":
        drawn = torch.stack([normal(shape, "initial", *name, p) for p in prompts])
        return drawn.unsqueeze(1)
    each = [normal(shape, "initial", *name, p, i) for p in prompts for i in range(group)]
    return torch.stack(each).reshape(len(prompts), group, *shape)


def step_noise(
    config: RunConfig, iteration: int, prompts: list[str], shape: tuple[int, ...], steps: int
) -> Tensor:
    """[P, N, S, ...] for S random steps; by (seed, iteration, prompt, image)."""
    name, group = (config.seed, iteration), config.rollout.group_size
    drawn = (steps, *shape)
    each = [normal(drawn, "steps", *name, p, i) for p in prompts for i in range(group)]
    return torch.stack(each).reshape(len(prompts), group, *drawn)


def collect(
    config: RunConfig,
    policy: Policy,
    velocity: Velocity,
    rewards: dict[str, Reward],
    device: str,
    iteration: int,
    plan: Plan,
    prompts: list[str],
    conditioning: Conditioning,
    clock: Clock,
) -> Collected:
    """Roll out one group for each of the prompts (at least one), decode and score it.

    In blocks of prompts, if so configured: one is decoded and scored while the next is sampled.
    conditioning: P rows. Errors of a reward name it and the prompt; RepeatableError naming what is
    not finite.
    """
    shape = policy.latent_shape

    def sample(block: slice) -> Rollout:
        some = prompts[block]
        return rollout(
            velocity,
            plan,
            take(conditioning, block),
            initial_noise(config, iteration, some, shape).to(device),
            step_noise(config, iteration, some, shape, len(plan.sde)).to(device),
            chunk=math.ceil(config.trained_images / config.objective.updates),
            limit=config.compute.micro_batch,
        )

    def judge(
        sampled: Rollout, some: list[str], before: "Future[_Judged] | None" = None
    ) -> _Judged:
        if before is not None:
            before.result()  # raises: a reward that hung is not waited for in every block
        # Before the rewards, which would be blamed for images that are not theirs.
        _check(policy, iteration, sampled, some)
        return _judge(config, policy, rewards, device, sampled, some)

    blocks = list(slices(len(prompts), config.rollout.block))
    if len(blocks) == 1:
        rollouts = [sample(blocks[0])]
        clock.lap("rollout")
        judged = [judge(rollouts[0], prompts)]
    else:
        rollouts = []
        futures: list[Future[_Judged]] = []
        with ThreadPoolExecutor(max_workers=1) as worker:
            for block in blocks:
                rollouts.append(sample(block))
                before = futures[-1] if futures else None
                futures.append(worker.submit(judge, rollouts[-1], prompts[block], before))
            clock.lap("rollout")
            judged = [future.result() for future in futures]
    shares = (sum(j.decode_s for j in judged), sum(j.reward_s for j in judged))
    clock.lap("decode", "reward", shares=shares)
    return Collected(
        join(rollouts),
        torch.cat([j.images for j in judged]),
        {name: torch.cat([j.rewards[name] for j in judged]) for name in rewards},
    )


def decode(policy: Policy, latents: Tensor, limit: int | None) -> Tensor:
    """Images [B, 3, H, W] of latents [B, ...], at most `limit` of them at once."""
    with torch.no_grad():  # set per thread
        parts = [decoded(policy, latents[rows]) for rows in slices(len(latents), limit)]
    return torch.cat(parts)


@dataclass(frozen=True)
class _Judged:
    images: Tensor
    rewards: dict[str, Tensor]
    decode_s: float
    reward_s: float


def _judge(
    config: RunConfig,
    policy: Policy,
    rewards: dict[str, Reward],
    device: str,
    sampled: Rollout,
    prompts: list[str],
) -> _Judged:
    group = config.rollout.group_size
    begin = now(device)
    images = decode(policy, sampled.latents.flatten(0, 1), config.compute.micro_batch)
    decoded = now(device)
    repeated = [p for p in prompts for _ in range(group)]
    scores = {
        name: score(reward, images, repeated).unflatten(0, (-1, group))
        for name, reward in rewards.items()
    }
    end = now(device)
    return _Judged(images.unflatten(0, (-1, group)), scores, decoded - begin, end - decoded)


def _check(policy: Policy, iteration: int, sampled: Rollout, prompts: list[str]) -> None:
    """RepeatableError naming the first tensor that is not finite. One wait for the device."""
    tensors = {
        **{f"the sample of step {step.index}": step.sample for step in sampled.window},
        "the last latents": sampled.latents,
    }
    good = torch.stack([t.flatten(1).isfinite().all(1) for t in tensors.values()]).cpu()
    if bool(good.all()):
        return
    weights = policy.trainable_parameters()
    bad = next((n for n, p in weights.items() if not bool(p.isfinite().all())), None)
    if bad is not None:
        raise RepeatableError(
            f"iteration {iteration}: the weights {bad} are not finite; a smaller optimizer.lr "
            "usually helps, from the newest checkpoint"
        )
    first = int((~good).any(1).nonzero()[0])
    prompt = prompts[int((~good[first]).nonzero()[0])]
    raise RepeatableError(
        f"iteration {iteration}: {list(tensors)[first]} of {prompt!r} is not finite although all "
        "weights are; a smaller sampler.eta or compute.precision fp32 usually helps"
    )
