"""Rewards and a model that end the process, or go elsewhere, when LEAVES says so.

LEAVES=score:exit makes the reward's `score` call `sys.exit(0)`.
"""

import asyncio
import os
import sys
from typing import Any

from torch import Tensor

from tests.mixgrpo import toy


def leave(where: str) -> None:
    at, _, how = os.environ.get("LEAVES", "").partition(":")
    if at != where:
        return
    match how:
        case "exit":
            sys.exit(0)
        case "hard":
            os._exit(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "generator":
            raise GeneratorExit
        case "chdir":
            os.chdir("/")
        case _:
            raise AssertionError(how)


class Leaving(toy.Brightness):
    name = "leaving"

    def __init__(self) -> None:
        leave("init")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        leave("score")
        return super().score(images, prompts)


class LeavingPolicy(toy.ToyPolicy):
    def velocity(self, *arguments: Any) -> Tensor:
        leave("velocity")
        return super().velocity(*arguments)

    def decode(self, latents: Tensor) -> Tensor:
        leave("decode")
        return super().decode(latents)


leave("import")
