"""Judges a policy on held-out prompts: ODE sampling, fixed noise, every reward.

    python -m mixgrpo.evaluate RUN [--checkpoint ITER] [--p-mix P]... [--json] [--parquet FILE]

The only measure by which settings are compared. Rewards of a rollout are not: they change with the
window's position alone, because late noise does less damage than early noise.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mixgrpo import cli
from mixgrpo.evaluation.bootstrap import LEVEL, RESAMPLES, Interval, bootstrap
from mixgrpo.evaluation.held_out import (
    LARGEST_SEED,
    MOST_IMAGES_EACH,
    Evaluation,
    check_count,
    check_readable,
    choose,
    evaluate,
    evaluation_noise,
    in_blocks,
)
from mixgrpo.files.atomic import is_stream, write_bytes, write_text
from mixgrpo.files.scores import as_parquet, joined
from mixgrpo.rewards.calls import check_prompts
from mixgrpo.rewards.load import load_rewards
from mixgrpo.rewards.protocol import Reward
from mixgrpo.sampling.inference import Sampling, asked_shift, images_at_once, shift_of
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.paths import check_file, check_outside

if TYPE_CHECKING:
    from mixgrpo.runs.load import Loaded


MOST_IMAGES = 10_000_000
"""In one call; only their scores are kept."""
FEW_PROMPTS = 20
"""Below this a bootstrap interval is clearly too narrow, and the table says so."""


def judge(
    loaded: "Loaded",
    ways: Sequence[Sampling],
    rewards: dict[str, Reward],
    prompts: list[str],
    images: int,
    seed: int,
) -> list[Evaluation]:
    """What the same images are worth by each way to sample, in the batches of the run's own
    evaluations."""
    config, policy = loaded.config, loaded.policy
    check_readable(loaded, prompts)

    def judged(way: Sampling, block: range) -> Evaluation:
        return evaluate(
            policy,
            loaded.velocity,
            list(rewards.values()),
            prompts,
            evaluation_noise(seed, prompts, len(block), policy.latent_shape, block.start),
            way.steps,
            way.shift,
            images_at_once(config.compute),
            loaded.reference,
            way.p_mix,
        )

    usual = config.evaluation.images_per_prompt
    return [in_blocks(images, usual, partial(judged, way)) for way in ways]


@dataclass(frozen=True)
class Row:
    """One reward of one way to sample."""

    reward: str
    role: str
    """Whether the run trains on the reward, holds it out, or does not know it."""
    sampling: Sampling
    mean: Interval
    difference: Interval | None
    """Minus the base model, paired by prompt and noise. None for the base model itself."""


def compare(
    config: RunConfig,
    ways: Sequence[Sampling],
    judged: Sequence[Evaluation],
    seed: int,
) -> list[Row]:
    """Every reward of every way to sample the same images, the first of which is the base model's.

    Intervals are over prompts, each of which counts by the mean of its images.
    """
    rewards = list(judged[0].scores)
    means = np.stack([e.scores[name].mean(1).numpy() for e in judged for name in rewards], 1)
    base = np.tile(means[:, : len(rewards)], len(ways))
    intervals, differences = bootstrap(means, seed), bootstrap(means - base, seed)
    rows = []
    for r, name in enumerate(rewards):
        held_out = "held out" if name in config.rewards.held_out else "neither trained nor held out"
        role = "trained on" if name in config.rewards.train else held_out
        for w, way in enumerate(ways):
            i = w * len(rewards) + r
            rows.append(Row(name, role, way, intervals[i], differences[i] if w else None))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a block for each reward, its columns as wide as they need to be."""
    head = ["", "mean", "95 % interval", "minus base", "95 % interval"]
    cells: list[list[str]] = []
    for row in rows:
        d = row.difference
        change = ["", ""] if d is None else [f"{d.mean:+z.4f}", _bounds(d, "+z.4f")]
        cells.append(
            [f"  {row.sampling.label}", f"{row.mean.mean:.4f}", _bounds(row.mean, ".4f"), *change]
        )
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]

    def laid_out(line: list[str]) -> str:
        first, *rest = (
            text.rjust(w) if i else text.ljust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    lines = [laid_out(head)]
    for i, row in enumerate(rows):
        if i == 0 or row.reward != rows[i - 1].reward:
            lines.append(f"{row.reward} ({row.role})")
        lines.append(laid_out(cells[i]))
    return "\n".join(lines)


def _bounds(interval: Interval, form: str) -> str:
    if np.isnan(interval.low):
        return "-"
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def _covers(prompts: int, images: int) -> str:
    """What the intervals say, and what they do not."""
    if prompts < 2:
        return "One prompt alone has no interval."
    each = "1 image" if images == 1 else f"the mean of {images} images"
    text = (
        f"Intervals: {100 * LEVEL:g} % percentile bootstrap over the {prompts} prompts ({each} "
        f"each; {RESAMPLES:,} resamples). They cover the choice of prompts, for this one trained "
        "model: not what another seed of training would have given."
    )
    if prompts < FEW_PROMPTS:
        text += f" With fewer than {FEW_PROMPTS} prompts they are too narrow."
    return text


def _as_json(row: Row) -> dict[str, Any]:
    def numbers(interval: Interval | None) -> dict[str, float | None] | None:
        if interval is None:
            return None
        return {k: None if np.isnan(v) else v for k, v in interval._asdict().items()}

    return {
        "reward": row.reward,
        "role": row.role,
        "policy": row.sampling.label,
        "p_mix": row.sampling.p_mix,
        "trained_steps": row.sampling.trained_steps,
        **(numbers(row.mean) or {}),
        "minus_base": numbers(row.difference),
    }


def main(
    run: Annotated[Path, typer.Argument(help="A run's folder; it is only read.")],
    checkpoint: Annotated[
        int | None, typer.Option(help="Iteration of the checkpoint; the newest without it.")
    ] = None,
    p_mix: Annotated[
        list[float] | None,
        typer.Option(help="Also hybrid: this fraction of the steps trained, the rest base model."),
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="A further reward beside those of the run.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="ODE steps.")] = None,
    shift: Annotated[
        str | None,
        typer.Option(metavar="S", help="Time shift of the steps; dynamic: the model's own."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, max=MOST_IMAGES_EACH, help="Images per prompt.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=0, help="Number of held-out prompts; 0 means all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of the images' noise.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines, with the score of every image.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file instead of the terminal.")
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the score of every image to this file."),
    ] = None,
    trust: cli.TrustOption = False,
) -> None:
    """Score a run's model on its held-out prompts, beside the base model it started from.

    What is not given is as in the run's own evaluations. Pure and hybrid inference are separate
    rows: "pure" is the trained model alone.
    """
    from mixgrpo.models.policy import held_out_prompts
    from mixgrpo.runs.load import load_run

    cli.say_warnings()
    for option, file in (("--out", out), ("--parquet", parquet)):
        if file is not None:
            check_outside(file, run)
            check_file(option, file)
    # Code that is called may change the working directory.
    out, parquet = (file.absolute() if file else None for file in (out, parquet))
    loaded = load_run(run, checkpoint, trust=trust)
    config = loaded.config
    names = dict.fromkeys([*config.rewards.train, *config.rewards.held_out, *(reward or [])])
    rewards = load_rewards(names, config.rewards, config.compute.offload)
    ev = config.evaluation
    policy = loaded.policy
    chosen_shift = asked_shift(shift, policy) if shift else shift_of(ev.shift, policy)
    base = Sampling(steps or ev.steps, chosen_shift, p_mix=0.0)
    asked = dict.fromkeys([0.0, 1.0, *(p_mix or [])])
    ways = [replace(base, p_mix=p) for p in asked]
    if loaded.iteration == 0:  # nothing was trained: all of them would be the base model
        ways = ways[:1]
    known = held_out_prompts(config, loaded.policy)
    chosen = choose(known, ev.prompts if prompts is None else prompts)
    images = images or config.evaluated_images(loaded.iteration)
    seed = config.seed if seed is None else seed
    check_count(images, len(chosen), len(ways), "policies", MOST_IMAGES)
    for one in rewards.values():
        check_prompts(one, chosen)
    judged = judge(loaded, ways, rewards, chosen, images, seed)
    rows = compare(config, ways, judged, seed)
    scores = joined(
        e.table(seed, checkpoint=loaded.iteration, p_mix=way.p_mix)
        for way, e in zip(ways, judged, strict=True)
    )
    if parquet is not None:
        write_bytes(parquet, as_parquet(scores))

    notes = [_covers(len(chosen), images)]
    notes += [way.in_words for way in ways if way.p_mix not in (0, 1)]
    if loaded.iteration == 0:
        notes.append("This is the base model: nothing was trained at iteration 0.")
    if as_json:
        text = json.dumps(
            {
                "run": str(run),
                "checkpoint": loaded.iteration,
                "prompts": len(chosen),
                "images_per_prompt": images,
                "seed": seed,
                "steps": base.steps,
                "shift": base.shift,
                "notes": notes,
                "rows": [_as_json(row) for row in rows],
                "scores": scores.to_pylist(),
            },
            indent=2,
            allow_nan=False,
        )
    else:
        text = "\n".join(
            [
                f"run {run}, checkpoint {loaded.iteration} of {config.iterations} iterations",
                f"{len(chosen)} held-out prompts x {images} images, seed {seed}; "
                f"{base.steps} ODE steps, shift {base.shift:g}",
                "",
                table(rows),
                "",
                *(textwrap.fill(note, 80) for note in notes),
            ]
        )
    if out is None:
        cli.say(text)
    else:
        write_text(out, text + "\n")
        if not is_stream(out):  # which may be the standard output
            cli.say(out)


if __name__ == "__main__":
    cli.run(main)
