"""Pictures of one run for the same prompts and noise, before and after training."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import RootModel

from harness.runs.state import run_folder, sweep_folder
from mixgrpo.files.records import DamagedFileError, read, read_bytes

if TYPE_CHECKING:
    from harness.study.spec import Run, Sweep

_LARGEST_PICTURE = 8192
"""Pixels of a side; no model here draws such images."""


class _Prompts(RootModel[tuple[str, ...]]):
    """samples/prompts.json."""


@dataclass(frozen=True)
class Samples:
    arm: str
    seed: int
    iterations: int
    prompts: tuple[str, ...]
    before: tuple[bytes, ...]
    """PNG files."""
    after: tuple[bytes, ...]


def read_samples(
    sweep: "Sweep",
    finished: set[tuple[str, int]],
    runs_dir: Path,
    damaged: list[str] | None = None,
) -> Samples | None:
    """Pictures of the reference arm's first finished run; of another run where it has none.

    `finished`: arm and seed of the runs that are. What cannot be shown is added to `damaged`.
    """
    runs = sorted(sweep.runs, key=lambda run: (run.arm != sweep.reference, run.seed))
    for run in runs:
        if (run.arm, run.seed) in finished:
            try:
                samples = _samples_of(
                    run, run_folder(sweep_folder(sweep, runs_dir), run) / "samples"
                )
            except DamagedFileError as error:
                fix = "the report shows another run's pictures; its numbers do not depend on them"
                if damaged is not None:
                    damaged.append(f"{run.name}: {error}; {fix}")
                continue
            if samples is not None:
                return samples
    return None


def _samples_of(run: "Run", folder: Path) -> Samples | None:
    """None where a run has no pictures, DamagedFileError where it has some of them."""
    total = run.config.iterations
    prompts = read(_Prompts, folder / "prompts.json")
    if prompts is None or not prompts.root:
        return None
    before, after = (
        tuple(_picture(folder / f"{m:06d}" / f"{k}.png") for k in range(len(prompts.root)))
        for m in (0, total)
    )
    return Samples(run.arm, run.seed, total, prompts.root, before, after)


def _picture(file: Path) -> bytes:
    """The bytes of a PNG file. DamagedFileError where it is none."""
    from PIL import Image

    content = read_bytes(file)
    if content is None:
        raise DamagedFileError(file, "is missing")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > _LARGEST_PICTURE:
                raise DamagedFileError(file, f"has {image.size[0]} x {image.size[1]} pixels")
            image.load()
    except DamagedFileError:
        raise
    except Exception as error:  # whatever a damaged file makes PIL raise
        raise DamagedFileError(file, f"is no whole PNG: {error}".replace("\n", " ")) from None
    return content
