"""FLUX.1-dev with random weights behind the project's own policy, at full size or scaled down.

Full size is the real architecture: 12 billion parameters, 720 x 720 pixels, its VAE. Scaled down,
heads are 128 wide, there are two single blocks for each double block and texts are 512 : 2025 as
long as images, as they are there; decoding an image takes about as large a part of the operations
of a forward (0.16 against 0.14). Prompts become random states: text encoders do not work while a
run goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.models.flux import FluxPolicy
from mixgrpo.models.protocol import Conditioning
from mixgrpo.settings.config import ComputeConfig, ModelConfig

_ENTRY_POINTS = """[mixgrpo.models]
random-flux = benchmarks.flux_random:load

[mixgrpo.rewards]
projection = benchmarks.larger:Projection
tower = benchmarks.flux_random:Tower
"""


@dataclass(frozen=True)
class Scale:
    """Sizes of a FLUX."""

    title: str
    heads: int
    blocks: int
    """Double blocks; twice as many single ones."""
    pixels: int
    text: int
    """Tokens of a prompt."""
    channels: tuple[int, ...]
    """Of the VAE's blocks."""
    groups: int
    """Of the VAE's norms."""
    dtype: torch.dtype

    @property
    def transformer(self) -> dict[str, Any]:
        """Arguments of FluxTransformer2DModel."""
        width = 128 * self.heads
        return {
            "num_layers": self.blocks,
            "num_single_layers": 2 * self.blocks,
            "num_attention_heads": self.heads,
            "joint_attention_dim": width * 4 // 3,  # 4096 for a width of 3072
            "pooled_projection_dim": width // 4,
            "guidance_embeds": True,
        }

    @property
    def vae(self) -> dict[str, Any]:
        """Arguments of AutoencoderKL; at full size those of FLUX.1-dev."""
        return {
            "block_out_channels": self.channels,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 16,
            "norm_num_groups": self.groups,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }


SCALES = {
    "full": Scale(
        "FLUX.1-dev's architecture at full size, random weights",
        24,
        19,
        720,
        512,
        (128, 256, 512, 512),
        32,
        torch.bfloat16,
    ),
    "cpu": Scale(
        "CPU, FLUX's proportions scaled down, random weights",
        2,
        1,
        128,
        16,
        (4, 4, 8, 8),
        4,
        torch.float32,
    ),
}


def install(site: Path) -> None:
    """Write the metadata of a package that offers model and rewards into `site`, a folder that is
    to be on sys.path."""
    info = site / "flux_random-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flux-random\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)


class RandomText:
    """Stands for the text encoders: states that depend on the prompt alone."""

    identity = "random"

    def __init__(self, scale: Scale, device: str) -> None:
        sizes = scale.transformer
        self._shapes = {
            "text": (scale.text, sizes["joint_attention_dim"]),
            "pooled": (sizes["pooled_projection_dim"],),
        }
        self._dtype, self._device = scale.dtype, device

    def encode(self, prompts: list[str]) -> Conditioning:
        return {
            name: torch.stack([normal(shape, name, p) for p in prompts]).to(
                self._device, self._dtype
            )
            for name, shape in self._shapes.items()
        }

    def prepare(
        self, prompts: Sequence[str], say: Callable[[str], None], share: tuple[int, int] = (0, 1)
    ) -> None:
        """Nothing is kept."""

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Nothing has to be."""
        return []


class RandomFlux(FluxPolicy):
    """The policy of FLUX, with prompts of its own."""

    def train_prompts(self) -> list[str]:
        return [f"prompt {i}" for i in range(16)]

    def held_out_prompts(self) -> list[str]:
        return ["held out"]


def load(checkpoint: str | None, device: str) -> RandomFlux:
    """As a model's loader is called; `checkpoint` is "SCALE" or "SCALE:ATTENTION BACKEND"."""
    name, _, attention = str(checkpoint).partition(":")
    if name not in SCALES:
        raise ConfigError(f"model.checkpoint {checkpoint}: name one of {', '.join(SCALES)}")
    scale = SCALES[name]
    text: Any = RandomText(scale, device)
    return RandomFlux(
        *networks(scale, device),
        {},
        text,
        ModelConfig(name="flux", height=scale.pixels, width=scale.pixels),
        ComputeConfig(attention=attention or None),
        device,
    )


def networks(scale: Scale, device: str) -> tuple[nn.Module, nn.Module]:
    """Transformer and VAE, made on the device in the scale's dtype: at full size there is no copy
    in the memory of the host, and none in float32. The same weights every time on one device."""
    import diffusers

    transformer: Any = diffusers.FluxTransformer2DModel
    vae: Any = diffusers.AutoencoderKL
    devices = [device] if device.startswith("cuda") else []
    usual = torch.get_default_dtype()
    torch.set_default_dtype(scale.dtype)
    try:
        with torch.random.fork_rng(devices=devices), torch.device(device):
            torch.manual_seed(0)
            made = (transformer.from_config(scale.transformer), vae.from_config(scale.vae))
    finally:
        torch.set_default_dtype(usual)
    return made


class Tower:
    """Stands for a reward's network: the image side of a CLIP with random weights, by default as
    large as ViT-H-14, which HPS-v2.1 and PickScore look with."""

    name = "tower"

    def __init__(
        self, *, width: int = 1280, layers: int = 32, heads: int = 16, size: int = 224
    ) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self._size = size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: Any = CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    image_size=size,
                    patch_size=14,
                    projection_dim=1024,
                )
            )
        self.module: nn.Module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        small = nn.functional.interpolate(
            images, (self._size, self._size), mode="bicubic", antialias=True
        )
        seen: Tensor = self.module.to(images.device)(small).image_embeds
        return seen.mean(1)
