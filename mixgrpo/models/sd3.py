"""Stable Diffusion 3 and 3.5 (stabilityai), medium and large: they differ in configuration only."""

from typing import Any, ClassVar

from torch import Tensor

from mixgrpo.models.diffusion import DiffusersPolicy
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.text import Reading, TextSide, plain, token_counts


def _embed(encoders: Any, prompts: list[str], tokens: int, device: str) -> Conditioning:
    text, _, pooled, _ = encoders.encode_prompt(
        prompt=prompts,
        prompt_2=None,
        prompt_3=None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=tokens,
    )
    return plain({"text": text, "pooled": pooled})


def _readings(encoders: Any, prompts: list[str], tokens: int) -> list[Reading]:
    # Both CLIPs read the same tokens.
    clip = token_counts(encoders.tokenizer, prompts)
    readings = [Reading("CLIP", encoders.tokenizer_max_length, clip)]
    if encoders.tokenizer_3 is not None:
        readings.append(Reading("T5", tokens, token_counts(encoders.tokenizer_3, prompts)))
    return readings


class SD3Policy(DiffusersPolicy):
    """`diffusers.StableDiffusion3Pipeline`, in which T5 may be absent: its rows are then zeros.

    Conditioning: `text` [B, 77 + tokens, 4096], both CLIPs beside each other and T5 behind them;
    `pooled` [B, 2048]. With `model.cfg` above 1 a forward is of twice as many latents.
    """

    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    side: ClassVar[TextSide] = TextSide(
        (
            "text_encoder",
            "tokenizer",
            "text_encoder_2",
            "tokenizer_2",
            "text_encoder_3",
            "tokenizer_3",
        ),
        _embed,
        _readings,
    )

    @classmethod
    def token_limits(cls, transformer: dict[str, Any]) -> tuple[int, int]:
        return 512, 256

    def _predict(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        output: tuple[Tensor] = self._network(
            hidden_states=x,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
            timestep=1000 * time,
            return_dict=False,
        )
        return output[0]
