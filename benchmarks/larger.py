"""A model with FLUX's proportions and random weights, as large as a machine has time for.

As in FLUX.1-dev heads are 128 wide, there are two single blocks for each double block, the guidance
is embedded, 64 channels make a token, and texts are 512 : 2025 as long as images (720 x 720). Text
encoder and VAE are left out: prompts become random states, and three channels are the image.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.models.protocol import Conditioning

HEAD_DIM = 128
CHANNELS = 16

_ENTRY_POINTS = """[mixgrpo.models]
larger = benchmarks.larger:LargerPolicy.load

[mixgrpo.rewards]
projection = benchmarks.larger:Projection
"""


def install(site: Path) -> None:
    """Write the metadata of a package that offers model and reward into `site`, a folder that is
    to be on sys.path."""
    info = site / "larger-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: larger\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)


class LargerPolicy:
    """`heads` heads of 128, `blocks` double and 2 `blocks` single blocks, `side` x `side` tokens.

    Latents are [16, 2 side, 2 side]; 2 x 2 of them make a token, as in FLUX.
    """

    def __init__(self, heads: int, blocks: int, side: int, device: str) -> None:
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        self.side, self.device = side, device
        self.latent_shape: tuple[int, ...] = (CHANNELS, 2 * side, 2 * side)
        self.text_tokens = max(1, round(side**2 * 512 / 2025))
        dim = heads * HEAD_DIM
        # FLUX: 4096 and 768 for a width of 3072.
        self.text_dim, self.pooled_dim = dim * 4 // 3, dim // 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer = FluxTransformer2DModel(
                patch_size=1,
                in_channels=4 * CHANNELS,
                num_layers=blocks,
                num_single_layers=2 * blocks,
                attention_head_dim=HEAD_DIM,
                num_attention_heads=heads,
                joint_attention_dim=self.text_dim,
                pooled_projection_dim=self.pooled_dim,
                guidance_embeds=True,
                axes_dims_rope=(16, 56, 56),
            )
        self.transformer.to(device).eval()

    @classmethod
    def load(cls, checkpoint: str | None, device: str) -> "LargerPolicy":
        """As a model's loader is called; `checkpoint` gives the sizes, "HEADSxBLOCKSxSIDE"."""
        try:
            heads, blocks, side = (int(size) for size in str(checkpoint).split("x"))
        except ValueError:
            raise ConfigError(
                f"model.checkpoint: {checkpoint!r} gives no sizes; write them as 2x1x8"
            ) from None
        return cls(heads, blocks, side, device)

    @property
    def network(self) -> Module:
        network: Module = self.transformer
        return network

    def encode(self, prompts: list[str]) -> Conditioning:
        """`text` [B, tokens, text dim] and `pooled` [B, pooled dim], random but fixed."""
        text = [normal((self.text_tokens, self.text_dim), "text", p) for p in prompts]
        pooled = [normal((self.pooled_dim,), "pooled", p) for p in prompts]
        found = {"text": torch.stack(text), "pooled": torch.stack(pooled)}
        return {name: value.to(self.device) for name, value in found.items()}

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        """v [B, 16, 2 side, 2 side] at latents of that shape; guidance 3.5."""
        cells = torch.arange(self.side, device=latents.device, dtype=latents.dtype)
        rows, columns = torch.meshgrid(cells, cells, indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        x = latents.unflatten(3, (self.side, 2)).unflatten(2, (self.side, 2))
        tokens = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        batch = len(latents)
        (predicted,) = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
            timestep=torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(batch),
            guidance=torch.full((batch,), 3.5, dtype=x.dtype, device=x.device),
            img_ids=ids,
            txt_ids=ids.new_zeros(self.text_tokens, 3),
            return_dict=False,
        )
        cut = predicted.unflatten(2, (CHANNELS, 2, 2)).unflatten(1, (self.side, self.side))
        whole: Tensor = cut.permute(0, 3, 1, 4, 2, 5).reshape_as(latents)
        return whole

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, 2 side, 2 side]: three of the channels."""
        return latents[:, :3].sigmoid()

    def trainable_parameters(self) -> dict[str, Parameter]:
        return {k: p for k, p in self.transformer.named_parameters() if p.requires_grad}

    def train_prompts(self) -> list[str]:
        return [f"prompt {i}" for i in range(16)]

    def held_out_prompts(self) -> list[str]:
        return ["held out"]


class Projection:
    """How far an image goes in a fixed random direction: cheap, and no two images are equal."""

    name = "projection"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        direction = normal(tuple(images.shape[1:]), "projection").to(images)
        return (images * direction).flatten(1).mean(1)
