"""Qwen-Image (Qwen): a language model reads the prompt, guidance keeps the velocity's length."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixgrpo.models.diffusion import DiffusersPolicy
from mixgrpo.models.flux import pack, unpack
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.text import Reading, TextSide, plain, token_counts


def _embed(encoders: Any, prompts: list[str], tokens: int, device: str) -> Conditioning:
    """Padded to `tokens`, so that a prompt's row does not depend on the prompts beside it."""
    text, mask = encoders.encode_prompt(prompt=prompts, device=device, max_sequence_length=tokens)
    if mask is None:  # all prompts have the same length
        mask = text.new_ones(text.shape[:2], dtype=torch.long)
    room = tokens - text.shape[1]
    return plain({"text": pad(text, (0, 0, 0, room)), "mask": pad(mask, (0, room)).bool()})


def _readings(encoders: Any, prompts: list[str], tokens: int) -> list[Reading]:
    texts = [encoders.prompt_template_encode.format(prompt) for prompt in prompts]
    begin = encoders.prompt_template_encode_start_idx
    lengths = [n - begin for n in token_counts(encoders.tokenizer, texts)]
    return [Reading("Qwen2.5-VL", tokens, lengths)]


class QwenImagePolicy(DiffusersPolicy):
    """`diffusers.QwenImagePipeline`. Conditioning: `text` [B, tokens, 3584], `mask` [B, tokens].

    Guidance is the pipeline's: v_neg + cfg (v - v_neg), scaled so that every token of the velocity
    has the norm of v's. The negative prompt is " ", as in the authors' example. The schedule is not
    stretched to shift_terminal (`schedule_shift`).
    """

    pipeline_class: ClassVar[str] = "QwenImagePipeline"
    side: ClassVar[TextSide] = TextSide(("text_encoder", "tokenizer"), _embed, _readings)
    negative: ClassVar[str] = " "

    @classmethod
    def token_limits(cls, transformer: dict[str, Any]) -> tuple[int, int]:
        return 1024, 512

    def _predict(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        (tokens,) = self._network(
            hidden_states=pack(x),
            encoder_hidden_states=conditioning["text"],
            encoder_hidden_states_mask=conditioning["mask"],
            timestep=time,
            img_shapes=[[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x),
            return_dict=False,
        )
        return unpack(tokens, x.shape[-2])

    def _guide(self, unguided: Tensor, prompted: Tensor) -> Tensor:
        guided = pack(super()._guide(unguided, prompted))
        length = pack(prompted).norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return unpack(guided * length, prompted.shape[-2])

    def _pixels(self, latents: Tensor) -> Tensor:
        settings = self._vae.config
        mean, std = (
            latents.new_tensor(values).view(-1, 1, 1)
            for values in (settings.latents_mean, settings.latents_std)
        )
        plain_latents = (latents * std + mean).unsqueeze(2).to(self._vae.dtype)  # one frame
        images: Tensor = self._vae.decode(plain_latents, return_dict=False)[0]
        return images[:, :, 0]
