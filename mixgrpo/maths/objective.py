"""The clipped policy objective of GRPO (MixGRPO Eq. 6; Schulman et al. 2017, Eq. 7)."""

from typing import Literal

import torch
from torch import Tensor


def clipped_terms(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) of every entry; ratio = exp(log_ratio).

    Exactly 0, with gradient 0, where A = 0, whatever the ratio: also where it overflows, which
    would make it 0 times infinity. Where the ratio is clipped the gradient is 0 too, for the same
    reason not by a product. An overflow in the direction that the clip does not bound (A < 0) is
    an infinite loss, and no update is made of it.
    """
    with torch.no_grad():
        ratio = log_ratio.exp()
        flat = (advantages == 0) | torch.where(
            advantages > 0, ratio > 1 + clip_range, ratio < 1 - clip_range
        )
        bound = ratio.clamp(1 - clip_range, 1 + clip_range)
    acting = torch.where(flat, torch.zeros_like(log_ratio), log_ratio).exp()
    return -advantages * torch.where(flat, bound, acting)


def guarded_log_ratio(log_ratio: Tensor, mean: Tensor, mean_old: Tensor, std: Tensor) -> Tensor:
    """GRPO-Guard's normalised log-ratio [B] (arXiv 2510.22319), for every sample by itself.

        (log_ratio + mean over elements of (mean - mean_old)^2 / (2 std^2)) std

    Its expectation under the rollout policy is 0 and its size is that of the change of the mean at
    every noise level, neither of which holds for the plain one. log_ratio [B]; mean, mean_old
    [B, ...]; std [] or [B], on the CPU. Zero where std = 0.
    """
    noise = torch.where(std > 0, std, torch.ones_like(std)).to(log_ratio.dtype)
    if noise.dim():
        noise, std = noise.to(log_ratio.device), std.to(log_ratio.device)
    bias = (mean - mean_old).square().flatten(1).mean(1) / (2 * noise**2)
    return (log_ratio + bias) * noise * (std > 0)


def kl_step_weights(
    kind: Literal["exact", "flow-grpo"], kernel: Literal["flow", "dance", "cps"], dts: list[float]
) -> list[float]:
    """What the exact KL of each trained step is multiplied by, in the unit that beta refers to.

    * exact: 1. The KL is mean (mean - mean_ref)^2 / (2 std^2), std = g sqrt(-dt).
    * flow-grpo: Flow-GRPO's code for images (arXiv 2505.05470) divides by 2 g^2 instead, which is
      -dt times the exact KL. The std of cps has no dt: there the two are the same.

    `dts` are negative.
    """
    return [-dt if kind == "flow-grpo" and kernel != "cps" else 1.0 for dt in dts]


def step_weights(
    kind: Literal["none", "noise", "inverse-dt"], stds: list[float], dts: list[float]
) -> list[float]:
    """Weight of each trained step's loss, with mean 1 over the steps.

    * noise: in proportion to the step's std (TempFlow-GRPO, arXiv 2508.04324: as much as a step
      explores).
    * inverse-dt: in proportion to 1 / -dt (the gradient re-weighting of GRPO-Guard).

    `dts` are negative. Equal weights where no step has noise.
    """
    raw = {
        "none": [1.0] * len(stds),
        "noise": stds,
        "inverse-dt": [-1 / dt for dt in dts],
    }[kind]
    total = sum(raw)
    return [value * len(raw) / total for value in raw] if total else [1.0] * len(raw)
