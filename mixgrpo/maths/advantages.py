"""How much better an image is than its group, for one or several rewards (MixGRPO Eq. 8)."""

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to a group's std, as a fraction of the range of its rewards."""

ROUNDING = 2.0**-21
"""Rewards of a group that differ by at most this fraction of the largest |reward| are taken to
differ by rounding only: four units in the last place of float32, in which networks score."""


def group_advantages(
    rewards: dict[str, Tensor],
    weights: dict[str, float],
    aggregate: Literal["sum", "mean", "reward"] = "sum",
) -> Tensor:
    """Advantages [prompts, group], in float64, of rewards [prompts, group] by name.

    Per reward k and group: A_k = (R_k - mean) / (std + eps (max R_k - min R_k)), std with N - 1
    degrees of freedom; a group without variance in a reward (`has_variance`) gets exactly 0 for it.
    Everything is relative to the size of the rewards, so that c R has the advantages of R for every
    c > 0.

    * sum: A = sum_k w_k A_k (the paper).
    * mean: the sum divided by the number of rewards (released code).
    * reward: one normalisation of sum_k w_k R_k, in which a reward of larger scale weighs more.

    ValueError where rewards and weights do not have the same names.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(f"rewards {sorted(rewards)} do not match weights {sorted(weights)}")
    # Summed in the order of the names, so that the order of a dict changes no bit.
    names = sorted(rewards)
    if aggregate == "reward":
        terms = torch.stack([weights[k] * rewards[k].double() for k in names])
        # A sum is as exact as the largest of its terms, which may cancel.
        return _normalise(terms.sum(0), terms.abs().sum(0).amax(1, keepdim=True))
    total = torch.stack([weights[k] * _normalise(rewards[k].double()) for k in names]).sum(0)
    return total / len(names) if aggregate == "mean" else total


def has_variance(rewards: Tensor, size: Tensor | None = None) -> Tensor:
    """Which groups' images differ by more than rounding: [prompts, group] -> bool [prompts].

    `size` [prompts, 1]: size of the values that were rounded; by default the largest |reward| of
    each group.
    """
    values = rewards.double()
    size = values.abs().amax(1, keepdim=True) if size is None else size
    spread = values.amax(1) - values.amin(1)
    return spread > ROUNDING * size[:, 0]


def best_and_worst(advantages: Tensor, k: int) -> Tensor:
    """The images with the k largest and the k smallest advantages of each group, by index.

    [P, N] -> [P, 2 k], ascending. Of equal advantages the lower index is taken. Needs 2 k <= N.
    """
    order = advantages.argsort(dim=1, descending=True, stable=True)
    best = order[:, :k]
    # Ascending among the others, so that equal advantages give the lower index here too.
    rest = advantages.scatter(1, best, float("inf")).argsort(dim=1, stable=True)
    return torch.cat([best, rest[:, :k]], 1).sort(1).values


def _normalise(rewards: Tensor, size: Tensor | None = None) -> Tensor:
    """Advantages of one reward, float64 [prompts, group]; `size` as `has_variance` takes it."""
    low, high = rewards.amin(1, keepdim=True), rewards.amax(1, keepdim=True)
    # Scaled to [0, 1]: squares of very small or large rewards would underflow or overflow.
    scaled = (rewards - low) / (high - low)
    centred = scaled - scaled.mean(1, keepdim=True)
    normalised = centred / (scaled.std(1, keepdim=True) + EPSILON)
    varies = has_variance(rewards, size)[:, None]
    return torch.where(varies, normalised, torch.zeros_like(normalised))
