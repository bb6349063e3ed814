"""Measured beside the method: diversity within groups, and the drift between SDE and ODE."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixgrpo.models.velocity import CountedVelocity
from mixgrpo.sampling import distributions
from mixgrpo.sampling.plan import Plan
from mixgrpo.sampling.rollout import rollout
from mixgrpo.training.collect import Groups, Share, decode, initial_noise
from mixgrpo.training.metrics import Metrics

if TYPE_CHECKING:
    from mixgrpo.training.trainer import Trainer


def health_metrics(
    trainer: "Trainer", iteration: int, plan: Plan, share: Share, groups: Groups | None
) -> Metrics:
    """Diversity within the groups; where the window moves, two distances of the SDE from the ODE.

    Its evaluations are counted separately: they are no part of the method. A collective.
    """
    ranks = trainer.ranks
    drift = trainer.config.health.drift and trainer.window.moves_at(iteration)
    columns = torch.zeros(0, 3 if drift else 1, dtype=torch.float64)
    evaluations = 0
    if groups is not None:
        counted = slice(share.counted)
        values = [distributions.diversity(groups.images[counted])]
        if drift:
            by_ode, evaluations = _by_ode(trainer, iteration, plan, share)
            values.append(distributions.step_drift(groups.rollout)[counted])
            values.append(distributions.image_drift(groups.images, by_ode)[counted])
        columns = torch.stack([v.cpu().double() for v in values], 1)
    diversity, *distances = ranks.gather(columns).mean(0).tolist()
    line: Metrics = {"group_diversity": diversity}
    if drift:
        line["drift_step_kl"], line["drift_image_kl"] = distances
        line["evaluations_health"] = int(ranks.gather(torch.tensor([evaluations])).sum())
    return line


def _by_ode(trainer: "Trainer", iteration: int, plan: Plan, share: Share) -> tuple[Tensor, int]:
    """The images [P, 1 or N, 3, H, W] that the ODE reaches from the rollout's first noise, and
    the evaluations that took."""
    config, shape = trainer.config, trainer.policy.latent_shape
    calm = replace(plan, kinds=tuple("ode" if kind == "sde" else kind for kind in plan.kinds))
    velocity, limit = CountedVelocity(trainer.plain_velocity), config.compute.micro_batch
    initial = initial_noise(config, iteration, share.here, shape).to(trainer.device)
    nothing = initial.new_empty(*initial.shape[:2], 0, *shape)
    chunk = initial.shape[1]
    reached = rollout(velocity, calm, share.conditioning, initial, nothing, chunk, limit)
    images = decode(trainer.policy, reached.latents.flatten(0, 1), limit)
    return images.unflatten(0, initial.shape[:2]), velocity.evaluations
