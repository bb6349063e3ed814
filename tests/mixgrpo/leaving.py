"""Rewards and a model that end the process, or go elsewhere, when LEAVES says so.

LEAVES=score:exit makes the reward's `score` call `sys.exit(0)`.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.mixgrpo import toy

went: list[str] = []
"""Where the working directory was changed."""


def leave(where: str) -> None:
    at, _, how = os.environ.get("LEAVES", "").partition(":")
    if at != where:
        return
    match how:
        case "exit":
            sys.exit(0)
        case "hard":
            os._exit(0)
        case "exec":
            os.execl("/bin/true", "true")
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "generator":
            raise GeneratorExit
        case "chdir":
            os.chdir("/")
            went.append(where)
        case _:
            raise AssertionError(how)


class Leaving(toy.Brightness):
    name = "leaving"

    def __init__(self, checkpoint: str | None = None) -> None:
        leave("init")
        if checkpoint is not None:
            Path(checkpoint).read_bytes()

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
