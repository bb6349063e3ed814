"""The exact time for transformers of diffusers, which round it to the dtype of their activations.

In bf16 the rounding is to multiples of 4 of 1000 near sigma = 1: the network could not distinguish
neighbouring steps of a schedule.
"""

from torch import Tensor, nn


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
