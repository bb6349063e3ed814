"""What a configuration's model is made of, from the model's config files alone.

Nothing is loaded or downloaded: the files come from a local folder or the hub's cache, and what is
known of the models on the hub is written down here. Networks are built on the meta device, where
they have shapes and no memory.
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
_OF_FLUX = {
    "vae": _VAE,
    "text_encoder": _CLIP_L | {"architectures": ["CLIPTextModel"]},
    "text_encoder_2": _T5_XXL,
}
_OF_SD35 = {
    "vae": _VAE,
    "text_encoder": _CLIP_L,
    "text_encoder_2": _CLIP_G,
    "text_encoder_3": _T5_XXL,
}
KNOWN: dict[str, dict[str, Json]] = {
    "black-forest-labs/FLUX.1-dev": {"transformer": _FLUX | {"guidance_embeds": True}, **_OF_FLUX},
    "black-forest-labs/FLUX.1-schnell": {"transformer": _FLUX, **_OF_FLUX},
    "stabilityai/stable-diffusion-3.5-medium": {
        "transformer": _SD35
        | {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
        },
        **_OF_SD35,
    },
    "stabilityai/stable-diffusion-3.5-large": {
        "transformer": _SD35
        | {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        **_OF_SD35,
    },
}
"""What decides the sizes of models on the hub, by their configs there."""

_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_CLIP_TOKENS = 77
"""Of a prompt by SD3's CLIPs, ahead of T5's."""


@dataclass(frozen=True)
class Architecture:
    """A model's networks and the shapes that they are called with."""

    source: str
    """Where it is known from."""
    vae: Callable[[], nn.Module] | None
    """Makes it on the meta device, as all that follow."""
    encoders: dict[str, Callable[[], nn.Module]]
    policy: Callable[[nn.Module | None], Policy]
    """Makes the model's policy with its network and this VAE."""
    latent_shape: tuple[int, ...]
    image: tuple[int, int]
    """Height and width in pixels."""
    conditioning: Callable[[int], Conditioning]
    """Makes that of so many prompts."""


def architecture(config: RunConfig) -> Architecture | str:
    """The architecture of `config.model`; or in a few words why it is not known.

    ConfigError for a folder that holds no such model.
    """
    name = config.model.name
    if name == "scenes":
        return _scenes(config.model.checkpoint)
    if name not in DIFFUSION:
        return f"model {name} is another package's, of which only the evaluations are known"
    found = _parts(config)
    return found if isinstance(found, str) else _diffusion(config, *found)


def _parts(config: RunConfig) -> tuple[str, dict[str, Json]] | str:
    """Where the configs of a pipeline's parts were found, and what they say."""
    model = config.model
    place = str(hub_name(model.name, model.checkpoint))
    local = Path(place).expanduser()
    if local.is_dir():
        if not (local / "transformer" / "config.json").is_file():
            raise ConfigError(
                f"model.checkpoint {place}: the folder has no transformer/config.json; name one "
                "that save_pretrained of a diffusers pipeline wrote"
            )
        return f"the config files in {place}", _read(local)
    if place.count("/") != 1 or place[0] in "/.~":
        raise ConfigError(f"model.checkpoint: there is no folder {place}")
    cached = _cached(place, model.revision)
    if cached is not None:
        return f"the config files of {place} in the hub's cache", _read(cached)
    if place in KNOWN:
        return f"what is known of {place}", KNOWN[place]
    return (
        f"the config files of {place} are not in the hub's cache, so that only the evaluations "
        f'are known; `hf download {place} --include "*.json"` gets them'
    )


def _cached(repository: str, revision: str | None) -> Path | None:
    """The repository's folder in the hub's cache; no request is made."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "transformer/config.json", revision=revision)
    return Path(found).parents[1] if isinstance(found, str) else None


def _read(folder: Path) -> dict[str, Json]:
    found = {}
    for part in _PARTS:
        file = folder / part / "config.json"
        if file.is_file():
            try:
                found[part] = json.loads(file.read_text())
            except ValueError as error:
                raise ConfigError(f"{file}: is not JSON ({error})") from error
    return found


def _of_diffusers(config: Json) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import diffusers

        kind = getattr(diffusers, str(config.get("_class_name")), None)
        if kind is None:
            raise ConfigError(
                f"model.checkpoint: its config names the class {config.get('_class_name')}, "
                "which diffusers has not"
            )
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
        return network.eval()

    return build


def _of_transformers(config: Json) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, config["architectures"][0])
        with torch.device("meta"):
            network: nn.Module = kind(kind.config_class.from_dict(config))
        return network.eval()

    return build


def _diffusion(config: RunConfig, source: str, parts: dict[str, Json]) -> Architecture:
    from mixgrpo.models.diffusion import DiffusersPolicy, image_size, latent_channels, vae_factor
    from mixgrpo.models.text import NEGATIVE

    model, settings, vae = config.model, parts["transformer"], parts.get("vae", _VAE)
    module, _, name = PIPELINES[model.name].partition(":")
    kind: type[DiffusersPolicy] = getattr(importlib.import_module(module), name)
    network = _of_diffusers(settings)
    sizes: Any = network().config
    height, width = image_size(model, dict(sizes), vae)
    factor = vae_factor(vae)
    tokens = model.text_tokens or kind.token_limits(dict(sizes))[1]
    tokens += _CLIP_TOKENS if model.name == "sd3" else 0
    kept = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32

    def conditioning(prompts: int) -> Conditioning:
        found = {"text": torch.zeros(prompts, tokens, sizes.joint_attention_dim, dtype=kept)}
        if model.name == "qwen-image":
            found["mask"] = torch.ones(prompts, tokens, dtype=torch.bool)
        else:
            found["pooled"] = torch.zeros(prompts, sizes.pooled_projection_dim, dtype=kept)
        if (model.cfg or 1.0) > 1:
            found |= {f"{NEGATIVE}{key}": value for key, value in found.items()}
        return found

    # Where the VAE waits and how attention is computed changes no shape.
    compute = config.compute.model_copy(update={"offload": False, "attention": None})

    def policy(decoder: nn.Module | None) -> Policy:
        text: Any = None  # encodes nothing here
        made: Policy = kind(network(), decoder, {}, text, model, compute, "meta")
        return made

    return Architecture(
        source=source,
        vae=_of_diffusers(vae),
        encoders={part: _of_transformers(parts[part]) for part in _PARTS[2:] if part in parts},
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
