"""The embedded policy: the scenes' base model as a `Policy`."""

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mixgrpo.catalogue.scenes import weights_file
from mixgrpo.models.time import ExactTime, network_inputs
from mixgrpo.scenes import prompts as scenes
from mixgrpo.scenes.render import SIZE

if TYPE_CHECKING:
    from mixgrpo.scenes.model import ScenesModel

# mixgrpo.scenes.model imports diffusers, which costs seconds; it is imported where it is used.


class ScenesPolicy:
    """Velocity, text encoder and pixels of the scenes. The text encoder is frozen.

    Latents are the pixels themselves, mapped from [0, 1] to [-1, 1]. On the CPU the same inputs
    give the same bytes.
    """

    latent_shape: tuple[int, ...] = (3, SIZE, SIZE)

    def __init__(self, model: "ScenesModel") -> None:
        self.model = model.eval()
        self.model.text.requires_grad_(False)
        self.model.transformer.requires_grad_(True)
        self._time = ExactTime(self.model.transformer.time_text_embed.time_proj)

    @classmethod
    def load(cls, checkpoint: str | None = None, device: str = "cpu") -> Self:
        """The weights in the file `checkpoint`, or the ones that ship with the package.

        ConfigError where the file is missing or holds no scenes model.
        """
        from mixgrpo.scenes.model import load_model

        return cls(load_model(weights_file(checkpoint))).to(device)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        """A randomly initialised model of dim 16 and one block of each kind, for tests."""
        from mixgrpo.scenes.model import TINY, random_model

        return cls(random_model(TINY, seed))

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move to a device, a dtype, or both; in place."""
        self.model.to(device=device, dtype=dtype)
        return self

    @property
    def network(self) -> Module:
        """The FLUX transformer."""
        network: Module = self.model.transformer
        return network

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text` [B, 8, dim] and `pooled` [B, dim]. ValueError naming a prompt that is not of the
        scenes."""
        from mixgrpo.scenes.model import word_indices

        words = word_indices(prompts).to(self.model.text.positions.device)
        with torch.no_grad():
            text, pooled = self.model.text(words)
        return {"text": text, "pooled": pooled}

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, conditioning: dict[str, Tensor]
    ) -> Tensor:
        """v = eps - x0 at latents [B, 3, 16, 16] with sigma in [0, 1]: a number, [] or [B].

        Returns [B, 3, 16, 16] in the dtype of `latents`. Sigma itself is the model's time.
        """
        x, time = network_inputs(latents, sigma, self.model.transformer.proj_out.weight.dtype)
        self._time.set(time)
        text, pooled = (conditioning[k].to(x.dtype) for k in ("text", "pooled"))
        return self.model.velocity(x, time, text, pooled).to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, 16, 16] in [0, 1] of latents at sigma = 0, clamped."""
        return ((latents + 1) / 2).clamp(0, 1)

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The transformer's trained parameters by name, in the order of the model."""
        named = self.model.transformer.named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def train_prompts(self) -> list[str]:
        return scenes.train_prompts()

    def held_out_prompts(self) -> list[str]:
        return scenes.held_out_prompts()
