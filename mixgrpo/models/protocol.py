"""The interface between the trainer and a model: encode prompts, predict the velocity, decode."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter


Conditioning = dict[str, "Tensor"]
"""Encoded prompts: tensors by name, each with the batch first."""


class Policy(Protocol):
    """A flow-matching text-to-image model, as the trainer uses it."""

    latent_shape: tuple[int, ...]
    """Shape of one latent, without the batch."""

    @property
    def network(self) -> "Module":
        """The network that predicts the velocity; it is trained, adapted, sharded and compiled.

        `velocity` must call it as a module, `network(...)`: sharding and compilation hook into
        that call.
        """
        ...

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning with one row per prompt."""
        ...

    def velocity(
        self, latents: "Tensor", sigma: "float | Tensor", conditioning: Conditioning
    ) -> "Tensor":
        """v = eps - x0 at `latents` [B, ...] and sigma (one number, or [B]); like `latents`."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """Images [B, 3, H, W] in [0, 1] of latents at sigma = 0."""
        ...

    def trainable_parameters(self) -> "dict[str, Parameter]":
        """The parameters of `network` that require a gradient, by name, in a fixed order."""
        ...

    def train_prompts(self) -> list[str]:
        """Prompts to train on."""
        ...

    def held_out_prompts(self) -> list[str]:
        """Prompts that are never trained on, for evaluation."""
        ...
