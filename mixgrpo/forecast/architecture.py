"""What a configuration's model is made of, from the model's config files alone.

Nothing is loaded or downloaded: the files come from a local folder or the hub's cache, and the
sizes of a few models on the hub are written down here. Networks are built on the meta device,
where they have shapes and no memory.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixgrpo.catalogue.models import DIFFUSION, PIPELINES, hub_name
from mixgrpo.catalogue.scenes import weights_file
from mixgrpo.errors import ConfigError
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.settings.config import RunConfig

Json = dict[str, Any]

_FLUX: Json = {"_class_name": "FluxTransformer2DModel"}  # the class's defaults are its sizes
_SD35: Json = {"_class_name": "SD3Transformer2DModel", "qk_norm": "rms_norm"}
_VAE: Json = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_CLIP_L: Json = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_CLIP_G: Json = _CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5_XXL: Json = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
_FLUX_PARTS = {
    "vae": _VAE,
    "text_encoder": _CLIP_L | {"architectures": ["CLIPTextModel"]},
    "text_encoder_2": _T5_XXL,
}
_SD35_PARTS = {
    "vae": _VAE,
    "text_encoder": _CLIP_L,
    "text_encoder_2": _CLIP_G,
    "text_encoder_3": _T5_XXL,
}
KNOWN: dict[str, dict[str, Json]] = {
    "black-forest-labs/FLUX.1-dev": {
        "transformer": _FLUX | {"guidance_embeds": True},
        **_FLUX_PARTS,
    },
    "black-forest-labs/FLUX.1-schnell": {"transformer": _FLUX, **_FLUX_PARTS},
    "stabilityai/stable-diffusion-3.5-medium": {
        "transformer": _SD35
        | {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
        },
        **_SD35_PARTS,
    },
    "stabilityai/stable-diffusion-3.5-large": {
        "transformer": _SD35
        | {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        **_SD35_PARTS,
    },
}
"""The settings that decide the sizes of models on the hub, from their config files there."""

_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_CLIP_TOKENS = 77
"""Tokens of a prompt that SD3's CLIPs contribute, ahead of T5's."""


@dataclass(frozen=True)
class Architecture:
    """A model's networks and the shapes that they are called with."""

    source: str
    """Where these sizes come from, in words."""
    vae: Callable[[], nn.Module] | None
    """Makes the VAE on the meta device; the functions below do the same."""
    encoders: dict[str, Callable[[], nn.Module]]
    """Makes each text encoder, by its folder in the pipeline."""
    policy: Callable[[nn.Module | None], Policy]
    """Makes the model's policy with its network and this VAE."""
    latent_shape: tuple[int, ...]
    """Shape of one latent, without the batch."""
    image: tuple[int, int]
    """Height and width in pixels."""
    conditioning: Callable[[int], Conditioning]
    """Makes the conditioning of this number of prompts."""


def architecture(config: RunConfig) -> Architecture | str:
    """The architecture of `config.model`; or, in a few words, why it is not known.

    ConfigError for a folder that does not hold such a model.
    """
    name = config.model.name
    if name == "scenes":
        return _scenes(config.model.checkpoint)
    if name not in DIFFUSION:
        return f"model {name} is another package's, of which only the evaluations are known"
    parts = _parts(config)
    return parts if isinstance(parts, str) else _diffusion(config, *parts)


def _parts(config: RunConfig) -> tuple[str, dict[str, Json]] | str:
    """The source of the configs of a pipeline's parts, and these configs by part; or why they are
    not known."""
    model = config.model
    checkpoint = str(hub_name(model.name, model.checkpoint))
    local = Path(checkpoint).expanduser()
    if local.is_dir():
        if not (local / "transformer" / "config.json").is_file():
            raise ConfigError(
                f"model.checkpoint {checkpoint}: the folder has no transformer/config.json; name "
                "one that save_pretrained of a diffusers pipeline wrote"
            )
        return f"the config files in {checkpoint}", _read_configs(local)
    if checkpoint.count("/") != 1 or checkpoint[0] in "/.~":
        raise ConfigError(f"model.checkpoint: there is no folder {checkpoint}")
    cached = _cached(checkpoint, model.revision)
    if cached is not None:
        return f"the config files of {checkpoint} in the hub's cache", _read_configs(cached)
    if checkpoint in KNOWN:
        return f"the built-in sizes of {checkpoint}", KNOWN[checkpoint]
    return (
        f"the config files of {checkpoint} are not in the hub's cache, so that only the "
        f'evaluations are known; `hf download {checkpoint} --include "*.json"` gets them'
    )


def _cached(repository: str, revision: str | None) -> Path | None:
    """The repository's folder in the hub's cache; no request is made."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repository, "transformer/config.json", revision=revision)
    return Path(file).parents[1] if isinstance(file, str) else None


def _read_configs(folder: Path) -> dict[str, Json]:
    configs = {}
    for part in _PARTS:
        file = folder / part / "config.json"
        if file.is_file():
            try:
                configs[part] = json.loads(file.read_text())
            except ValueError as error:
                raise ConfigError(f"{file}: is not JSON ({error})") from error
    return configs


def _diffusers_model(config: Json) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import diffusers

        kind = getattr(diffusers, str(config.get("_class_name")), None)
        if kind is None:
            raise ConfigError(
                f"model.checkpoint: its config names the class {config.get('_class_name')}, "
                "which diffusers does not have"
            )
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
        return network.eval()

    return build


def _transformers_model(config: Json) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, config["architectures"][0])
        with torch.device("meta"):
            network: nn.Module = kind(kind.config_class.from_dict(config))
        return network.eval()

    return build


def _diffusion(config: RunConfig, source: str, parts: dict[str, Json]) -> Architecture:
    from mixgrpo.models.diffusion import DiffusersPolicy
    from mixgrpo.models.sizes import image_size, latent_channels, vae_factor
    from mixgrpo.models.text import NEGATIVE

    model, settings, vae = config.model, parts["transformer"], parts.get("vae", _VAE)
    module, _, name = PIPELINES[model.name].partition(":")
    kind: type[DiffusersPolicy] = getattr(importlib.import_module(module), name)
    network = _diffusers_model(settings)
    sizes: Any = network().config
    height, width = image_size(model, dict(sizes), vae)
    factor = vae_factor(vae)
    tokens = model.text_tokens or kind.token_limits(dict(sizes))[1]
    tokens += _CLIP_TOKENS if model.name == "sd3" else 0
    dtype = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32

    def conditioning(prompts: int) -> Conditioning:
        tensors = {"text": torch.zeros(prompts, tokens, sizes.joint_attention_dim, dtype=dtype)}
        if model.name == "qwen-image":
            tensors["mask"] = torch.ones(prompts, tokens, dtype=torch.bool)
        else:
            tensors["pooled"] = torch.zeros(prompts, sizes.pooled_projection_dim, dtype=dtype)
        if (model.cfg or 1.0) > 1:
            tensors |= {f"{NEGATIVE}{key}": value for key, value in tensors.items()}
        return tensors

    # Neither offloading the VAE nor the attention's backend changes a shape.
    compute = config.compute.model_copy(update={"offload": False, "attention": None})

    def policy(decoder: nn.Module | None) -> Policy:
        text: Any = None  # no prompt is encoded here
        result: Policy = kind(network(), decoder, {}, text, model, compute, "meta")
        return result

    return Architecture(
        source=source,
        vae=_diffusers_model(vae),
        encoders={part: _transformers_model(parts[part]) for part in _PARTS[2:] if part in parts},
        policy=policy,
        latent_shape=(latent_channels(vae), height // factor, width // factor),
        image=(height, width),
        conditioning=conditioning,
    )


def _scenes(checkpoint: str | None) -> Architecture:
    from mixgrpo.models.scenes import ScenesPolicy
    from mixgrpo.scenes.model import TOKENS, ScenesModel, read_sizes
    from mixgrpo.scenes.render import SIZE

    sizes = read_sizes(weights_file(checkpoint))

    def policy(decoder: nn.Module | None) -> Policy:
        with torch.device("meta"):
            return ScenesPolicy(ScenesModel(sizes))

    def conditioning(prompts: int) -> Conditioning:
        return {
            "text": torch.zeros(prompts, TOKENS, sizes.dim),
            "pooled": torch.zeros(prompts, sizes.dim),
        }

    return Architecture(
        source=f"the weights {checkpoint or 'that ship with it'}",
        vae=None,
        encoders={},
        policy=policy,
        latent_shape=(3, SIZE, SIZE),
        image=(SIZE, SIZE),
        conditioning=conditioning,
    )
