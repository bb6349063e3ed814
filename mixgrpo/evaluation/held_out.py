"""Judges a policy on held-out prompts: which images are drawn, and their rewards."""

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.files.scores import scores_table
from mixgrpo.maths.randomness import normal
from mixgrpo.models.load import prepare
from mixgrpo.models.protocol import Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.rewards.calls import score
from mixgrpo.rewards.protocol import Reward
from mixgrpo.sampling.distributions import diversity
from mixgrpo.sampling.inference import Sampling, draw, images_at_once
from mixgrpo.sampling.rollout import slices

if TYPE_CHECKING:
    import pyarrow as pa

    from mixgrpo.runs.load import Loaded


log = logging.getLogger(__name__)

IMAGES_AT_ONCE = 128
"""The most images that are held, and handed to a reward, together."""


def choose(prompts: list[str], count: int) -> list[str]:
    """`count` of the prompts (0: all), chosen by their text so that no kind is preferred."""
    if not count:
        return prompts
    chosen = set(sorted(prompts, key=lambda p: hashlib.sha256(p.encode()).digest())[:count])
    return [p for p in prompts if p in chosen]


MOST_IMAGES_EACH = 10_000
"""Of one prompt, as the setting `evaluation.images_per_prompt` has it."""
LARGEST_SEED = 2**31 - 1
"""The largest seed, as the setting `seed` has it."""


@dataclass(frozen=True)
class Evaluation:
    """What images of held-out prompts were worth, and some of the images."""

    prompts: list[str]
    scores: dict[str, Tensor]
    """By reward: [prompts, images per prompt]."""
    diversity: Tensor | None
    """[prompts], as `distributions.diversity` has it; None with one image per prompt. Of the first
    block of images alone (`in_blocks`), as is `images`."""
    images: dict[str, Tensor]
    """[images per prompt, 3, H, W] in [0, 1] on the CPU, of the prompts that were to be shown."""

    def table(self, seed: int, **constants: float) -> "pa.Table":
        """One row an image (`mixgrpo.files.scores`); `seed`: of the noise that it was drawn from.
        `constants` are columns before the others, with the same number in all rows."""
        scores = {name: values.numpy() for name, values in self.scores.items()}
        return scores_table(self.prompts, seed, scores, constants)

    def first(self, count: int) -> "Evaluation":
        """Of its first prompts alone."""
        return Evaluation(
            self.prompts[:count],
            {name: values[:count] for name, values in self.scores.items()},
            None if self.diversity is None else self.diversity[:count],
            {p: self.images[p] for p in self.prompts[:count] if p in self.images},
        )

    @classmethod
    def joined(cls, parts: "Sequence[Evaluation]") -> "Evaluation":
        """Several of other prompts, one after the other."""
        spread = [part.diversity for part in parts if part.diversity is not None]
        return cls(
            [p for part in parts for p in part.prompts],
            {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
            torch.cat(spread) if spread else None,
            {p: image for part in parts for p, image in part.images.items()},
        )


def check_count(images: int, prompts: int, times: int, what: str, most: int) -> None:
    """ConfigError where `images` of each prompt, `times` over (of which `what` there are so many),
    are more than `most`: before any of them is made."""
    if images * prompts * times > most:
        raise ConfigError(
            f"--images {images}: {images} images of {prompts} prompts, for {times} {what}, are "
            f"more than {most:,}; give fewer of them"
        )


def in_blocks(images: int, block: int, judge: Callable[[range], Evaluation]) -> Evaluation:
    """`images` of every prompt, judged `block` at a time; `judge` takes their indices.

    So the first images have the bytes that they have in an evaluation of `block` images, whose
    batches are the same, and more images take no more memory.
    """
    first, *others = (
        judge(range(start, min(start + block, images))) for start in range(0, images, block)
    )
    scores = {
        name: torch.cat([values, *(other.scores[name] for other in others)], 1)
        for name, values in first.scores.items()
    }
    return replace(first, scores=scores)


def evaluation_noise(
    seed: int, prompts: Sequence[str], images: int, shape: tuple[int, ...], first: int = 0
) -> Tensor:
    """Initial noise [prompts * images, ...] of the images from index `first` on; each depends on
    (seed, prompt, index) alone."""
    indices = range(first, first + images)
    return torch.stack([normal(shape, "evaluation", seed, p, i) for p in prompts for i in indices])


def evaluate(
    policy: Policy,
    velocity: Velocity,
    rewards: Sequence[Reward],
    prompts: list[str],
    noise: Tensor,
    steps: int,
    shift: float,
    batch: int = 128,
    reference: Velocity | None = None,
    p_mix: float = 1.0,
    show: Collection[str] = (),
    tell: Callable[[float], None] = lambda part: None,
) -> Evaluation:
    """Sample every prompt by the ODE from `noise` [prompts * images, ...] and score the images.

    With `reference`, the base model, the trained one takes the fraction `p_mix` of the steps only.
    Batches of the same size give the same bytes; `batch` is part of what is held fixed. Images are
    let go of as soon as they are scored, but for those of the prompts in `show`. `tell` is called
    with the part that is done, from 0 to 1.
    """
    device = next(policy.network.parameters()).device
    count = len(noise) // len(prompts)
    sampling = Sampling(steps, shift, p_mix)
    scores: dict[str, list[Tensor]] = {r.name: [] for r in rewards}
    spread: list[Tensor] = []
    images: dict[str, Tensor] = {}
    for part in slices(len(prompts), max(1, IMAGES_AT_ONCE // count)):
        tell(part.start / len(prompts))
        some = prompts[part]
        repeated = [p for p in some for _ in range(count)]
        rows = noise[part.start * count : part.stop * count].to(device)
        pixels = draw(policy, velocity, reference or velocity, sampling, repeated, rows, batch)
        for reward in rewards:
            scores[reward.name].append(score(reward, pixels, repeated))
        grouped = pixels.unflatten(0, (-1, count))
        if count > 1:
            spread.append(diversity(grouped).cpu())
        images |= {p: grouped[i].cpu() for i, p in enumerate(some) if p in show}
    judged = {name: torch.cat(parts).unflatten(0, (-1, count)) for name, parts in scores.items()}
    return Evaluation(prompts, judged, torch.cat(spread) if spread else None, images)


def check_readable(loaded: "Loaded", prompts: Sequence[str]) -> None:
    """ConfigError naming a prompt that the model cannot read, before any image is made."""
    try:
        # All at once: text encoders that come and go should come once.
        prepare(loaded.policy, prompts, log.info)
        for part in slices(len(prompts), images_at_once(loaded.config.compute)):
            loaded.policy.encode(list(prompts[part]))
    except ValueError as error:
        raise ConfigError(f"model {loaded.config.model.name}: {error}") from None
