"""Noise that depends on what it is for, never on when, where or beside what it is drawn.

Every draw is named by a key such as ("step", seed, iteration, prompt, image). The result is the
same for every batch geometry, number of ranks, device, and after a resume.
"""

import hashlib

import torch
from torch import Tensor

Key = tuple[str | int, ...]


def generator(*key: str | int) -> torch.Generator:
    """A fresh CPU generator for this key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def normal(shape: tuple[int, ...], *key: str | int) -> Tensor:
    """Standard normal numbers of `shape`, float32 on the CPU, for this key."""
    return torch.randn(shape, generator=generator(*key))


def permutation(n: int, *key: str | int) -> list[int]:
    """A random order of 0 .. n - 1 for this key."""
    order: list[int] = torch.randperm(n, generator=generator(*key)).tolist()
    return order
