"""The exact time for transformers of diffusers, which round it to the dtype of their activations.

In bf16 that is to 4 of 1000 steps near sigma = 1: neighbours in a schedule would be one to the
network.
"""

from torch import Tensor, nn


class ExactTime:
    """Gives a module of diffusers whose first argument is the time the sigma it is told.

    `time_text_embed.time_proj`, or `time_text_embed` itself where something else goes through the
    same projection, as the guidance of FLUX does.
    """

    def __init__(self, embedding: nn.Module) -> None:
        self._sigma: Tensor | None = None
        embedding.register_forward_pre_hook(self._replace)

    def tell(self, sigma: Tensor) -> None:
        """The sigma [B] of the next forward, in float32 or better."""
        self._sigma = sigma

    def _replace(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # diffusers' time is 1000 sigma.
        return args if self._sigma is None else (self._sigma * 1000, *args[1:])
