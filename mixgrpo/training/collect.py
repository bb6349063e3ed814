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
class Share:
    """An iteration's prompts, and which of them are this rank's."""

    prompts: list[str]
    indices: list[int]
    counted: int
    """So many of the indices count; the rest keeps the ranks in step."""
    here: list[str]
    """This rank's prompts, one for each index."""
    conditioning: Conditioning
    """One row for each of them."""


@dataclass(frozen=True)
class Groups:
    """P groups of N images and their rewards."""

    rollout: Rollout
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
    share: Share,
    clock: Clock,
) -> Groups | None:
    """Roll out one group for each of this rank's prompts, decode and score it; None where it has no
    prompt, because there are more ranks than prompts.

    In blocks of prompts, if so configured: one is decoded and scored while the next is sampled.
    Errors of a reward name it and the prompt; RepeatableError naming what is not finite.
    """
    prompts, shape = share.here, policy.latent_shape
    if not prompts:
        return None

    def sample(block: slice) -> Rollout:
        some = prompts[block]
        return rollout(
            velocity,
            plan,
            take(share.conditioning, block),
            initial_noise(config, iteration, some, shape).to(device),
            step_noise(config, iteration, some, shape, len(plan.sde)).to(device),
            chunk=math.ceil(config.trained_images / config.objective.updates),
            limit=config.compute.micro_batch,
        )

    def judge(sampled: Rollout, block: slice, before: "Future[_Scored] | None" = None) -> _Scored:
        if before is not None:
            before.result()  # raises: a reward that hung is not waited for in every block
        # Before the rewards, which would be blamed for images that are not theirs.
        _check(policy, iteration, sampled, prompts[block])
        return _score(config, policy, rewards, device, sampled, prompts[block])

    blocks = list(slices(len(prompts), config.rollout.block))
    rollouts: list[Rollout] = []
    if len(blocks) == 1:
        rollouts.append(sample(blocks[0]))
        clock.lap("rollout")
        scored = [judge(rollouts[0], blocks[0])]
    else:
        futures: list[Future[_Scored]] = []
        with ThreadPoolExecutor(max_workers=1) as worker:
            for block in blocks:
                rollouts.append(sample(block))
                before = futures[-1] if futures else None
                futures.append(worker.submit(judge, rollouts[-1], block, before))
            clock.lap("rollout")
            scored = [future.result() for future in futures]
    shares = (sum(s.decode_s for s in scored), sum(s.reward_s for s in scored))
    clock.lap("decode", "reward", shares=shares)
    return Groups(
        join(rollouts),
        torch.cat([s.images for s in scored]),
        {name: torch.cat([s.rewards[name] for s in scored]) for name in rewards},
    )


def decode(policy: Policy, latents: Tensor, limit: int | None) -> Tensor:
    """Images [B, 3, H, W] of latents [B, ...], at most `limit` of them at once."""
    with torch.no_grad():  # set per thread
        parts = [decoded(policy, latents[rows]) for rows in slices(len(latents), limit)]
    return torch.cat(parts)


@dataclass(frozen=True)
class _Scored:
    images: Tensor
    rewards: dict[str, Tensor]
    decode_s: float
    reward_s: float


def _score(
    config: RunConfig,
    policy: Policy,
    rewards: dict[str, Reward],
    device: str,
    sampled: Rollout,
    prompts: list[str],
) -> _Scored:
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
    return _Scored(images.unflatten(0, (-1, group)), scores, decoded - begin, end - decoded)


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
