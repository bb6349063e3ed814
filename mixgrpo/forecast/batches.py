"""The batch sizes of a run, and the number of prompts of an evaluation, from its settings alone."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from mixgrpo.evaluation.held_out import IMAGES_AT_ONCE
from mixgrpo.files.prompts import read_prompts
from mixgrpo.sampling.inference import images_at_once
from mixgrpo.sampling.plan import make_plan
from mixgrpo.settings.config import RunConfig


@dataclass(frozen=True)
class Batches:
    """The largest batches of one rank. All but `prompts` and `block` count latents or images."""

    prompts: int
    """Prompts per iteration."""
    block: int
    """Prompts sampled together."""
    rollout: int
    update: int
    decode: int
    evaluation: int
    held: int
    """Images that an evaluation holds in memory together."""

    @classmethod
    def of(cls, config: RunConfig, ranks: int) -> "Batches":
        """The batches of one of `ranks` ranks, by the rules of `rollout`, `update.judge`,
        `collect.decode` and `evaluate`."""
        objective, group = config.objective, config.rollout.group_size
        limit = config.compute.micro_batch or math.inf
        prompts = math.ceil(config.rollout.prompts / ranks)
        block = min(prompts, config.rollout.block or prompts)
        steps = config.trained_per_image
        rows = prompts * math.ceil(config.trained_images / objective.updates)
        plan = make_plan(config.sampler, config.make_window().steps_at(0))
        shared = (
            config.rollout.noise == "shared"
            and steps == config.window.size
            and plan.window_begins_shared
        )
        # From the second update on all steps go together, apart from a first step that the images
        # of a group share.
        together = max(1, steps - shared) if objective.updates > 1 else 1
        images = config.evaluation.images_per_prompt
        held_out = math.ceil((held_out_count(config) or IMAGES_AT_ONCE * ranks) / ranks)
        held = min(held_out, max(1, IMAGES_AT_ONCE // images)) * images
        return cls(
            prompts,
            block,
            rollout=int(min(limit, block * group)),
            update=int(min(limit, rows * together)),
            decode=int(min(limit, block * group)),
            evaluation=min(held, images_at_once(config.compute)),
            held=held,
        )


def held_out_count(config: RunConfig) -> int | None:
    """The number of prompts of an evaluation; None where only the loaded model knows them.

    Warns where the file of prompts does not exist.
    """
    if config.evaluation.prompts:
        return config.evaluation.prompts
    if config.prompts.held_out is not None:
        if not Path(config.prompts.held_out).expanduser().exists():
            warnings.warn(
                f"prompts.held_out: there is no {config.prompts.held_out} yet, so that the work of "
                "an evaluation is unknown",
                stacklevel=2,
            )
            return None
        return len(read_prompts(Path(config.prompts.held_out)))
    if config.model.name == "scenes":
        from mixgrpo.scenes.prompts import held_out_prompts

        return len(held_out_prompts())
    return None
