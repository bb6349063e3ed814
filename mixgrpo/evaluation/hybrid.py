"""Held-out rewards of a finished run by p_mix, the part of the steps that the trained model takes.

Hybrid inference (MixGRPO, arXiv 2507.21802) as `mixgrpo.sampling.inference` has it, with the
prompts, noise and batches of the run's evaluations: p_mix = 1 gives the numbers of its last
evaluation, 0 those of its first, both of `evaluation.images_per_prompt` images. What two values of
p_mix share, the trained model's first steps, is computed once.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixgrpo.evaluation.held_out import IMAGES_AT_ONCE, choose, evaluation_noise
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.models.load import prepare
from mixgrpo.models.policy import held_out_prompts
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.rewards.calls import check_prompts, score
from mixgrpo.rewards.load import load_rewards
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import Sampling, decoded, images_at_once, shift_of
from mixgrpo.sampling.rollout import sample_ode, slices
from mixgrpo.settings.config import RewardsConfig
from mixgrpo.settings.probes import HybridOptions

log = logging.getLogger(__name__)


@torch.no_grad()
def states_at(
    velocity: Velocity,
    sigmas: Tensor,
    steps: Iterable[int],
    conditioning: Conditioning,
    noise: Tensor,
) -> dict[int, Tensor]:
    """The states [B, ...] of one trajectory by Euler steps before each of these steps."""
    wanted = sorted({0, *steps})
    states = {0: noise}
    for begin, end in pairwise(wanted):
        states[end] = sample_ode(velocity, sigmas[begin : end + 1], conditioning, states[begin])
    return {step: states[step] for step in steps}


def hybrid_images(
    policy: Policy,
    velocity: Velocity,
    reference: Velocity,
    ways: Sequence[Sampling],
    prompts: Sequence[str],
    noise: Tensor,
    batches: Sequence[slice],
) -> Iterator[list[Tensor]]:
    """For each batch its images [B, 3, H, W] by each way, as `inference.draw` has them.

    All ways share steps and shift, and are of order 1. The trained model goes first for all
    batches: with weights that are exchanged, each model comes to the device once.
    """
    sigmas = sigma_schedule(ways[0].steps, ways[0].shift, torch.float64)
    texts = [policy.encode(list(prompts[batch])) for batch in batches]
    switches = [way.trained_steps for way in ways]
    reached = [
        states_at(velocity, sigmas, switches, text, noise[batch])
        for text, batch in zip(texts, batches, strict=True)
    ]
    for text, states in zip(texts, reached, strict=True):
        yield [
            decoded(policy, sample_ode(reference, sigmas[switch:], text, states[switch]))
            for switch in switches
        ]


@torch.no_grad()
def measure(
    folder: Path,
    iteration: int,
    options: HybridOptions,
    of_sweep: RewardsConfig | None = None,
) -> list[dict[str, Any]]:
    """One row for every p_mix and reward of the run in `folder`, by its checkpoint `iteration`.

    `mean` and `sd` over all `images`; `role` is what the run does with the reward. ConfigError for
    a reward that is none. `of_sweep`: classes and options of the rewards; the run's own by default.
    """
    loaded = load_run(folder, iteration)
    config, policy = loaded.config, loaded.policy
    ev, settings = config.evaluation, of_sweep or config.rewards
    names = dict.fromkeys([*settings.train, *settings.held_out, *options.rewards])
    rewards = load_rewards(names, settings, config.compute.offload)
    prompts = choose(held_out_prompts(config, policy), ev.prompts)
    for reward in rewards.values():
        check_prompts(reward, prompts)
    prepare(policy, prompts, log.info)
    count = ev.images_per_prompt
    repeated = [prompt for prompt in prompts for _ in range(count)]
    device = next(policy.network.parameters()).device
    noise = evaluation_noise(config.seed, prompts, count, policy.latent_shape).to(device)
    shift = shift_of(ev.shift, policy)
    ways = [Sampling(ev.steps, shift, p_mix) for p_mix in dict.fromkeys(options.p_mix)]
    # The batches of an evaluation: those of the same size give the same bytes.
    parts = list(slices(len(repeated), max(1, IMAGES_AT_ONCE // count) * count))
    batches = [
        [
            slice(part.start + rows.start, part.start + rows.stop)
            for rows in slices(part.stop - part.start, images_at_once(config.compute))
        ]
        for part in parts
    ]
    every = [batch for some in batches for batch in some]
    drawn = hybrid_images(policy, loaded.velocity, loaded.reference, ways, repeated, noise, every)
    scores: dict[tuple[int, str], list[Tensor]] = {}
    for part, some in zip(parts, batches, strict=True):
        images = [torch.cat(pixels) for pixels in zip(*(next(drawn) for _ in some), strict=True)]
        for w, pixels in enumerate(images):
            for name, reward in rewards.items():
                scored = score(reward, pixels, repeated[part])
                scores.setdefault((w, name), []).append(scored)
    rows = []
    for (w, name), given in scores.items():
        values = torch.cat(given)
        rows.append(
            {
                "p_mix": ways[w].p_mix,
                "trained_steps": ways[w].trained_steps,
                "reward": name,
                "role": _role(name, settings.train, settings.held_out),
                "mean": float(values.unflatten(0, (-1, count)).mean()),
                "sd": float(values.std()) if len(values) > 1 else 0.0,
                "images": len(values),
            }
        )
    return rows


def _role(name: str, trained: Iterable[str], held_out: Iterable[str]) -> str:
    if name in trained:
        return "trained"
    return "held out" if name in held_out else "other"
