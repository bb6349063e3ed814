"""Image preprocessing of the CLIP family, on tensors.

The authors' pipelines begin with PIL images. Where they resize PIL images, pixels are rounded to 8
bits on the way, and here they are not; where they resize tensors, as HPSv2 does, this is the same
operation. Nothing else differs: tests/mixgrpo/rewards/test_preprocess.py measures by how much.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP (github.com/openai/CLIP, clip/clip.py), red, green and blue."""


@dataclass(frozen=True)
class Preprocess:
    """Resizes to a square of `size` pixels, antialiased, and normalises."""

    size: int
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """Shortest: the shorter side becomes `size`, the middle is kept. Longest: the longer side does,
    black is added around. Squash: both sides do, whatever the proportions."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    clamp: bool = True
    """Bicubic interpolation overshoots. PIL cuts that off; a resized tensor keeps it."""

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] in float32 of images [B, 3, H, W] in [0, 1]."""
        height, width = self._resized(*images.shape[-2:])
        images = functional.interpolate(
            images.float(), (height, width), mode=self.interpolation, antialias=True
        )
        if self.clamp:
            images = images.clamp(0, 1)
        # Of torchvision: a crop's offset is rounded to even, padding's is rounded down.
        top, left = (round((side - self.size) / 2) for side in (height, width))
        if self.resize == "longest":
            below, right = self.size - height, self.size - width
            top, left = below // 2, right // 2
            images = functional.pad(images, (left, right - left, top, below - top))
            top, left = 0, 0
        images = images[..., top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(v, device=images.device) for v in (self.mean, self.std))
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "squash":
            return self.size, self.size
        if self.resize == "longest":
            scale = self.size / max(height, width)
            return round(height * scale), round(width * scale)
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size
