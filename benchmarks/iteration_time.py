"""Times one iteration of every preset, and says how far it is from the least it could take.

    python -m benchmarks.iteration_time --out DIR

Beside each preset as users get it stand: the same with nothing shared within a group; the same one
image and one step at a time; and the floor, its forward and backward passes alone. All arms take
turns, round after round. Writes DIR/iteration_time_<device>.json with every single timing, and the
printed tables as .md.
"""

import gc
import importlib.metadata
import os
import platform
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
from benchmarks.arms import FIRST, FLOOR, ONE, OURS, UNSHARED, Subject
from benchmarks.ratios import (
    Measurement,
    Rounds,
    Verdict,
    ratios_table,
    times_table,
    verdicts,
    verdicts_table,
)
from mixgrpo import cli
from mixgrpo.compute.machine import processor
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_json, write_text
from mixgrpo.settings.configfile import load_config
from mixgrpo.training.trainer import Trainer

PRESETS = [
    "flow-grpo",
    "flow-grpo-fast",
    "dance-grpo",
    "mixgrpo",
    "mixgrpo-cps",
    "mixgrpo-flash",
    "mixgrpo-flash-star",
]
CONTEXT = (FIRST, UNSHARED, ONE)
"""Arms that are timed in every second round: they take long, and differ by more than noise."""

_FOLDER = Path(__file__).parents[1] / "sweeps" / "presets"

_NOTE = """\
*shared* is `Trainer.iterate` as users get it, with `health.drift` off (it runs only where the
window moves) and all other settings as in the preset. It is timed at the iteration whose
evaluations are nearest to the mean over the run (of two, at the dearer one); *shared, first window*
is the same where the window begins earliest, and is missing where that costs as much. *unshared* is
the same iteration with `rollout.noise: own`: every image begins from its own noise, so that nothing
is shared, and forwards have the shapes that they have with sharing off. *one at a time* computes
what *shared* does image by image and step by step, in batches of one; its rollout includes decoding
and rewards. *floor* repeats the forward and backward passes of *shared* alone, in the same batches,
with random inputs.

l: the window's first step; T~: steps of an image; forward and backward: evaluations of the network,
counted and equal to the plan's to the unit. Seconds, phases (in seconds) and ratios are medians
over rounds, with quartiles in brackets; ratios are made within a round. *shared* and *floor* are
timed in every round, the others in every second."""


@dataclass(frozen=True)
class Model:
    """What is timed: overrides of the presets, and how it is called in the tables."""

    name: str
    title: str
    overrides: list[str]


EMBEDDED = Model("embedded", "Embedded model: the scenes, 8 prompts x 12 images, T = 25", [])


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


def measure(model: Model, rounds: int, device: str) -> tuple[list[Subject], list[Measurement]]:
    """Every preset's trainer, and its arms' timings in every round."""
    subjects = []
    for preset in PRESETS:
        tell(f"{model.name}: warming up {preset}")
        subjects.append(subject(model, preset, device))
    measurements = []
    for number in range(rounds):
        begin = time.perf_counter()
        for one, arm in turns(subjects, number):
            gc.collect()  # now, rather than while an arm is timed
            measurements.append(Measurement(model.name, one.preset, arm, number, one.arms[arm]()))
        seconds = time.perf_counter() - begin
        tell(f"{model.name}: round {number + 1} of {rounds} took {seconds:.0f} s")
    return subjects, measurements


def turns(subjects: list[Subject], number: int) -> list[tuple[Subject, str]]:
    """What is timed in round `number`, in order: forwards in even rounds, backwards in odd ones.

    What is compared by a target stands close together. The arms of CONTEXT take part in even
    rounds.
    """
    order = [(one, arm) for one in subjects for arm in (OURS, FLOOR)]
    if number % 2:
        return order[::-1]
    return [*order, *((one, arm) for arm in CONTEXT for one in subjects if arm in one.arms)]


def report(
    model: Model, device: str, subjects: list[Subject], measurements: list[Measurement]
) -> tuple[str, list[Verdict]]:
    """The tables of one model, and its targets."""
    found = Rounds(measurements)
    positions = {one.preset: (one.mean, one.first) for one in subjects}
    text = "\n\n".join(
        [f"## {model.title}", times_table(found, positions), ratios_table(found, positions)]
    )
    return text, verdicts(model.name, device, found, PRESETS)


def made_on(device: str, threads: int) -> dict[str, Any]:
    """Where and when it was measured."""
    cuda = device.startswith("cuda")
    return {
        "processor": processor(),
        **({"accelerator": torch.cuda.get_device_name(device)} if cuda else {}),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the timings (JSON) and tables (Markdown).")],
    model: Annotated[
        Literal["embedded", "larger", "both"], typer.Option(help="Which model is timed.")
    ] = "both",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the warm-up.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, or cuda:0.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Larger model: width in heads of 128.")] = 2,
    blocks: Annotated[
        int, typer.Option(min=1, help="Larger model: double blocks; twice as many single ones.")
    ] = 1,
    side: Annotated[int, typer.Option(min=1, help="Larger model: side x side image tokens.")] = 8,
) -> None:
    """Time one iteration of every preset beside its floor and other ways to compute it."""
    torch.set_num_threads(threads)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch finds no such device here; leave it at cpu")
    about = made_on(device, threads)
    both = [EMBEDDED, with_proportions_of_flux(heads, blocks, side, device)]
    models = [m for m in both if model in (m.name, "both")]
    texts, found, raw = [], [], []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as site:
        larger.install(Path(site))
        sys.path.append(site)
        try:
            for chosen in models:
                subjects, measurements = measure(chosen, rounds, device)
                text, judged = report(chosen, device, subjects, measurements)
                texts.append(text)
                found += judged
                raw += measurements
        finally:
            sys.path.remove(site)
    seconds = time.perf_counter() - begin
    heading = [
        "# Time of one iteration",
        ", ".join(f"{name} {value}" for name, value in about.items())
        + f"; {rounds} rounds, {seconds / 60:.0f} minutes in all.",
        _NOTE,
    ]
    page = "\n\n".join([*heading, *texts, "## Targets", verdicts_table(found)])
    print(page)
    name = f"iteration_time_{torch.device(device).type}"
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.md", page + "\n")
    titles = {chosen.name: chosen.title for chosen in models}
    write_json(
        out / f"{name}.json",
        {"made_on": about, "models": titles, "measurements": [asdict(m) for m in raw]},
    )


if __name__ == "__main__":
    cli.run(main)
