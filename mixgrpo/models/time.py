"""The exact time for transformers of diffusers, which round it to the dtype of their activations.

In bf16 the rounding is to multiples of 4 of 1000 near sigma = 1: the network could not distinguish
neighbouring steps of a schedule.
"""

import torch
from torch import Tensor, nn


def network_inputs(
    latents: Tensor, sigma: float | Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Latents [B, ...] in the network's `dtype`, and sigma (a number, [] or [B]) as [B] in float32
    or better on their device. Under autocast, which casts by itself, latents keep their dtype."""
    if torch.is_autocast_enabled(latents.device.type):
        dtype = latents.dtype
    x, exact = latents.to(dtype), torch.promote_types(dtype, torch.float32)
    if not isinstance(sigma, Tensor):
        # Filled on the device: copying a number to it would wait for its pending work.
        sigma = torch.full((), sigma, dtype=exact, device=x.device)
    return x, sigma.to(x.device, exact).expand(len(x))


class ExactTime:
    """Replaces the first argument, the time, of a module of diffusers by the sigma that was set.

    `embedding`: `time_text_embed.time_proj`; or `time_text_embed` itself where something else goes
    through the same projection, as the guidance of FLUX does.
    """

    def __init__(self, embedding: nn.Module) -> None:
        self._sigma: Tensor | None = None
        embedding.register_forward_pre_hook(self._replace)

    def set(self, sigma: Tensor) -> None:
        """Set the sigma [B] of the next forward, in float32 or better."""
        self._sigma = sigma

    def _replace(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # diffusers' time is 1000 sigma.
        return args if self._sigma is None else (self._sigma * 1000, *args[1:])
