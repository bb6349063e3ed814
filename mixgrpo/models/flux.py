"""FLUX.1 (black-forest-labs): dev, whose guidance is an input of the network, and schnell."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.models.diffusion import DiffusersPolicy
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.text import Reading, TextSide, plain, token_counts
from mixgrpo.settings.config import ModelConfig

GUIDANCE = 3.5
"""The default guidance of FLUX.1-dev, as in diffusers' pipeline."""


def _embed(encoders: Any, prompts: list[str], tokens: int, device: str) -> Conditioning:
    text, pooled, _ = encoders.encode_prompt(
        prompt=prompts, prompt_2=None, device=device, max_sequence_length=tokens
    )
    return plain({"text": text, "pooled": pooled})


def _readings(encoders: Any, prompts: list[str], tokens: int) -> list[Reading]:
    clip = encoders.tokenizer
    return [
        Reading("CLIP", encoders.tokenizer_max_length, token_counts(clip, prompts)),
        Reading("T5", tokens, token_counts(encoders.tokenizer_2, prompts)),
    ]


class FluxPolicy(DiffusersPolicy):
    """`diffusers.FluxPipeline`. Conditioning: `text` [B, tokens, 4096] of T5, `pooled` [B, 768]
    of CLIP."""

    pipeline_class: ClassVar[str] = "FluxPipeline"
    side: ClassVar[TextSide] = TextSide(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), _embed, _readings
    )

    @classmethod
    def check(cls, model: ModelConfig, transformer: dict[str, Any]) -> None:
        if model.guidance is not None and not transformer.get("guidance_embeds", False):
            raise ConfigError(
                f"model.guidance {model.guidance:g}: {model.checkpoint} reads no guidance "
                "(FLUX.1-schnell does not); leave it out"
            )

    @classmethod
    def token_limits(cls, transformer: dict[str, Any]) -> tuple[int, int]:
        # schnell was trained with 256 tokens (its model card), and dev with 512.
        return (512, 512) if transformer.get("guidance_embeds", False) else (256, 256)

    def _predict(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        text = conditioning["text"]
        guidance = None
        if self._network.config.guidance_embeds:
            asked = self.model.guidance
            guidance = torch.full((len(x),), GUIDANCE if asked is None else asked, device=x.device)
        (tokens,) = self._network(
            hidden_states=pack(x),
            encoder_hidden_states=text,
            pooled_projections=conditioning["pooled"],
            timestep=time,
            img_ids=_positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            guidance=guidance,
            return_dict=False,
        )
        return unpack(tokens, x.shape[-2])


def _positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(0, row, column) of every token, row by row: [rows * columns, 3]."""
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, column], -1).float()


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 * W/2, 4 C]: one token per 2 x 2 latents, channel by channel."""
    x: Tensor = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse of `pack`, for latents of this height."""
    x: Tensor = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, -1))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
