"""The reward `steered`: the scenes' composition, which waits and misbehaves as it is told to.

Only where CHAOS_STEER names a folder. There

    delay      seconds that every call takes
    mood-*     what one call does instead: raise, hang, nan, shape; the first caller takes it
    journal    one line for every call: process, host's monotonic seconds, Slurm's job

The journal is a witness of its own of which process worked when: monotonic clocks are not skewed.
"""

import contextlib
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from mixgrpo.scenes.score import composition


class Steered:
    name = "steered"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """As `composition`: [B] of images [B, 3, H, W]."""
        steer = os.environ.get("CHAOS_STEER")
        mood = _obey(Path(steer)) if steer else None
        match mood:
            case "raise":
                raise ValueError("the reward was told to raise")
            case "hang":
                time.sleep(10_000)
        scores = composition(images, prompts)
        if mood == "nan":
            return torch.full_like(scores, float("nan"))
        return scores[:-1] if mood == "shape" else scores


def _obey(steer: Path) -> str | None:
    """Write the call down, wait, and take a mood where one is to be had."""
    job = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    line = {"pid": os.getpid(), "at": time.monotonic(), "job": job}
    with (steer / "journal").open("a") as journal:
        journal.write(json.dumps(line) + "\n")
    time.sleep(float((steer / "delay").read_text()))
    for file in steer.glob("mood-*"):
        with contextlib.suppress(FileNotFoundError):
            file.rename(steer / f"taken-{os.getpid()}-{file.name}")
            return file.name.removeprefix("mood-")
    return None


def install(site: Path) -> Path:
    """Write the metadata of a package with this reward into `site`."""
    info = site / "chaos-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos\nVersion: 0\n")
    entry = "[mixgrpo.rewards]\nsteered = tests.slurm.chaos_reward:Steered\n"
    (info / "entry_points.txt").write_text(entry)
    return site
