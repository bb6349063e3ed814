"""The policy updates of one iteration: which images and steps they learn from, and the loss.

An update takes some images of every group. Each image has as many slots as it has trained steps;
slot j of all images of an update is one batch, whether all take the same step there or not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

from mixgrpo.config import RunConfig
from mixgrpo.models import Conditioning
from mixgrpo.objective import clipped_terms, guarded_log_ratio, step_weights
from mixgrpo.randomness import permutation
from mixgrpo.ranks import Ranks
from mixgrpo.rollout import Rollout, Velocity, WindowStep, plan_coefficients, slices, take
from mixgrpo.steps import gaussian_kl, log_prob, wide


@dataclass(frozen=True)
class Batch:
    """What an iteration's updates learn from: P groups of N images, of which this rank has all."""

    sampled: Rollout
    conditioning: Conditioning
    """P rows."""
    advantages: Tensor
    """[P, N], on the device."""
    drawn: Tensor | None
    """[P, N, k]: positions in the window of each image's trained steps; none: all of them."""
    coefficients: Tensor
    """[w, 3]: x, v and std of each window step, on the CPU."""
    weights: Tensor
    """[w]: of each window step's loss."""
    window: "WindowStep | None"
    """All window steps as one, with [w, P, N, ...], where images differ in their steps."""


def make_batch(
    config: RunConfig,
    sampled: Rollout,
    conditioning: Conditioning,
    advantages: Tensor,
    drawn: Tensor | None,
) -> Batch:
    plan = sampled.plan
    found = [plan_coefficients(plan, index) for index in plan.window]
    dts = [float(plan.sigmas[i + 1]) - float(plan.sigmas[i]) for i in plan.window]
    weights = step_weights(config.objective.step_weight, [c.std for c in found], dts)
    return Batch(
        sampled,
        conditioning,
        advantages,
        drawn,
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        None if drawn is None else _stacked(sampled.window),
    )


def _stacked(window: list[WindowStep]) -> WindowStep:
    def stack(name: str) -> Tensor:
        group = window[0].sample.shape[1]
        found = [getattr(step, name) for step in window]
        return torch.stack([v.expand(len(v), group, *v.shape[2:]) for v in found])

    return WindowStep(-1, *(stack(name) for name in ("latents", "sample", "mean", "log_prob")))


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
    """`count` images in `updates` consecutive parts whose sizes differ by at most one."""
    bounds = [count * u // updates for u in range(updates + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class Rows:
    """The images of one update: B pairs of a group and an image in it, group by group."""

    groups: Tensor
    """[B], on the device, like `images`."""
    images: Tensor
    weight: Tensor
    """[B]: 1, or 0 for what is computed only so that all ranks compute as much."""
    per_group: int
    """Rows of each group, one after the other."""
    drawn: Tensor | None
    """[B, k], on the CPU: positions in the window of the steps that each trains; none: all."""

    def __len__(self) -> int:
        return len(self.groups)

    def part(self, rows: slice) -> "Rows":
        drawn = None if self.drawn is None else self.drawn[rows]
        return Rows(self.groups[rows], self.images[rows], self.weight[rows], self.per_group, drawn)


def make_rows(batch: Batch, chosen: Tensor, groups: list[int], real: list[bool]) -> Rows:
    """Rows for some images of some groups. chosen: [P, n] image indices, on the CPU; `groups`:
    which of the P; `real`: whether each of them counts."""
    size, device = chosen.shape[1], batch.advantages.device
    index = torch.tensor(groups, dtype=torch.long).repeat_interleave(size)
    images = chosen[groups].flatten()
    weight = torch.tensor(real, dtype=batch.advantages.dtype).repeat_interleave(size)
    return Rows(
        index.to(device),
        images.to(device),
        weight.to(device),
        size,
        None if batch.drawn is None else batch.drawn[index, images],
    )


@dataclass(frozen=True)
class Judged:
    """Loss of some rows at one slot; the sums run over rows, to be divided by their number."""

    loss: Tensor
    """[], with gradient: sum of the weighted terms."""
    kl: Tensor
    """[], with gradient: sum."""
    stats: Tensor
    """[4], without gradient: largest |ratio - 1|, number clipped, largest |delta log-prob|, loss
    without KL."""


def judge(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    slot: int,
    velocity: Velocity,
    reference: Velocity | None,
) -> Iterator[Judged]:
    """Loss of the rows' `slot`-th trained steps, one forward after the other.

    Each is to be backpropagated before the next is asked for, so that the activations of one
    forward are kept at a time.
    """
    if len(rows) == 0:
        return
    limit = config.compute.micro_batch
    kind = _mixed
    if batch.drawn is None:
        kind = _shared if batch.sampled.window[slot].shared else _uniform
    if kind is _shared:  # one latent per group: whole groups, as many as a forward takes
        limit = limit and limit * rows.per_group
    for part in slices(len(rows), limit):
        yield kind(config, batch, rows.part(part), slot, velocity, reference)


def _sigma(batch: Batch, step: WindowStep) -> float:
    return float(batch.sampled.plan.sigmas[step.index])


def _uniform(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    slot: int,
    velocity: Velocity,
    reference: Velocity | None,
) -> Judged:
    """All rows take the same step, each from its own latents."""
    step = batch.sampled.window[slot]
    x = step.latents[rows.groups, rows.images]
    text = take(batch.conditioning, rows.groups)
    sigma = _sigma(batch, step)
    v = velocity(x, sigma, text)
    with torch.no_grad():
        base = None if reference is None else reference(x, sigma, text)
    return _losses(config, batch, rows, slot, _Taken.of(step, rows), x, v, base)


def _shared(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    slot: int,
    velocity: Velocity,
    reference: Velocity | None,
) -> Judged:
    """All rows take the same step; those of a group begin it from the same latents."""
    size = rows.per_group
    step = batch.sampled.window[slot]
    groups = rows.groups[::size]
    x = step.latents[groups, 0]
    text = take(batch.conditioning, groups)
    sigma = _sigma(batch, step)
    v = velocity(x, sigma, text).repeat_interleave(size, 0)
    with torch.no_grad():
        base = None if reference is None else reference(x, sigma, text).repeat_interleave(size, 0)
    x = x.repeat_interleave(size, 0)
    return _losses(config, batch, rows, slot, _Taken.of(step, rows), x, v, base)


def _mixed(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    slot: int,
    velocity: Velocity,
    reference: Velocity | None,
) -> Judged:
    """Every row takes a step of its own."""
    assert batch.window is not None
    assert rows.drawn is not None
    where = rows.drawn[:, slot]
    index = torch.tensor(batch.sampled.plan.window)[where]
    sigma = batch.sampled.plan.sigmas[index]
    at = (where.to(rows.groups.device), rows.groups, rows.images)
    window = batch.window
    x = window.latents[at]
    sigma = sigma.to(x.device, wide(x).dtype)
    text = take(batch.conditioning, rows.groups)
    v = velocity(x, sigma, text)
    with torch.no_grad():
        base = None if reference is None else reference(x, sigma, text)
    taken = _Taken(window.sample[at], window.mean[at], window.log_prob[at])
    return _losses(config, batch, rows, where, taken, x, v, base)


@dataclass(frozen=True)
class _Taken:
    """What the rollout did at the rows' steps."""

    sample: Tensor
    mean: Tensor
    log_prob: Tensor

    @classmethod
    def of(cls, step: WindowStep, rows: Rows) -> "_Taken":
        shared = torch.zeros_like(rows.images) if step.mean.shape[1] == 1 else rows.images
        return cls(
            step.sample[rows.groups, rows.images],
            step.mean[rows.groups, shared],
            step.log_prob[rows.groups, rows.images],
        )


def _losses(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    where: int | Tensor,
    taken: _Taken,
    x: Tensor,
    v: Tensor,
    base: Tensor | None,
) -> Judged:
    """Loss of rows [B] whose steps are at positions `where` of the window (one, or [B])."""
    objective = config.objective
    cx, cv, std = batch.coefficients[where].unbind(-1)
    wx, wv = (_like(c, x) for c in (cx, cv))
    mean = wide(x) * wx + wide(v) * wv
    new = log_prob(taken.sample, mean, std, config.sampler.density)
    delta = new - taken.log_prob
    log_ratio = delta
    if objective.ratio == "guard":
        log_ratio = guarded_log_ratio(delta, mean, taken.mean, std)
    advantages = batch.advantages[rows.groups, rows.images]
    terms = clipped_terms(log_ratio, advantages, objective.clip_range) * rows.weight
    loss = (terms * _like(batch.weights[where], terms)).sum()
    kl = torch.zeros_like(loss)
    if base is not None:
        of_base = wide(x) * wx + wide(base) * wv
        kl = (gaussian_kl(mean, of_base, std) * rows.weight).sum()
    with torch.no_grad():
        distance = (log_ratio.exp() - 1).abs() * rows.weight
        clipped = ((distance > objective.clip_range) * rows.weight).sum()
        deltas = delta.abs() * rows.weight
        stats = torch.stack([distance.max(), clipped, deltas.max(), loss.detach()])
    return Judged(loss, kl, stats)


def _like(coefficient: Tensor, x: Tensor) -> Tensor | float:
    """A number, or one per row of x, on its device."""
    if coefficient.dim() == 0:
        return float(coefficient)
    return coefficient.to(x.device, wide(x).dtype).reshape(-1, *[1] * (x.dim() - 1))


class Conflict:
    """Compares the gradients of an update's first and last trained step while it accumulates."""

    def __init__(self, parameters: list[Parameter]) -> None:
        self._parameters = parameters
        self._first: list[Tensor] = []
        self._earlier: list[Tensor] = []

    def after_first(self) -> None:
        self._first = [g.clone() for g in gradients(self._parameters)]

    def before_last(self) -> None:
        self._earlier = [g.clone() for g in gradients(self._parameters)]

    def cosine(self, ranks: Ranks) -> float | None:
        """Cosine between the two, summed over ranks; None where one of them is zero.

        Below 0 the two steps pull the weights in opposite directions.
        """
        now = gradients(self._parameters)
        last = [g - e for g, e in zip(now, self._earlier, strict=True)]
        ranks.sum_gradients([*self._first, *last])
        products = [
            torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
            for left, right in ((self._first, last), (self._first, self._first), (last, last))
        ]
        product, first, second = (float(ranks.whole(p)) for p in products)
        norm = math.sqrt(first * second)
        return product / norm if norm > 0 and math.isfinite(product) else None


def gradients(parameters: list[Parameter]) -> list[Tensor]:
    """Of every parameter: zeros where this rank's images did not reach it."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in parameters if p.grad is not None]
