"""Runs of the toy in processes of their own, which may be killed at a chosen operation on the disk.

The processes are forked from a server that has imported torch once, so that dozens are cheap.
"""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from mixgrpo.settings.config import RunConfig

# The last two are imported by an optimizer's first step and by a picture's saving.
_PRELOADED = [
    "mixgrpo.training.trainer",
    "tests.mixgrpo.children",
    "torch._dynamo",
    "PIL.PngImagePlugin",
]


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOADED)
    return found


def attempt(config: RunConfig, folder: Path, site: Path, kill_at: int | None = None) -> int:
    """Train in a process of its own; its exit code, -9 where it was killed."""
    process = context().Process(target=_train, args=(config.model_dump(), folder, site, kill_at))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _train(data: dict[str, Any], folder: Path, site: Path, kill_at: int | None) -> None:
    import torch

    from mixgrpo import train

    torch.set_num_threads(1)
    sys.path.append(str(site))
    if kill_at is not None:
        _kill_at(kill_at)
    train.run(RunConfig.model_validate(data), folder)


def _kill_at(number: int) -> None:
    """End the process, without any clean-up, at its n-th operation on the disk."""
    from mixgrpo.files import checkpoint, jsonlines

    count = 0

    def counted(operation: Callable[..., Any], half: Callable[..., Any] | None = None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return run

    def half_a_line(file: Path, line: dict[str, Any]) -> None:
        with file.open("a") as stream:
            stream.write(str(line)[:40])

    def half_a_file(tensors: Any, file: Path) -> None:
        file.write_bytes(b"\x00" * 100)

    jsonlines.append = counted(jsonlines.append, half_a_line)
    checkpoint.save_file = counted(checkpoint.save_file, half_a_file)
    os.fsync = counted(os.fsync)
    shutil.rmtree = counted(shutil.rmtree)
    for name in ("rename", "replace", "mkdir", "write_text", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
