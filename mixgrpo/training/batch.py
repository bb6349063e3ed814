"""What the updates of one iteration learn from: which images, which of their steps, in what parts.

An update takes some images of every group. Each image has as many slots as it has trained steps:
in slot j it takes its j-th, which need not be the same step for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mixgrpo.maths.advantages import best_and_worst
from mixgrpo.maths.objective import kl_step_weights, step_weights
from mixgrpo.maths.randomness import permutation
from mixgrpo.maths.steps import wide
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import Plan
from mixgrpo.sampling.rollout import Rollout, WindowStep, slices, take
from mixgrpo.sampling.walk import plan_coefficients
from mixgrpo.settings.config import ObjectiveConfig, RunConfig

_RECORDED = ("latents", "sample", "mean", "log_prob")


@dataclass(frozen=True)
class Batch:
    """This rank's P groups, each with all of its N images, and all that their losses depend on."""

    rollout: Rollout
    conditioning: Conditioning
    """P rows."""
    advantages: Tensor
    """[P, N], on the device."""
    chosen: Tensor
    """[P, n], on the CPU: the images that the updates of the iteration take."""
    groups: Tensor
    """Indices of the groups that are computed, on the CPU."""
    counts: Tensor
    """[P], on the device: 1, or 0 for a group that is computed only to keep the ranks in step."""
    drawn: Tensor | None
    """[P, N, k], on the CPU: positions in the window of each image's trained steps; none: all."""
    coefficients: Tensor
    """[w, 3]: of each window step the coefficients of x and v, and the std; on the CPU, like what
    follows."""
    weights: Tensor
    """[w]: of each window step's loss."""
    kl_weights: Tensor
    """[w]: what each window step's KL is multiplied by, besides objective.kl_weight."""
    sigmas: Tensor
    """[w]: at which each window step begins."""
    window: WindowStep | None
    """All window steps as one, with [w, P, N, ...], where images differ in their steps."""


@dataclass(frozen=True)
class Steps:
    """M pairs of an image and one of its steps, as many as one forward covers.

    What is `float | Tensor` is one number where all take the same step, else broadcasts with
    `latents` or, for the weights, with [M].
    """

    latents: Tensor
    """[M, ...] before the step, as the rollout took it."""
    sample: Tensor
    """[M, ...] after it."""
    mean: Tensor
    """[M, ...], of the step's distribution under the rollout policy."""
    log_prob: Tensor
    """[M], of `sample` under the rollout policy."""
    advantages: Tensor
    """[M]"""
    counts: Tensor
    """[M]: 1, or 0 for what is computed only to keep the ranks in step."""
    cx: float | Tensor
    cv: float | Tensor
    std: Tensor
    """The step is x' = cx x + cv v + std noise; [] or [M], on the CPU."""
    weight: float | Tensor
    kl_weight: float | Tensor
    sigma: float | Tensor
    conditioning: Conditioning
    """M / together rows."""
    together: int
    """So many images, one after the other, begin from the same latents."""

    def predict(self, velocity: Velocity) -> Tensor:
        """The velocity [M, ...] at the latents, evaluated once for images that share them."""
        x = self.latents[:: self.together].contiguous()
        v = velocity(x, self.sigma, self.conditioning)
        return v if self.together == 1 else v.repeat_interleave(self.together, 0)


def select(objective: ObjectiveConfig, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """The images [P, n] that the updates of an iteration take, and which groups [P] count.

    advantages: [P, N] before they are clipped.
    """
    prompts, group = advantages.shape
    if objective.best_of is None:
        chosen = torch.arange(group).expand(prompts, group)
    else:
        chosen = best_and_worst(advantages, objective.best_of)
    if objective.skip_constant_groups:
        limit = objective.advantage_clip
        return chosen, advantages.clamp(-limit, limit).any(1)
    return chosen, torch.ones(prompts, dtype=torch.bool)


def make_batch(
    config: RunConfig,
    rollout: Rollout,
    conditioning: Conditioning,
    advantages: Tensor,
    chosen: Tensor,
    counts: list[bool],
    drawn: Tensor | None,
    all_groups: bool = False,
) -> Batch:
    """`counts`: which of the P groups are learned from; the others are computed where `all_groups`
    is set, because with sharded weights every rank must take part in every forward."""
    plan = rollout.plan
    coefficients = [plan_coefficients(plan, index) for index in plan.window]
    dts = [float(plan.sigmas[i + 1]) - float(plan.sigmas[i]) for i in plan.window]
    kl_weights = kl_step_weights(config.objective.kl, config.sampler.kernel, dts)
    weights = step_weights(config.objective.step_weight, [c.std for c in coefficients], dts)
    return Batch(
        rollout,
        conditioning,
        advantages.to(rollout.latents),
        chosen,
        torch.tensor([i for i, counted in enumerate(counts) if counted or all_groups]).long(),
        torch.tensor(counts).to(rollout.latents),
        drawn,
        torch.tensor(coefficients, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(kl_weights, dtype=torch.float64),
        plan.sigmas[list(plan.window)],
        None if drawn is None else _stacked(rollout.window),
    )


def _stacked(window: list[WindowStep]) -> WindowStep:
    def stack(name: str) -> Tensor:
        group = window[0].sample.shape[1]
        values = [getattr(step, name) for step in window]
        return torch.stack([v.expand(len(v), group, *v.shape[2:]) for v in values])

    return WindowStep(-1, *map(stack, _RECORDED))


def drawn_steps(config: RunConfig, iteration: int, prompts: list[str]) -> Tensor | None:
    """Positions in the window of the steps trained with each image, ascending: [P, N, k].

    Drawn from (seed, iteration, prompt, image) alone. None where every image trains all steps.
    """
    size, count = config.window.size, config.trained_per_image
    if count == size:
        return None
    return torch.tensor(
        [
            [
                sorted(permutation(size, "trained", config.seed, iteration, prompt, i)[:count])
                for i in range(config.rollout.group_size)
            ]
            for prompt in prompts
        ]
    )


def update_parts(count: int, updates: int) -> list[slice]:
    """`count` images in `updates` consecutive parts whose sizes differ by at most one.

    None is larger than the first: the rollout takes as many images at once, so that it and the
    first update have batches of one shape.
    """
    bounds = [-(-count * u // updates) for u in range(updates + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def slots_together(config: RunConfig, plan: Plan, first: bool) -> list[list[int]]:
    """The slots of an update, in the parts that one forward may cover.

    In the first update each slot alone, as the rollout computed it: its ratio is then exactly 1,
    and the gradients of the first and the last slot can be compared. Alone too where every step's
    gradient is scaled by itself. Later all that are not shared: fewer and larger batches.
    """
    slots = list(range(config.trained_per_image))
    if first or config.objective.step_gradient == "unit":
        return [[slot] for slot in slots]
    whole = len(slots) == config.window.size
    shared = whole and config.rollout.noise == "shared" and plan.window_begins_shared
    parts = [slots[:1], slots[1:]] if shared else [slots]
    return [part for part in parts if part]


def forwards(
    batch: Batch | None, images: slice, slots: list[int], limit: int | None, block: int | None
) -> Iterator[Steps]:
    """The steps in these slots of the chosen images `images`, in parts that one forward covers.

    Each is to be backpropagated before the next is asked for, so that the activations of one
    forward are kept at a time. A slot that begins from shared latents must come alone. `limit`: the
    most latents in one forward, `block`: the most groups, as in the rollout. No batch: nothing.
    """
    if batch is None:
        return
    size, device = images.stop - images.start, batch.advantages.device
    shared = batch.drawn is None and batch.rollout.window[slots[0]].shared
    # One latent per group: whole groups, as many as a forward takes.
    together = size if shared else 1
    for some in slices(len(batch.groups), block):
        groups = batch.groups[some].repeat_interleave(size)
        chosen = batch.chosen[batch.groups[some], images].flatten()
        positions = torch.tensor(slots).repeat_interleave(len(groups))
        if batch.drawn is not None:
            positions = batch.drawn[groups, chosen][:, slots].T.flatten()
        groups, chosen = (index.to(device).repeat(len(slots)) for index in (groups, chosen))
        one = slots[0] if batch.drawn is None and len(slots) == 1 else None
        for part in slices(len(groups), limit and limit * together):
            where = positions[part] if one is None else one
            yield _steps(batch, groups[part], chosen[part], where, together)


def _steps(
    batch: Batch, groups: Tensor, images: Tensor, where: Tensor | int, together: int
) -> Steps:
    """The steps at the positions `where` [M] in the window, on the CPU, of some images [M] of some
    groups [M]; a number where all take the same."""
    latents, sample, mean, log_prob = _recorded(batch, groups, images, where)
    cx, cv, std = batch.coefficients[where].unbind(-1)
    of_each = latents.flatten(1)[:, 0]
    return Steps(
        latents,
        sample,
        mean,
        log_prob,
        batch.advantages[groups, images],
        batch.counts[groups],
        _beside(cx, latents),
        _beside(cv, latents),
        std,
        _beside(batch.weights[where], of_each),
        _beside(batch.kl_weights[where], of_each),
        _beside(batch.sigmas[where], of_each),
        take(batch.conditioning, groups[::together]),
        together,
    )


def _recorded(
    batch: Batch, groups: Tensor, images: Tensor, where: Tensor | int
) -> tuple[Tensor, ...]:
    """What the rollout recorded there: latents, sample, mean [M, ...] and log-prob [M]."""

    def at_step(step: int, name: str, rows: slice) -> Tensor:
        values: Tensor = getattr(batch.rollout.window[step], name)
        some = images[rows]
        shared = values.shape[1] < batch.advantages.shape[1]
        return values[groups[rows], torch.zeros_like(some) if shared else some]

    if isinstance(where, int):
        return tuple(at_step(where, name, slice(None)) for name in _RECORDED)
    if batch.window is not None:
        index = (where.to(groups.device), groups, images)
        return tuple(getattr(batch.window, name)[index] for name in _RECORDED)
    # Slot by slot: each step's rows lie side by side.
    steps, counts = where.unique_consecutive(return_counts=True)
    bounds = [0, *counts.cumsum(0).tolist()]
    rows = [slice(a, b) for a, b in pairwise(bounds)]
    parts = list(zip(steps.tolist(), rows, strict=True))
    return tuple(torch.cat([at_step(s, name, r) for s, r in parts]) for name in _RECORDED)


def _beside(coefficient: Tensor, x: Tensor) -> Tensor | float:
    """A number, or one per row of x, on its device."""
    if coefficient.dim() == 0:
        return float(coefficient)
    return coefficient.to(x.device, wide(x).dtype).reshape(-1, *[1] * (x.dim() - 1))
