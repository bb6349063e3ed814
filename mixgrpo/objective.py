"""The clipped policy objective of GRPO (MixGRPO Eq. 6; Schulman et al. 2017, Eq. 7)."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossStats(NamedTuple):
    """What the ratio did, each over all entries; tensors without gradient, to be read later."""

    ratio_max: Tensor
    """[]: largest |ratio - 1|."""
    clip_fraction: Tensor
    """[]: fraction of entries whose ratio lies outside the clip range."""
    delta_max: Tensor
    """[]: largest |new - old log-prob|; before the first update the numerical noise floor."""


def grpo_loss(
    new_log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, LossStats]:
    """Mean over all entries of max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)).

    All tensors have one shape, such as [B]; ratio = exp(new - old log-prob), eps = `clip_range`.
    Returns the loss [] and its statistics.
    """
    delta = new_log_prob - old_log_prob
    ratio = delta.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        distance = (ratio - 1).abs()
        stats = LossStats(
            ratio_max=distance.max(),
            clip_fraction=(distance > clip_range).to(delta.dtype).mean(),
            delta_max=delta.abs().max(),
        )
    return loss, stats
