"""Sigma grids of a trajectory: 1 is pure noise, 0 the image."""

import torch
from torch import Tensor


def shift_times(t: Tensor, shift: float) -> Tensor:
    """sigma = s t / (1 + (s - 1) t) for unshifted times t in [0, 1]; s = `shift`.

    Esser et al. 2024 (SD3), Eq. 23. (MixGRPO prints the denominator with the other sign.)
    """
    # Written so that t = 1 gives exactly 1 for every shift, on which steps rely.
    return shift * t / (shift * t + (1 - t))


def sigma_schedule(steps: int, shift: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The grid sigma_0 = 1 > ... > sigma_T = 0 of T = `steps` steps, uniform in unshifted time.

    Returns [steps + 1]. Computed in float64, then rounded to `dtype`. ValueError below one step.
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, not {steps}")
    return shift_times(_times(steps), shift).to(dtype)


def head_schedule(
    steps: int, end: int, head_steps: int, shift: float = 3.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A grid of `head_steps` steps from sigma = 1 to step `end` of a T-step schedule.

    Uniform in unshifted time from 1 to t_end, then shifted. Returns [head_steps + 1]; its last
    entry is sigma_schedule(steps, shift)[end].
    """
    if not 0 < end <= steps or head_steps < 1:
        raise ValueError(f"no head of {head_steps} steps to step {end} of {steps}")
    last = _times(steps)[end]
    return shift_times(last + (1 - last) * _times(head_steps), shift).to(dtype)


def tail_schedule(
    steps: int, begin: int, tail_steps: int, shift: float = 3.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A grid of `tail_steps` steps from step `begin` of a T-step schedule to sigma = 0.

    Uniform in unshifted time from t_begin to 0, then shifted (MixGRPO-Flash). Returns
    [tail_steps + 1]; its first entry is sigma_schedule(steps, shift)[begin].
    """
    if not 0 <= begin < steps or tail_steps < 1:
        raise ValueError(f"no tail of {tail_steps} steps from step {begin} of {steps}")
    return shift_times(_times(steps)[begin] * _times(tail_steps), shift).to(dtype)


def _times(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
