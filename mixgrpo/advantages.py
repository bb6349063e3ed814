"""How much better an image is than its group, for one or several rewards (MixGRPO Eq. 8)."""

from typing import Literal

import torch
from torch import Tensor

from mixgrpo.steps import wide

EPSILON = 1e-8


def group_advantages(
    rewards: dict[str, Tensor],
    weights: dict[str, float],
    aggregate: Literal["sum", "mean", "reward"] = "sum",
) -> Tensor:
    """Advantages [prompts, group] of rewards [prompts, group] by name.

    Per reward k and group: A_k = (R_k - mean) / (std + eps), std with N - 1 degrees of freedom; a
    group without variance in a reward gets exactly 0 for it.

    * sum: A = sum_k w_k A_k (the paper). mean: that over the number of rewards (released code).
    * reward: one normalisation of sum_k w_k R_k, in which a reward of larger scale weighs more.

    ValueError where rewards and weights do not have the same names.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(f"rewards {sorted(rewards)} do not match weights {sorted(weights)}")
    # Summed in the order of the names, so that the order of a dict changes no bit.
    names = sorted(rewards)
    if aggregate == "reward":
        return _normalise(torch.stack([weights[k] * wide(rewards[k]) for k in names]).sum(0))
    total = torch.stack([weights[k] * _normalise(wide(rewards[k])) for k in names]).sum(0)
    return total / len(names) if aggregate == "mean" else total


def has_variance(rewards: Tensor) -> Tensor:
    """Which groups tell their images apart: [prompts, group] -> bool [prompts]."""
    return (rewards != rewards[:, :1]).any(1)


def best_and_worst(advantages: Tensor, k: int) -> Tensor:
    """The images with the k largest and the k smallest advantages of each group, by index.

    [P, N] -> [P, 2 k], ascending. Of equal ones the lower index is taken. Needs 2 k <= N.
    """
    order = advantages.argsort(dim=1, descending=True, stable=True)
    best = order[:, :k]
    # Ascending among the others, so that equal advantages give the lower index here too.
    rest = advantages.scatter(1, best, float("inf")).argsort(dim=1, stable=True)
    return torch.cat([best, rest[:, :k]], 1).sort(1).values


def _normalise(rewards: Tensor) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    normalised = centred / (rewards.std(1, keepdim=True) + EPSILON)
    # The mean of equal numbers may differ from them in the last bit; eps would blow that up.
    return torch.where(has_variance(rewards)[:, None], normalised, torch.zeros_like(normalised))
