"""A model that paints small pictures in the colour of a prompt such as "#ff8000"."""

from torch import Tensor, tensor

LEVELS = ("00", "80", "ff")
PROMPTS = [f"#{r}{g}{b}" for r in LEVELS for g in LEVELS for b in LEVELS]


def colours(prompts: list[str]) -> Tensor:
    """Red, green and blue in [0, 1] of every prompt: [B, 3]."""
    return tensor([[int(p[i : i + 2], 16) / 255 for i in (1, 3, 5)] for p in prompts])
