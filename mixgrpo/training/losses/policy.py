"""The clipped policy loss of GRPO (MixGRPO Eq. 6) with a KL penalty towards the reference model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.maths.objective import clipped_terms, guarded_log_ratio
from mixgrpo.maths.steps import Density, gaussian_kl, log_prob, wide
from mixgrpo.settings.config import ObjectiveConfig
from mixgrpo.training.batch import Steps

STATISTICS = ("ratio_distance", "clipped", "log_ratio", "log_prob_change", "loss", "kl")
"""Over M steps. Maxima: |ratio - 1|, |log ratio|, change of a log-prob. Sums: clipped ratios, loss
without the penalty, exact KL."""


@dataclass(frozen=True)
class Loss:
    """Of M steps; sums over them, to be divided by the number of all steps of the update."""

    total: Tensor
    """[], with gradient: weighted terms, and kl_weight times the KL in `objective.kl`'s unit."""
    statistics: Tensor
    """[6], without gradient, as `STATISTICS` names them."""


def policy_loss(
    objective: ObjectiveConfig,
    density: Density,
    steps: Steps,
    velocity: Tensor,
    reference: Tensor | None,
) -> Loss:
    """The loss of M steps, given the velocity [M, ...] at their latents by today's policy and, for
    the KL, by the reference model.

    Each step's distribution under the rollout policy is in `steps`; today's has the mean
    cx x + cv v and the same std.
    """
    x, std = wide(steps.latents) * steps.cx, steps.std
    mean = x + wide(velocity) * steps.cv
    change = log_prob(steps.sample, mean, std, density) - steps.log_prob
    log_ratio = change
    if objective.ratio == "guard":
        log_ratio = guarded_log_ratio(change, mean, steps.mean, std)
    terms = clipped_terms(log_ratio, steps.advantages * steps.counts, objective.clip_range)
    loss = (terms * steps.weight).sum()

    # Steps that are computed only so that all ranks make the same calls have `counts` 0: they add
    # nothing, even where their term is infinite.
    counted = steps.counts > 0
    penalty = exact = torch.zeros_like(loss)
    if reference is not None:
        each = gaussian_kl(mean, x + wide(reference) * steps.cv, std)
        each = torch.where(counted, each, torch.zeros_like(terms))
        exact = each.detach().sum()
        penalty = (each * steps.kl_weight).sum()

    with torch.no_grad():
        nothing = torch.zeros_like(log_ratio)
        change, log_ratio = (torch.where(counted, v, nothing) for v in (change, log_ratio))
        distance = (log_ratio.exp() - 1).abs()
        clipped = (distance > objective.clip_range).to(distance.dtype).sum()
        largest = [values.abs().max() for values in (log_ratio, change)]
        statistics = torch.stack([distance.max(), clipped, *largest, loss.detach(), exact])
    return Loss(loss + objective.kl_weight * penalty, statistics)
