"""Writes a run's model as a complete diffusers pipeline, usable without this project.

    python -m mixgrpo.to_pipeline RUN --out FOLDER [--checkpoint ITER]

`DiffusionPipeline.from_pretrained(FOLDER)` loads it. Adapters are added to the weights; the other
parts are those of the pipeline that the run started from. As `model.checkpoint` of another run the
folder is where that run starts.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixgrpo import cli
from mixgrpo.catalogue.models import DIFFUSION, hub_name
from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import flush
from mixgrpo.files.contents import INDEX
from mixgrpo.models.export import save_transformer
from mixgrpo.settings.paths import check_folder, check_outside

if TYPE_CHECKING:
    from mixgrpo.runs.load import Loaded

NETWORK = "transformer"
"""The network's folder in a pipeline."""


def write_pipeline(loaded: "Loaded", out: Path) -> Path:
    """Write the pipeline with the trained network into the folder `out`, which must not exist.

    The network keeps its dtype: float32 for `main`, since what adapters learn is often less than
    bfloat16 can resolve. Atomic: written under a temporary name, then renamed. ConfigError where a
    part of the pipeline is missing.
    """
    from mixgrpo.models.adapters import merge_adapters
    from mixgrpo.models.diffusion import DiffusersPolicy
    from mixgrpo.models.parts import Pipeline

    model, policy = loaded.config.model, loaded.policy
    assert isinstance(policy, DiffusersPolicy)
    checkpoint = hub_name(model.name, model.checkpoint)
    assert checkpoint is not None
    parts = [NETWORK, "vae", "scheduler", *policy.side.parts]
    pipeline = Pipeline.find(checkpoint, model.revision, policy.pipeline_class, parts)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shutil.copy2(pipeline.folder / INDEX, partial)
        for part in parts[1:]:
            if pipeline.has(part):
                shutil.copytree(pipeline.folder / part, partial / part)
        merge_adapters(policy.network)
        save_transformer(policy.network, {}, partial / NETWORK)
        for path in partial.rglob("*"):
            flush(path)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(out.parent)
    return out


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder; it is only read.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The pipeline's folder; a new one.")],
    checkpoint: Annotated[
        int | None, typer.Option(help="Iteration of the checkpoint; the newest without it.")
    ] = None,
    trust: cli.TrustOption = False,
) -> None:
    """Write a run's model as a complete diffusers pipeline, with its averaged weights."""
    from mixgrpo.runs.load import load_run

    cli.say_warnings()
    check_outside(out, run)
    if os.path.lexists(out):
        raise ConfigError(f"--out {out}: is there already; name a new folder")
    check_folder("--out", out)
    out = out.absolute()  # code of a model may change the working directory
    loaded = load_run(run, checkpoint, device="cpu", precision="fp32", trust=trust)
    if loaded.config.model.name not in DIFFUSION:
        raise ConfigError(
            f"{run}: model {loaded.config.model.name} is not a diffusers pipeline; its weights are "
            "in the folder weights/ of a finished run"
        )
    cli.say(write_pipeline(loaded, out))


if __name__ == "__main__":
    cli.run(main)
