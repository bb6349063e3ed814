"""Measured beside the method: diversity within groups, and the drift between SDE and ODE."""

from dataclasses import replace

import torch
from torch import Tensor

from mixgrpo.compute.ranks import Ranks
from mixgrpo.models.protocol import Policy
from mixgrpo.models.velocity import CountedVelocity, Velocity
from mixgrpo.sampling import distributions
from mixgrpo.sampling.plan import Plan
from mixgrpo.sampling.rollout import rollout
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.collect import Groups, Share, decode, initial_noise
from mixgrpo.training.metrics import Metrics


def health_metrics(
    config: RunConfig,
    policy: Policy,
    velocity: Velocity,
    ranks: Ranks,
    drift: bool,
    iteration: int,
    plan: Plan,
    share: Share,
    groups: Groups | None,
) -> Metrics:
    """Diversity within the groups; with `drift` two distances of the SDE from the ODE.

    Their evaluations are counted separately: they are no part of the method. A collective.
    """
    columns = torch.zeros(0, 3 if drift else 1, dtype=torch.float64)
    evaluations = 0
    if groups is not None:
        counted = slice(share.counted)
        values = [distributions.diversity(groups.images[counted])]
        if drift:
            by_ode, evaluations = _by_ode(
                config, policy, velocity, ranks.device, iteration, plan, share
            )
            values.append(distributions.step_drift(groups.rollout)[counted])
            values.append(distributions.image_drift(groups.images, by_ode)[counted])
        columns = torch.stack([v.cpu().double() for v in values], 1)
    diversity, *distances = ranks.gather(columns).mean(0).tolist()
    line: Metrics = {"group_diversity": diversity}
    if drift:
        line["drift_step_kl"], line["drift_image_kl"] = distances
        line["evaluations_health"] = int(ranks.gather(torch.tensor([evaluations])).sum())
    return line


def _by_ode(
    config: RunConfig,
    policy: Policy,
    velocity: Velocity,
    device: str,
    iteration: int,
    plan: Plan,
    share: Share,
) -> tuple[Tensor, int]:
    """The images [P, 1 or N, 3, H, W] that the ODE reaches from the rollout's first noise, and
    the evaluations that took."""
    shape, limit, counted = (
        policy.latent_shape,
        config.compute.micro_batch,
        CountedVelocity(velocity),
    )
    calm = replace(plan, kinds=tuple("ode" if kind == "sde" else kind for kind in plan.kinds))
    initial = initial_noise(config, iteration, share.here, shape).to(device)
    nothing = initial.new_empty(*initial.shape[:2], 0, *shape)
    chunk = initial.shape[1]
    reached = rollout(counted, calm, share.conditioning, initial, nothing, chunk, limit)
    images = decode(policy, reached.latents.flatten(0, 1), limit)
    return images.unflatten(0, initial.shape[:2]), counted.evaluations
