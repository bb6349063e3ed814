"""What policies around a text-to-image pipeline of diffusers share: FLUX, SD3, Qwen-Image.

The parts are classes of diffusers and transformers with the published weights. The transformer is
the network that is trained; the VAE and the text encoders are frozen.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.models.attention import set_attention
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.sizes import PATCH, image_size, latent_channels, schedule_shift, vae_factor
from mixgrpo.models.text import NEGATIVE, PromptEncoder, TextSide
from mixgrpo.models.time import ExactTime, network_inputs
from mixgrpo.settings.config import ComputeConfig, ModelConfig

_TILE = 1024
"""Pixels on a side of a tile for a VAE without a native size: the native size of Qwen-Image."""


class DiffusersPolicy:
    """Velocity, latents and images of one pipeline at one resolution.

    Latents are the VAE's, scaled and shifted as its configuration says, not packed into tokens. A
    subclass says how its transformer is called.
    """

    pipeline_class: ClassVar[str]
    side: ClassVar[TextSide]
    negative: ClassVar[str] = ""
    """The negative prompt of classifier-free guidance."""

    def __init__(
        self,
        network: Any,
        vae: Any,
        scheduler: dict[str, Any],
        text: PromptEncoder,
        model: ModelConfig,
        compute: ComputeConfig,
        device: str = "cpu",
    ) -> None:
        """network, vae: in their final dtypes, on any device. scheduler: its configuration."""
        self.model = model
        height, width = image_size(model, dict(network.config), dict(vae.config))
        factor = vae_factor(dict(vae.config))
        self.latent_shape: tuple[int, ...] = (
            latent_channels(dict(vae.config)),
            height // factor,
            width // factor,
        )
        self.dynamic_shift = schedule_shift(scheduler, self.image_tokens)
        """Time shift of the pipeline's schedule at this resolution: `schedule_shift`."""
        self._cfg = model.cfg or 1.0
        self._text, self._device, self._offload = text, device, compute.offload
        self._vae = vae.eval().requires_grad_(False).to("cpu" if compute.offload else device)
        if compute.vae_tiling:
            _tile(vae)
            vae.enable_slicing()
        self._network = network.eval().requires_grad_(True).to(device)
        if compute.attention:
            set_attention(network, compute.attention)
        # The whole embedding, not its time_proj: FLUX's guidance goes through the same time_proj.
        self._time = ExactTime(network.time_text_embed)
        # Qwen-Image multiplies by 1000 in the projection, the others before.
        self._time_scale = float(network.time_text_embed.time_proj.scale)

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        compute: ComputeConfig,
        device: str = "cpu",
        embeddings: Path | None = None,
    ) -> Self:
        """The pipeline `model.checkpoint`, a folder or a name on the hub, without text encoders.

        The network is in bfloat16 where it is frozen and precision is bf16, else in float32; the
        VAE and the text encoders, once they are loaded, are in the precision. `embeddings`: the
        folder where embeddings are stored; none: they are not stored. ConfigError where parts are
        missing, belong to another model, or do not support a setting.
        """
        rest = ("transformer", "vae", "scheduler")
        negative = cls.negative if (model.cfg or 1.0) > 1 else None
        pipeline, text = cls._open(model, compute, device, embeddings, rest, negative)
        image_size(model, pipeline.settings("transformer"), pipeline.settings("vae"))
        precision = _precision(compute)
        return cls(
            pipeline.load("transformer", precision if model.train == "lora" else torch.float32),
            pipeline.load("vae", precision),
            pipeline.settings("scheduler"),
            text,
            model,
            compute,
            device,
        )

    @classmethod
    def text_only(
        cls,
        model: ModelConfig,
        compute: ComputeConfig,
        device: str = "cpu",
        embeddings: Path | None = None,
    ) -> PromptEncoder:
        """The prompt encoder that `load` would make, without the network and the VAE.

        It encodes the negative prompt too where the model supports guidance, so that embeddings
        that are prepared in advance also serve runs with guidance.
        """
        guided = "cfg" in DIFFUSION.get(model.name, ()) or (model.cfg or 1.0) > 1
        negative = cls.negative if guided else None
        return cls._open(model, compute, device, embeddings, (), negative)[1]

    @classmethod
    def check_folder(cls, model: ModelConfig) -> None:
        """ConfigError where the folder `model.checkpoint` is no such pipeline or does not support a
        setting; no weights are read."""
        parts = ("transformer", "vae", "scheduler", *cls.side.parts)
        pipeline = Pipeline.find(str(model.checkpoint), None, cls.pipeline_class, parts)
        settings = pipeline.settings("transformer")
        cls.check(model, settings)
        cls._tokens(model, settings)
        image_size(model, settings, pipeline.settings("vae"))

    @classmethod
    def _tokens(cls, model: ModelConfig, transformer: dict[str, Any]) -> int:
        """Tokens of a prompt that are read. ConfigError for more than the model can read."""
        most, tokens = cls.token_limits(transformer)
        if model.text_tokens is not None and model.text_tokens > most:
            raise ConfigError(
                f"model.text_tokens {model.text_tokens}: this model reads at most {most}"
            )
        return model.text_tokens or tokens

    @classmethod
    def _open(
        cls,
        model: ModelConfig,
        compute: ComputeConfig,
        device: str,
        embeddings: Path | None,
        rest: tuple[str, ...],
        negative: str | None,
    ) -> tuple[Pipeline, PromptEncoder]:
        """The pipeline with its text parts and the parts `rest`, and its prompt encoder."""
        if model.checkpoint is None:
            raise ConfigError("model.checkpoint is missing; name a folder or a repository")
        pipeline = Pipeline.find(
            model.checkpoint, model.revision, cls.pipeline_class, (*rest, *cls.side.parts)
        )
        if "transformer" not in rest:
            # Its configuration has the number of tokens, and the width of an absent encoder.
            weights.file(
                model.checkpoint, "transformer/config.json", model.revision, "model.checkpoint"
            )
        settings = pipeline.settings("transformer")
        cls.check(model, settings)
        text = PromptEncoder(
            pipeline,
            cls.side,
            cls._tokens(model, settings),
            _precision(compute),
            device,
            embeddings,
            negative,
        )
        return pipeline, text

    @classmethod
    def check(cls, model: ModelConfig, transformer: dict[str, Any]) -> None:
        """ConfigError for a setting that a transformer of this configuration does not support."""

    @classmethod
    def token_limits(cls, transformer: dict[str, Any]) -> tuple[int, int]:
        """The most tokens of a prompt, and the default number."""
        raise NotImplementedError

    def _predict(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity at latents x in the network's dtype; time [B] is sigma."""
        raise NotImplementedError

    @property
    def network(self) -> Module:
        """The transformer."""
        network: Module = self._network
        return network

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the transformer."""
        return self.latent_shape[1] * self.latent_shape[2] // PATCH**2

    @property
    def embedding_identity(self) -> str:
        """What the embeddings of prompts depend on: encoders, tokens, dtype."""
        return self._text.identity

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning with a row per prompt; with classifier-free guidance also rows of the
        negative prompt."""
        return self._text.encode(prompts)

    def prepare(
        self, prompts: list[str], say: Callable[[str], None], share: tuple[int, int] = (0, 1)
    ) -> None:
        """Encode and store those of the k-th of n shares of `prompts`, (k, n), that are not stored
        yet."""
        self._text.prepare(prompts, say, share)

    def unprepared(self, prompts: list[str]) -> list[str]:
        """Those of `prompts`, and the negative one, whose embeddings this process cannot read.

        After every rank has prepared its share there are some only if ranks share no folder.
        """
        return self._text.missing(prompts)

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        """v = eps - x0 at latents [B, C, H/8, W/8], sigma a number, [] or [B]; like `latents`.

        With guidance v_neg + cfg (v - v_neg) (Ho and Salimans 2022), both in one forward: the
        network then sees 2 B latents, twice the limit of compute.micro_batch.
        """
        x, time = network_inputs(latents, sigma, self._network.proj_out.weight.dtype)
        text = conditioning
        if not torch.is_autocast_enabled(latents.device.type):
            text = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in text.items()}
        if self._cfg == 1:
            return self._exact(x, time, text).to(latents.dtype)
        both = {
            name: torch.cat([text[NEGATIVE + name], value])
            for name, value in text.items()
            if not name.startswith(NEGATIVE)
        }
        unguided, prompted = self._exact(x.repeat(2, 1, 1, 1), time.repeat(2), both).chunk(2)
        return self._guide(unguided.to(latents.dtype), prompted.to(latents.dtype))

    def _exact(self, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        self._time.set(time / self._time_scale)
        return self._predict(x, time, conditioning)

    def _guide(self, unguided: Tensor, prompted: Tensor) -> Tensor:
        return unguided + self._cfg * (prompted - unguided)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] in float32 of latents at sigma = 0, clamped."""
        if self._offload:
            self._vae.to(self._device)
        try:
            images = self._pixels(latents)
        finally:
            if self._offload:
                self._vae.to("cpu")
        return ((images.float() + 1) / 2).clamp(0, 1)

    def _pixels(self, latents: Tensor) -> Tensor:
        """Latents decoded by the VAE: [B, 3, H, W] in about [-1, 1]."""
        settings = self._vae.config
        plain = latents / settings.scaling_factor + (settings.shift_factor or 0.0)
        images: Tensor = self._vae.decode(plain.to(self._vae.dtype), return_dict=False)[0]
        return images

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The transformer's trained parameters by name, in the order of the model."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    def train_prompts(self) -> list[str]:
        raise ConfigError("set prompts.train to a file of prompts: this model brings none")

    def held_out_prompts(self) -> list[str]:
        raise ConfigError("set prompts.held_out to a file of prompts: this model brings none")


def _precision(compute: ComputeConfig) -> torch.dtype:
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def _tile(vae: Any) -> None:
    """Decode in tiles that change nothing up to the pipeline's native image size.

    AutoencoderKL's tiles are as large as its configuration's sample_size, 1024 for FLUX and SD3.
    AutoencoderKLQwenImage's default to 256 pixels, which leaves seams in every image of 1024; here
    they have the native size and overlap by a quarter, as in its default.
    """
    if hasattr(vae, "tile_sample_min_height"):
        vae.enable_tiling(_TILE, _TILE, _TILE * 3 // 4, _TILE * 3 // 4)
    else:
        vae.enable_tiling()
