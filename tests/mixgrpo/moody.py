"""A reward that is the toy's brightness until MOOD, in the environment, says otherwise.

MOOD=3:socket makes the third call of the process read from a server that never answers.
"""

import ctypes
import os
import socket
import time
from pathlib import Path

import torch
from torch import Tensor

from tests.mixgrpo import toy


class Moody(toy.Brightness):
    name = "moody"

    def __init__(self) -> None:
        self.calls = 0

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls += 1
        at, _, mood = os.environ.get("MOOD", "0:").partition(":")
        if self.calls == int(at):
            _hang(mood)
        return super().score(images, prompts)


def _hang(mood: str) -> None:
    match mood:
        case "socket":
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).recv(1)
        case "c":  # releases the interpreter, and knows nothing of it
            ctypes.CDLL(None).sleep(10**6)
        case "torch":
            x = torch.ones(32, 32)
            while True:
                x = torch.tanh(x @ x)
        case "retries":
            while True:
                try:
                    time.sleep(0.01)
                    raise ConnectionRefusedError("try again")
                except Exception:
                    continue
        case "refused":
            socket.create_connection(("127.0.0.1", 9))
        case _:
            raise AssertionError(mood)


def install(site: Path) -> Path:
    """Write the metadata of a package with this reward into `site`."""
    info = site / "moody-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[mixgrpo.rewards]\nmoody = tests.mixgrpo.moody:Moody\n")
    return site
