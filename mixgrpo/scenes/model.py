"""The base model of the scenes: a small text encoder and a small FLUX transformer on pixels.

Importing this module imports diffusers, which costs seconds: import it late.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_bytes
from mixgrpo.scenes.prompts import all_prompts
from mixgrpo.scenes.render import SIZE

PATCH = 4
TOKENS = 8
"""Words of the longest prompt: "a red cross left of a blue square"."""

_FORMAT = "mixgrpo-scenes-1"
_GRID = SIZE // PATCH
_WORDS = sorted({word for prompt in all_prompts() for word in prompt.split()})
_VOCABULARY = {word: row for row, word in enumerate(["", *_WORDS])}  # row 0: no word


@dataclass(frozen=True)
class Sizes:
    """Sizes of the base model."""

    heads: int = 2
    head_dim: int = 32
    rope_dims: tuple[int, int, int] = (8, 12, 12)
    """Rotary dimensions for (unused, row, column); they sum to `head_dim`."""
    double_blocks: int = 1
    single_blocks: int = 2
    text_layers: int = 2

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


SIZES_OF = {
    "small": Sizes(head_dim=28, rope_dims=(8, 10, 10), single_blocks=1),
    "base": Sizes(),
    "large": Sizes(heads=3),
}
"""Sizes of the base models that ship with the package: of 56, 64 and 96 dimensions.

None has fewer dimensions than the 48 values of a patch: the noise in the rest could not be
predicted.
"""

TINY = Sizes(
    heads=1, head_dim=16, rope_dims=(4, 6, 6), double_blocks=1, single_blocks=1, text_layers=1
)


class TextEncoder(nn.Module):
    """Word indices [B, 8] -> token states [B, 8, dim] and their mean [B, dim].

    Trained with the base model and frozen afterwards. The states of the tokens are needed since
    their mean hardly distinguishes "a red cross above a blue square" from its reverse.
    """

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        dim = config.dim
        self.words = nn.Embedding(len(_VOCABULARY), dim)
        self.positions = nn.Parameter(torch.randn(TOKENS, dim) * 0.5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim,
                config.heads,
                4 * dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(words) + self.positions
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return x, x.mean(1)


class ScenesModel(nn.Module):
    """Velocity of 16 x 16 RGB latents given text states."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=3 * PATCH * PATCH,
            num_layers=config.double_blocks,
            num_single_layers=config.single_blocks,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            joint_attention_dim=config.dim,
            pooled_projection_dim=config.dim,
            axes_dims_rope=config.rope_dims,
        )

    def velocity(self, latents: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """v = eps - x0 at latents [B, 3, 16, 16], sigma [B], text [B, 8, dim], pooled [B, dim]."""
        cells = torch.arange(_GRID, device=latents.device, dtype=latents.dtype)
        rows, columns = torch.meshgrid(cells, cells, indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        (tokens,) = self.transformer(
            hidden_states=to_patches(latents),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=image_ids,
            txt_ids=torch.zeros_like(image_ids[:TOKENS]),
            return_dict=False,
        )
        return from_patches(tokens)


def word_indices(prompts: list[str]) -> Tensor:
    """Prompts as word indices [B, 8]. ValueError naming a prompt with an unknown word, or more than
    8 words."""
    rows = []
    for prompt in prompts:
        words = prompt.split()
        if len(words) > TOKENS or any(w not in _VOCABULARY for w in words):
            raise ValueError(f"{prompt!r} is not a prompt of the scenes")
        rows.append([_VOCABULARY[w] for w in words] + [0] * (TOKENS - len(words)))
    return torch.tensor(rows, dtype=torch.long).reshape(-1, TOKENS)


def to_patches(latents: Tensor) -> Tensor:
    """[B, 3, 16, 16] -> [B, 16, 48]: one token per 4 x 4 pixels, row by row."""
    x = latents.reshape(-1, 3, _GRID, PATCH, _GRID, PATCH)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, _GRID * _GRID, 3 * PATCH * PATCH)


def from_patches(tokens: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    x = tokens.reshape(-1, _GRID, _GRID, 3, PATCH, PATCH)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, SIZE, SIZE)


def random_model(config: Sizes, seed: int) -> ScenesModel:
    """A model with random weights that depend on `seed` only; the global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ScenesModel(config)


def save_model(path: Path, config: Sizes, state: dict[str, Tensor]) -> None:
    """Weights and sizes as one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().float().cpu().contiguous() for k, v in state.items()}
    metadata = {"format": _FORMAT, "config": json.dumps(asdict(config))}
    write_bytes(path, save(weights, metadata))


def read_sizes(path: Path) -> Sizes:
    """The sizes of the model that `save_model` wrote, without its weights. ConfigError where `path`
    is not such a file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise ConfigError(f"model.checkpoint {path}: there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.checkpoint {path}: not a safetensors file ({error})") from error
    try:
        if metadata.get("format") != _FORMAT:
            raise ValueError("another format")
        sizes = json.loads(metadata["config"])
        return Sizes(**{**sizes, "rope_dims": tuple(sizes["rope_dims"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.checkpoint {path}: not a checkpoint of the scenes model"
        ) from error


def load_model(path: Path) -> ScenesModel:
    """The model that `save_model` wrote, on the CPU. ConfigError where `path` is not such a
    file."""
    sizes = read_sizes(path)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):  # no random weights, since they would be replaced at once
        model = ScenesModel(sizes)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"model.checkpoint {path}: its weights do not fit its sizes") from error
    return model
