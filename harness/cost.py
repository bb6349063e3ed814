"""What the paper's experiments take in GPU hours, from the times that the paper printed.

python -m harness.cost [SWEEP FILE ...]

Hours = published seconds per iteration x iterations x 32 GPUs. Published: one run per method, on
FLUX.1-dev at 720 x 720 with 32 prompts of 12 images in an iteration. Nothing of it was measured
here; `--plan` says what this project's own runs have taken. A run that stands in several sweeps is
computed once, and counts once in the sum over them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.study import paper
from mixgrpo import cli

if TYPE_CHECKING:
    from mixgrpo.settings.config import RunConfig

GPUS = 32
ITERATIONS = 300


def gpu_hours(method: str, iterations: int = ITERATIONS) -> float:
    """GPU hours of one run of a method of the paper's main table."""
    seconds = paper.row("main", method)["seconds_per_iteration"]
    return float(seconds) * iterations * GPUS / 3600


def nearest_method(config: "RunConfig") -> str:
    """The row of the main table whose sampling and number of trained steps are nearest."""
    sampler, window = config.sampler, config.window
    if sampler.sde == "all":
        return "DanceGRPO" if config.trained_per_image > 4 else "DanceGRPO, 4 random steps"
    if sampler.tail_ratio < 1:
        return "MixGRPO-Flash*" if window.strategy == "frozen" else "MixGRPO-Flash"
    return "MixGRPO, CPS noise" if sampler.kernel == "cps" else "MixGRPO"


def methods() -> str:
    """One run of every method, as a Markdown table."""
    lines = [
        "| method | s / iteration | hours of 32 GPUs | GPU hours of a run |",
        "|---|---|---|---|",
    ]
    for name in paper.find("main").rows:
        seconds = paper.row("main", name).get("seconds_per_iteration")
        if seconds is not None:
            hours = gpu_hours(name)
            lines.append(f"| {name} | {seconds:.3f} | {hours / GPUS:.1f} | {hours:,.0f} |")
    return "\n".join(lines)


def sweeps(files: Sequence[Path], profile: str) -> str:
    """All runs of each sweep file in a profile, as a Markdown table.

    The last line counts a run once that stands in several sweeps, as it is computed once.
    ConfigError where a file has no such profile, or its prompts are not at hand.
    """
    from harness.study.load import load_sweep

    lines = ["| sweep | arms | seeds | runs | GPU hours |", "|---|---|---|---|---|"]
    by_run: dict[str, float] = {}
    for file in files:
        sweep = load_sweep(file, profile)
        of_sweep = {
            run.hash: gpu_hours(nearest_method(run.config), run.config.iterations)
            for run in sweep.runs
        }
        cells = (len(sweep.arms), len(sweep.seeds), len(sweep.runs))
        lines.append(
            f"| {sweep.name} | {' | '.join(map(str, cells))} | {sum(of_sweep.values()):,.0f} |"
        )
        by_run |= of_sweep
    total = f"| together | | | {len(by_run)} | {sum(by_run.values()):,.0f} |"
    return "\n".join([*lines, total])


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Sweep files.")
    ] = None,
    profile: Annotated[str, typer.Option(metavar="NAME", help="The files' profile.")] = "flux",
) -> None:
    """GPU hours of the paper's methods, or of the sweeps in FILE..., by the paper's own times."""
    cli.say(sweeps(files, profile) if files else methods())


if __name__ == "__main__":
    cli.run(main)
