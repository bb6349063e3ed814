"""Images from any run, finished or being trained: pictures, their manifest, and a contact sheet.

    python -m mixgrpo.generate RUN [--prompt TEXT]... [--checkpoint ITER]... [--p-mix 0.8]
                                   [--parquet FILE]

The noise of an image depends on (seed, prompt, index) alone and is that of the run's evaluations,
so that the same image can be asked for alone, among others, and of every checkpoint.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from torch import Tensor

from mixgrpo import cli
from mixgrpo.errors import ConfigError, RepeatableError
from mixgrpo.evaluation.contact_sheet import Column, contact_sheet, png
from mixgrpo.evaluation.held_out import (
    LARGEST_SEED,
    MOST_IMAGES_EACH,
    check_count,
    check_readable,
    choose,
    evaluation_noise,
)
from mixgrpo.files.atomic import is_stream, write_bytes, write_json
from mixgrpo.files.checkpoint import check_at
from mixgrpo.files.prompts import read_prompts
from mixgrpo.files.regular import open_regular
from mixgrpo.files.scores import as_parquet, joined, scores_table
from mixgrpo.rewards.calls import check_prompts, score
from mixgrpo.rewards.load import load_rewards
from mixgrpo.rewards.protocol import Reward
from mixgrpo.sampling.inference import Sampling, asked_shift, draw, images_at_once, shift_of
from mixgrpo.settings.paths import check_file, check_folder, check_outside

if TYPE_CHECKING:
    import pyarrow as pa

    from mixgrpo.runs.load import Loaded

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DEFAULT_PROMPTS = 8
MOST_IMAGES = 100_000
"""In one call, which holds them all for the contact sheet."""


def generate(
    loaded: "Loaded", sampling: Sampling, prompts: Sequence[str], seed: int, images: int
) -> Tensor:
    """Images [prompts, images, 3, H, W] in [0, 1]. RepeatableError where they are not finite."""
    policy = loaded.policy
    device = next(policy.network.parameters()).device
    noise = evaluation_noise(seed, prompts, images, policy.latent_shape).to(device)
    pixels = draw(
        policy,
        loaded.velocity,
        loaded.reference,
        sampling,
        [p for p in prompts for _ in range(images)],
        noise,
        images_at_once(loaded.config.compute),
    )
    if not bool(pixels.isfinite().all()):
        raise RepeatableError(f"checkpoint {loaded.iteration}: its images are not finite")
    cpu: Tensor = pixels.unflatten(0, (-1, images)).cpu()
    return cpu


def check_places(out: Path, sheet: Path, parquet: Path | None, run: Path) -> None:
    """ConfigError where the images, their sheet or scores cannot be written, or not there."""
    check_outside(out, run)
    check_folder("--out", out)
    check_outside(sheet, run)
    check_file("--sheet", sheet, makes_folder=True)
    if parquet is not None:
        check_outside(parquet, run)
        check_file("--parquet", parquet)


class _Scores:
    """The score of every image by every reward of the run, where they are to be written."""

    def __init__(self, file: Path | None, loaded: "Loaded", prompts: Sequence[str]) -> None:
        """ConfigError for a prompt that a reward cannot judge."""
        self.file = file
        self.tables: list[pa.Table] = []
        self.rewards: list[Reward] = []
        if file is not None:
            settings = loaded.config.rewards
            names = [*settings.train, *settings.held_out]
            found = load_rewards(names, settings, loaded.config.compute.offload)
            self.rewards = list(found.values())
        for reward in self.rewards:
            check_prompts(reward, list(prompts))

    def add(
        self, prompts: Sequence[str], pixels: Tensor, seed: int, checkpoint: int, sampling: Sampling
    ) -> None:
        """Score images [prompts, images, 3, H, W], a prompt's at a time."""
        if self.file is None:
            return
        scores = {
            reward.name: np.stack(
                [
                    score(reward, images, [prompt] * len(images)).numpy()
                    for prompt, images in zip(prompts, pixels, strict=True)
                ]
            )
            for reward in self.rewards
        }
        constants = {"checkpoint": checkpoint, "p_mix": sampling.p_mix}
        self.tables.append(scores_table(prompts, seed, scores, constants))

    def write(self) -> None:
        if self.file is not None:
            write_bytes(self.file, as_parquet(joined(self.tables)))


class _Listing:
    """The manifest of a folder of images: what each of them is, earlier ones included."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, str(run.resolve())
        self.file = folder / MANIFEST
        self.images: dict[str, dict[str, Any]] = {}
        if not self.file.exists():
            return
        try:
            with open_regular(self.file) as stream:
                earlier = json.load(stream)
            self.images = {image["file"]: image for image in earlier["images"]}
            of = earlier["run"]
        except (OSError, ValueError, LookupError, TypeError):
            raise ConfigError(f"{self.file}: lists no images; choose another --out") from None
        if of != self.run:
            raise ConfigError(
                f"{self.file}: lists images of another run, {of}; choose another --out"
            )

    def add(
        self, prompts: Sequence[str], pixels: Tensor, seed: int, checkpoint: int, sampling: Sampling
    ) -> None:
        """Write images [prompts, images, 3, H, W] and list them."""
        for number, index in product(*map(range, pixels.shape[:2])):
            name = (
                f"{_identity(prompts[number], sampling)}_seed-{seed}_image-{index}"
                f"_checkpoint-{checkpoint:06d}_p-mix-{sampling.p_mix:g}.png"
            )
            write_bytes(self.folder / name, png(pixels[number, index]))
            self.images[name] = {
                "file": name,
                "prompt": prompts[number],
                "seed": seed,
                "index": index,
                "checkpoint": checkpoint,
                **asdict(sampling),
                "trained_steps": sampling.trained_steps,
            }
        listed = [self.images[name] for name in sorted(self.images)]
        write_json(self.file, {"run": self.run, "images": listed})


def _identity(prompt: str, sampling: Sampling) -> str:
    """The prompt's first words, and a hash of all of it and of how it is sampled: another prompt
    or solver gets other files."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
    whole = repr((prompt, sorted(asdict(sampling).items())))
    return f"{words or 'prompt'}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _title(run: Path, sampling: Sampling) -> list[str]:
    solver = {1: "Euler", 2: f"DPM-Solver++(2), {sampling.variant}", 3: "DPM-Solver++(3)"}
    how = f"{sampling.steps} steps, {solver[sampling.order]}, shift {sampling.shift:g}"
    return [f"{run}: {how}", sampling.in_words]


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder; it is only read.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help=f"A prompt; {DEFAULT_PROMPTS} held-out ones if none is given."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of prompts: text, JSON, CSV, ...")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder; without it generated/<RUN's name>.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Of the noise; the run's own without it."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, max=MOST_IMAGES_EACH, help="Images per prompt and seed.")
    ] = 1,
    checkpoint: Annotated[
        list[int] | None,
        typer.Option(
            help="Iteration of a checkpoint, 0 for the base model; the newest without it. With "
            "several the base model is shown beside them."
        ),
    ] = None,
    p_mix: Annotated[
        float,
        typer.Option(help="Fraction of the steps with the trained model, the rest base model."),
    ] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Steps; as evaluations without it.")
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(metavar="S", help="Time shift, or dynamic; as evaluations without it."),
    ] = None,
    order: Annotated[
        int, typer.Option(min=1, max=3, help="Of DPM-Solver++; 1 is Euler, as evaluations.")
    ] = 1,
    variant: Annotated[
        str | None, typer.Option(help="Of order 2: midpoint (default) or heun.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Contact sheet; without it DIR/sheet.png.")
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the score of every image by the run's rewards."
        ),
    ] = None,
    trust: cli.TrustOption = False,
) -> None:
    """Images from any run, also from one that is being trained.

    Leaves a PNG for each image, manifest.json and a contact sheet of prompts x checkpoints x seeds.
    Images from earlier calls for the same run stay unless they are made anew.
    """
    from mixgrpo.models.policy import held_out_prompts
    from mixgrpo.runs.load import load_run

    cli.say_warnings()
    if variant is not None and (order != 2 or variant not in ("midpoint", "heun")):
        raise ConfigError(f"--variant {variant}: give midpoint or heun, and --order 2 with it")
    given = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if any(not text.strip() for text in given):
        raise ConfigError("--prompt: is empty; write what the image is to show")
    out = out or Path("generated") / run.resolve().name
    sheet = sheet or out / "sheet.png"
    check_places(out, sheet, parquet, run)
    # Code of a model may change the working directory.
    out, sheet, named, run = out.absolute(), sheet.absolute(), run, run.absolute()
    parquet = parquet.absolute() if parquet else None

    asked = sorted(set(checkpoint or []))
    loaded = load_run(run, asked[0] if asked else None, trust=trust)
    for iteration in asked[1:]:  # before any image is made
        check_at(run / "checkpoints", iteration)
    iterations = asked or [loaded.iteration]
    if len(iterations) > 1 and 0 not in iterations:
        iterations = [0, *iterations]
    ev = loaded.config.evaluation
    sampling = Sampling(
        steps=steps or ev.steps,
        shift=asked_shift(shift, loaded.policy) if shift else shift_of(ev.shift, loaded.policy),
        p_mix=p_mix,
        order=order,  # type: ignore[arg-type]  # its option's range
        variant="heun" if variant == "heun" else "midpoint",
    )
    wanted = given or choose(held_out_prompts(loaded.config, loaded.policy), DEFAULT_PROMPTS)
    seeds = list(dict.fromkeys(seed or [loaded.config.seed]))
    check_count(
        images, len(wanted), len(iterations) * len(seeds), "checkpoints and seeds", MOST_IMAGES
    )
    check_readable(loaded, wanted)
    scores = _Scores(parquet, loaded, wanted)
    out.mkdir(parents=True, exist_ok=True)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    listing = _Listing(out, run)

    columns: list[Column] = []
    for iteration in iterations:
        if iteration not in (0, loaded.iteration):
            loaded = load_run(run, iteration, trust=trust)
        # Every checkpoint has the base model beside it.
        way = sampling if iteration else replace(sampling, p_mix=0.0)
        group = f"iteration {iteration}, {way.label}" if iteration else way.label
        for k in seeds:
            pixels = generate(loaded, way, wanted, k, images)
            listing.add(wanted, pixels, k, iteration, way)
            scores.add(wanted, pixels, k, iteration, way)
            for index in range(images):
                label = f"seed {k}" + (f", image {index}" if images > 1 else "")
                columns.append(Column(group, label, pixels[:, index]))
        cli.say(f"{group}: done", sys.stderr)
    scores.write()
    write_bytes(sheet, contact_sheet(_title(named, sampling), wanted, columns))
    if not is_stream(sheet):  # which may be the standard output
        cli.say(sheet)


if __name__ == "__main__":
    cli.run(main)
