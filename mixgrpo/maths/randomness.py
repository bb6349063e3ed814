"""Random numbers that depend on a key only, such as ("step", seed, iteration, prompt, image).

They are the same for every batch geometry, number of ranks and device, and after a resume.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator(*key: str | int) -> np.random.Generator:
    """A new generator for this key: Philox, whose 128-bit key makes all streams distinct."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def normal(shape: tuple[int, ...], *key: str | int) -> Tensor:
    """A tensor of standard normal numbers for this key, float32 on the CPU."""
    return torch.from_numpy(generator(*key).standard_normal(shape, np.float32))


def permutation(n: int, *key: str | int) -> list[int]:
    """A random order of 0 .. n - 1 for this key."""
    order: list[int] = generator(*key).permutation(n).tolist()
    return order
