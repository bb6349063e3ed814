"""Noise that depends on what it is for, never on when, where or beside what it is drawn.

Every draw is named by a key such as ("step", seed, iteration, prompt, image). The result is the
same for every batch geometry, number of ranks, device, and after a resume.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator(*key: str | int) -> np.random.Generator:
    """A fresh generator for this key: Philox, whose 128 bits of key keep all streams apart."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def normal(shape: tuple[int, ...], *key: str | int) -> Tensor:
    """Standard normal numbers of `shape`, float32 on the CPU, for this key."""
    return torch.from_numpy(generator(*key).standard_normal(shape, np.float32))


def permutation(n: int, *key: str | int) -> list[int]:
    """A random order of 0 .. n - 1 for this key."""
    order: list[int] = generator(*key).permutation(n).tolist()
    return order
