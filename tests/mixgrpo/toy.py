"""A policy and rewards small enough to check by hand, and an installation of them by name.

Latents are 3 x 2 x 2; a few hundred parameters make a velocity that is truly nonlinear in latents,
sigma and conditioning. `install` makes a package's metadata whose entry points name them, so that
the real loader and the real command find them as they would find anybody's.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixgrpo.models.protocol import Conditioning
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.layers import as_tuples

ROOT = Path(__file__).parents[2]
PROMPTS = [f"prompt {i}" for i in range(9)]


class ToyPolicy(nn.Module):
    """v = outer^T tanh(inner^T [x, sigma, text]). `rows` notes the size of every batch it sees."""

    latent_shape: tuple[int, ...] = (3, 2, 2)

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = 12

        def matrix(rows: int, columns: int) -> nn.Parameter:
            values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return nn.Parameter((0.3 * values).to(dtype))

        self.inner = matrix(size + 5, 16)
        self.outer = matrix(16, size)
        self.rows: list[int] = []
        self.sigmas: list[float] = []

    @classmethod
    def load(cls, checkpoint: str | None = None, device: str = "cpu") -> "ToyPolicy":
        """As a model's loader is called; `checkpoint` is a seed."""
        return cls(int(checkpoint or 0)).to(device)

    @property
    def network(self) -> nn.Module:
        return self

    def encode(self, prompts: list[str]) -> Conditioning:
        values = [[((i + 1) * (ord(p[-1]) % 13)) % 7 / 7 for i in range(4)] for p in prompts]
        return {"text": torch.tensor(values, dtype=self.inner.dtype, device=self.inner.device)}

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        self.rows.append(len(latents))
        time = torch.as_tensor(sigma, dtype=latents.dtype).expand(len(latents))
        self.sigmas += sorted(set(time.tolist()))
        time = time.unsqueeze(1).to(latents)
        seen = torch.cat([latents.flatten(1), time, conditioning["text"]], 1)
        return (torch.tanh(seen @ self.inner) @ self.outer).unflatten(1, self.latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents * 0.25 + 0.5).clamp(0, 1)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def train_prompts(self) -> list[str]:
        return PROMPTS[:7]

    def held_out_prompts(self) -> list[str]:
        return PROMPTS[7:]


class Brightness:
    """The mean of the red channel."""

    name = "brightness"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].flatten(1).mean(1)


class Contrast:
    """The spread of the pixels: another scale than brightness."""

    name = "contrast"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return 10 * images.flatten(1).std(1)


class Red(Brightness):
    """The same by a name that no entry point has, for `rewards.classes`."""

    name = "red"


class Spread(Contrast):
    name = "spread"


class Constant:
    """A reward that tells no two images apart."""

    name = "constant"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.full((len(images),), 0.1)


ENTRY_POINTS = """[mixgrpo.models]
toy = toy_entry:ToyPolicy.load
absent = tests.mixgrpo.no_such_module:load

[mixgrpo.rewards]
brightness = toy_entry:Brightness
contrast = toy_entry:Contrast
constant = toy_entry:Constant
"""


def install(site: Path) -> Path:
    """Write the metadata of a package `toy` into `site`, which is to be on sys.path."""
    info = site / "toy-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    # A module of its own: the hash of a run sees the whole package that an entry point's lies in.
    names = "Brightness, Constant, Contrast, ToyPolicy"
    (site / "toy_entry.py").write_text(f"from tests.mixgrpo.toy import {names}\n")
    return site


def environment(site: Path) -> dict[str, str]:
    """The environment of a process that finds the toy by name."""
    path = os.pathsep.join([str(ROOT), str(site)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def settings(**sections: Any) -> dict[str, Any]:
    """The settings of a small run of the toy; sections are laid over them key by key."""
    small: dict[str, Any] = {
        "seed": 3,
        "iterations": 4,
        "model": {"name": "toy"},
        "sampler": {"steps": 5},
        "window": {"size": 2, "interval": 1},
        "rollout": {"prompts": 2, "group_size": 4},
        "rewards": {"train": {"brightness": 1.0}, "held_out": ["contrast"]},
        "objective": {"updates": 2},
        "optimizer": {"lr": 1e-3},
        "evaluation": {"every": 2, "images_per_prompt": 2, "steps": 5},
        "output": {"checkpoint_every": 1, "samples": 1},
    }
    for name, value in sections.items():
        merge = isinstance(value, dict) and isinstance(small.get(name), dict)
        small[name] = {**small[name], **value} if merge else value
    return small


def config(**sections: Any) -> RunConfig:
    """The validated form of `settings`."""
    return RunConfig.model_validate(as_tuples(settings(**sections)))
