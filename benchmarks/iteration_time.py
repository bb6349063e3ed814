"""Times one iteration of every preset, and says how far it is from the least it could take.

    python -m benchmarks.iteration_time --out DIR

Beside each preset as users get it stand: the same with nothing shared within a group; the same one
image and one step at a time; and the floor, its forward and backward passes alone. All arms take
turns, round after round. Writes DIR/iteration_time_<device>.json with every single timing, and the
printed tables as .md.
"""

import gc
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks import larger
from benchmarks.arms import ONE, UNSHARED, Position, Subject
from benchmarks.ratios import (
    Measurement,
    Rounds,
    ratios_table,
    times_table,
    verdicts,
    verdicts_table,
)
from mixgrpo import cli
from mixgrpo.atomic import write_json, write_text
from mixgrpo.configfile import load_config
from mixgrpo.errors import ConfigError
from mixgrpo.machine import processor
from mixgrpo.ranks import Ranks
from mixgrpo.trainer import Trainer

PRESETS = [
    "flow-grpo",
    "flow-grpo-fast",
    "dance-grpo",
    "mixgrpo",
    "mixgrpo-cps",
    "mixgrpo-flash",
    "mixgrpo-flash-star",
]
_FOLDER = Path(__file__).parents[1] / "sweeps" / "presets"

NOTE = """\
*shared* is `Trainer.iterate` as users get it, with `health.drift` off (it runs only where the window
moves) and the other settings as in the preset. It is timed at the iteration whose evaluations are
nearest to the mean over the run's 300 (of two, the dearer), which is then part of the table; *shared,
first window* is the same where the window begins earliest. *unshared* is the same iteration with
`rollout.noise: own`: every image begins with its own noise, so that nothing is shared, and forwards
have the shapes that they have with sharing off. *one at a time* goes to the same weights in batches
of one. *floor* repeats the forward and backward passes of *shared* alone, in the same batches, with
random inputs. l: the window's first step; T~: steps of an image; forward and backward: evaluations
of the network, checked to the unit against the plan. Seconds and ratios: median (quartiles) over
the rounds; ratios are made within a round."""


@dataclass(frozen=True)
class Model:
    """What is timed: overrides of the presets, and how it is called in the tables."""

    name: str
    title: str
    overrides: list[str]


def embedded() -> Model:
    return Model("embedded", "Embedded model: the scenes, 8 prompts x 12 images, T = 25", [])


def with_proportions_of_flux(heads: int, blocks: int, side: int, device: str) -> Model:
    precision = "bf16" if device.startswith("cuda") else "fp32"
    text = max(1, round(side**2 * 512 / 2025))
    return Model(
        "larger",
        f"Larger model: FLUX with {heads} heads of 128, {blocks} double and {2 * blocks} single "
        f"blocks, {side**2} image and {text} text tokens, 1 prompt x 12 images, T = 25, gradient "
        f"checkpointing, {precision}",
        [
            "model.name=larger",
            f"model.checkpoint={heads}x{blocks}x{side}",
            "rollout.prompts=1",
            "rewards.train={projection: 1.0}",
            "rewards.held_out=[]",
            "compute.gradient_checkpointing=true",
            f"compute.precision={precision}",
        ],
    )


def subject(model: Model, preset: str, device: str) -> Subject:
    """A preset on a model, ready to be timed: one iteration has run."""
    overrides = ["health.drift=false", *model.overrides]
    config = load_config(_FOLDER / f"{preset}.yaml", overrides)
    return Subject(preset, Trainer(config, Ranks(device=device)))


def measure(model: Model, rounds: int, sparse: int, device: str) -> "Measured":
    """Every arm of every preset once per round, one after the other."""
    begin = time.perf_counter()
    subjects = []
    for preset in PRESETS:
        tell(f"{model.name}: warming up {preset}")
        subjects.append(subject(model, preset, device))
    measurements = []
    return Measured(model, subjects, measurements)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
