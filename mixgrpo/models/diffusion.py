"""What policies around a text-to-image pipeline of diffusers share: FLUX, SD3, Qwen-Image.

The parts are diffusers' own classes with their own weights: the transformer is the network that is
trained; the VAE and the text encoders stay as they are.
"""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.text import NEGATIVE, PromptEncoder, TextSide
from mixgrpo.models.time import ExactTime
from mixgrpo.settings.config import ComputeConfig, ModelConfig

_PATCH = 2
"""Latents on a side of one token, in all three families."""
_TILE = 1024
"""Pixels on a side of a tile where the VAE's configuration says nothing: Qwen-Image's own size."""


class DiffusersPolicy:
    """Velocity, latents and images of one pipeline at one resolution.

    Latents are those that the VAE decodes, scaled and shifted as its configuration says, not
    packed into tokens. A subclass says how its transformer is called.
    """

    pipeline_class: ClassVar[str]
    side: ClassVar[TextSide]
    negative: ClassVar[str] = ""
    """The prompt that classifier-free guidance leads away from."""

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
        """`network` and `vae` in their dtypes, on any device; `scheduler`: its configuration."""
        self.model = model
        height, width = image_size(model, dict(network.config), dict(vae.config))
        factor = vae_factor(dict(vae.config))
        self.latent_shape: tuple[int, ...] = (
            latent_channels(dict(vae.config)),
            height // factor,
            width // factor,
        )
        self.dynamic_shift = schedule_shift(scheduler, self.image_tokens)
        """Time shift of the pipeline's own schedule at this resolution: `schedule_shift`."""
        self._cfg = model.cfg or 1.0
        self._text, self._device, self._offload = text, device, compute.offload
        self._vae = vae.eval().requires_grad_(False).to("cpu" if compute.offload else device)
        if compute.vae_tiling:
            _tile(vae)
            vae.enable_slicing()
        self._network = network.eval().requires_grad_(True).to(device)
        if compute.attention:
            set_attention(network, compute.attention)
        # The whole embedding, not its time_proj: FLUX's guidance goes through the same one.
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
        VAE and the text encoders, when they come, in the precision. `embeddings`: the folder of
        embeddings; none keeps none. ConfigError where parts are missing, of another model, or do
        not take a setting.
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
        """What `load` would encode prompts with, without the network and the VAE.

        The negative prompt comes with the others wherever the model takes guidance: what is
        encoded ahead serves runs with it, too.
        """
        guided = "cfg" in DIFFUSION.get(model.name, ()) or (model.cfg or 1.0) > 1
        negative = cls.negative if guided else None
        return cls._open(model, compute, device, embeddings, (), negative)[1]

    @classmethod
    def check_folder(cls, model: ModelConfig) -> None:
        """ConfigError where the folder `model.checkpoint` is no such pipeline or does not take a
        setting; no weights are read."""
        parts = ("transformer", "vae", "scheduler", *cls.side.parts)
        pipeline = Pipeline.find(str(model.checkpoint), None, cls.pipeline_class, parts)
        settings = pipeline.settings("transformer")
        cls.check(model, settings)
        cls._tokens(model, settings)
        image_size(model, settings, pipeline.settings("vae"))

    @classmethod
    def _tokens(cls, model: ModelConfig, transformer: dict[str, Any]) -> int:
        """Tokens of a prompt that are read. ConfigError for more than the model can."""
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
        """The pipeline with its text parts and the `rest`, and what encodes prompts."""
        if model.checkpoint is None:
            raise ConfigError("model.checkpoint is missing; name a folder or a repository")
        place = (model.checkpoint, model.revision)
        pipeline = Pipeline.find(*place, cls.pipeline_class, (*rest, *cls.side.parts))
        if "transformer" not in rest:
            # It says how many tokens are read, and how wide an absent encoder is.
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
        """ConfigError for a setting that a transformer of this configuration does not take."""

    @classmethod
    def token_limits(cls, transformer: dict[str, Any]) -> tuple[int, int]:
        """The most tokens of a prompt, and how many where nothing is said."""
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
        return self.latent_shape[1] * self.latent_shape[2] // _PATCH**2

    @property
    def embedding_identity(self) -> str:
        """What the embeddings of prompts depend on."""
        return self._text.identity

    def encode(self, prompts: list[str]) -> Conditioning:
        """A row per prompt; with classifier-free guidance also those of the negative prompt."""
        return self._text.encode(prompts)

    def prepare(
        self, prompts: list[str], say: Callable[[str], None], share: tuple[int, int] = (0, 1)
    ) -> None:
        """Encode and keep what is not kept yet of the k-th of n shares of `prompts`, (k, n)."""
        self._text.prepare(prompts, say, share)

    def unprepared(self, prompts: list[str]) -> list[str]:
        """Those of `prompts`, and the negative one, whose embeddings this process cannot see.

        After every rank has prepared its share there is one only where ranks share no folder.
        """
        return self._text.lacking(prompts)

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        """v = eps - x0 at latents [B, C, H/8, W/8], sigma a number, [] or [B]; like `latents`.

        With guidance v_neg + cfg (v - v_neg) (Ho and Salimans 2022), both in one forward of 2 B:
        whoever limits B (compute.micro_batch) has twice as many in the network.
        """
        dtype = self._network.proj_out.weight.dtype
        text = conditioning
        if torch.is_autocast_enabled(latents.device.type):
            dtype = latents.dtype  # autocast lowers what may be lowered; sigma may not
        else:
            text = {k: v.to(dtype) if v.is_floating_point() else v for k, v in text.items()}
        x = latents.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        # Filled on the device: a copy of a number would wait for what the device still has to do.
        given = (
            sigma
            if isinstance(sigma, Tensor)
            else torch.full((), sigma, dtype=exact, device=x.device)
        )
        time = given.to(x.device, exact).expand(len(x))
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
        self._time.tell(time / self._time_scale)
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
        """What the VAE makes of latents: [B, 3, H, W] in about [-1, 1]."""
        settings = self._vae.config
        plain = latents / settings.scaling_factor + (settings.shift_factor or 0.0)
        images: Tensor = self._vae.decode(plain.to(self._vae.dtype), return_dict=False)[0]
        return images

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The transformer's trained parameters by name, in the order of the model."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    def train_prompts(self) -> list[str]:
        raise ConfigError("set prompts.train to a file of prompts: this model has none of its own")

    def held_out_prompts(self) -> list[str]:
        raise ConfigError(
            "set prompts.held_out to a file of prompts: this model has none of its own"
        )


def _precision(compute: ComputeConfig) -> torch.dtype:
    return torch.bfloat16 if compute.precision == "bf16" else torch.float32


def _tile(vae: Any) -> None:
    """Decode in tiles that change nothing up to the size of the pipeline's own images.

    AutoencoderKL's are as large as its configuration's sample_size, 1024 for FLUX and SD3.
    AutoencoderKLQwenImage's are of 256 pixels unless told, with seams in every real image; they
    overlap by a quarter, as there.
    """
    if hasattr(vae, "tile_sample_min_height"):
        vae.enable_tiling(_TILE, _TILE, _TILE * 3 // 4, _TILE * 3 // 4)
    else:
        vae.enable_tiling()


def vae_factor(vae: dict[str, Any]) -> int:
    """Pixels on a side of one latent, from the VAE's configuration."""
    if "temperal_downsample" in vae:  # as diffusers spells it
        return int(2 ** len(vae["temperal_downsample"]))
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def latent_channels(vae: dict[str, Any]) -> int:
    return int(vae["z_dim"] if "z_dim" in vae else vae["latent_channels"])


def image_size(
    model: ModelConfig, transformer: dict[str, Any], vae: dict[str, Any]
) -> tuple[int, int]:
    """Height and width in pixels; where nothing is said the pipeline's own, 1024 for real ones.

    ConfigError naming a size that would do: a token is 2 x 2 latents, and SD3's learned positions
    end at `pos_embed_max_size` tokens.
    """
    factor = vae_factor(vae)
    unit = _PATCH * factor
    most = transformer.get("pos_embed_max_size", 2**16) * unit
    own = transformer.get("sample_size", 128) * factor
    for name, asked in (("height", model.height), ("width", model.width)):
        nearest = min(max(unit, round((asked or own) / unit) * unit), most)
        if asked is not None and asked != nearest:
            limit = f"a multiple of {unit}" if asked % unit else f"at most {most}"
            raise ConfigError(f"model.{name} {asked}: must be {limit}; {nearest} is nearest")
    return model.height or own, model.width or own


def schedule_shift(scheduler: dict[str, Any], image_tokens: int) -> float:
    """The time shift s of a FlowMatchEulerDiscreteScheduler, for `sigma_schedule(steps, s)`.

    With dynamic shifting exp(mu), mu on a line through (base_image_seq_len, base_shift) and
    (max_image_seq_len, max_shift) at the number of image tokens (diffusers, `calculate_shift`;
    FLUX.1-dev: 256, 0.5 and 4096, 1.15); else the scheduler's static shift.

    The grid is then the one that diffusers makes of sigmas uniform from 1 to 1/T. SD3's pipeline
    spaces its sigmas otherwise unless it is given these, and Qwen-Image's stretches its grid to end
    at shift_terminal; neither is done here.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    begin, end = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - begin) / (end - begin)
    return float(mu if scheduler.get("time_shift_type") == "linear" else exp(mu))


def check_attention(backend: str) -> None:
    """ConfigError for a name that diffusers knows no backend by."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [name.value for name in AttentionBackendName]
    if backend not in known:
        raise ConfigError(f"compute.attention {backend}: not one of {', '.join(known)}")


def set_attention(network: Any, backend: str) -> None:
    """Compute the network's attention by a backend of diffusers. ConfigError where it cannot."""
    check_attention(backend)
    if not any(hasattr(p, "_attention_backend") for p in network.attn_processors.values()):
        raise ConfigError(
            f"compute.attention {backend}: diffusers computes the attention of "
            f"{type(network).__name__} in one way only; leave it out"
        )
    try:
        network.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"compute.attention {backend}: cannot be used here ({text})") from error
