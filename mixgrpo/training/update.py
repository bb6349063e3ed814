"""The policy updates of one iteration: which images and steps they learn from, and the loss.

An update takes some images of every group. Each image has as many slots as it has trained steps:
in slot j it takes its j-th, which need not be the same step for all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from mixgrpo.compute.ranks import Ranks
from mixgrpo.maths.objective import clipped_terms, guarded_log_ratio, kl_step_weights, step_weights
from mixgrpo.maths.randomness import permutation
from mixgrpo.maths.steps import gaussian_kl, log_prob, wide
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.rollout import Rollout, WindowStep, slices, take
from mixgrpo.sampling.walk import plan_coefficients
from mixgrpo.settings.config import RunConfig


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
    kl_weights: Tensor
    """[w]: what each window step's KL is multiplied by, besides beta."""
    sigmas: Tensor
    """[w], on the CPU: at which each window step begins."""
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
        torch.tensor(
            kl_step_weights(config.objective.kl, config.sampler.kernel, dts), dtype=torch.float64
        ),
        plan.sigmas[list(plan.window)],
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
    """`count` images in `updates` consecutive parts whose sizes differ by at most one.

    None is larger than the first: the rollout takes as many images at once, so that it and the
    first update have batches of one shape.
    """
    bounds = [-(-count * u // updates) for u in range(updates + 1)]
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


def slots_together(config: RunConfig, batch: Batch, first: bool) -> list[list[int]]:
    """The slots of an update, in the parts that one forward may cover.

    In the first update each slot alone, as the rollout computed it: its ratio is then exactly 1,
    and the gradients of the first and the last slot can be told apart. Later all that are not
    shared: fewer and larger batches.
    """
    slots = list(range(config.trained_per_image))
    if first:
        return [[slot] for slot in slots]
    shared = batch.drawn is None and batch.sampled.window[0].shared
    parts = [slots[:1], slots[1:]] if shared else [slots]
    return [part for part in parts if part]


@dataclass(frozen=True)
class Judged:
    """Loss of some rows and slots; the sums run over both, to be divided by their number."""

    loss: Tensor
    """[], with gradient: sum of the weighted terms."""
    kl: Tensor
    """[], with gradient: sum, each step in the unit of `objective.kl`."""
    stats: Tensor
    """[6], without gradient: largest |ratio - 1|, number clipped, largest |log ratio|, largest
    |delta log-prob|, loss without KL, exact KL."""


def judge(
    config: RunConfig,
    batch: Batch,
    rows: Rows,
    slots: list[int],
    velocity: Velocity,
    reference: Velocity | None,
    block: int | None = None,
) -> Iterator[Judged]:
    """Loss of the rows' trained steps in these slots, one forward after the other.

    Each is to be backpropagated before the next is asked for, so that the activations of one
    forward are kept at a time. A slot that begins from shared latents must come alone. `block`: the
    most groups in one forward, as in the rollout.
    """
    if len(rows) == 0:
        return
    if block is not None:
        for part in slices(len(rows), block * rows.per_group):
            yield from judge(config, batch, rows.part(part), slots, velocity, reference)
        return
    limit = config.compute.micro_batch
    if batch.drawn is None and batch.sampled.window[slots[0]].shared:
        # One latent per group: whole groups, as many as a forward takes.
        for part in slices(len(rows), limit and limit * rows.per_group):
            yield _shared(config, batch, rows.part(part), slots[0], velocity, reference)
        return
    pairs = _Pairs.of(rows, slots)
    for part in slices(len(pairs), limit):
        yield _apart(config, batch, pairs.part(part), velocity, reference)


@dataclass(frozen=True)
class _Pairs:
    """Images, each with one of its steps: M of them, slot by slot."""

    groups: Tensor
    images: Tensor
    weight: Tensor
    where: Tensor | int
    """[M], on the CPU: the step's position in the window; a number where all take the same."""

    @classmethod
    def of(cls, rows: Rows, slots: list[int]) -> "_Pairs":
        times, where = len(slots), torch.tensor(slots)
        if rows.drawn is not None:
            where = rows.drawn[:, where].T.flatten()
        elif times == 1:
            return cls(rows.groups, rows.images, rows.weight, slots[0])
        else:
            where = where.repeat_interleave(len(rows))
        return cls(
            rows.groups.repeat(times), rows.images.repeat(times), rows.weight.repeat(times), where
        )

    def __len__(self) -> int:
        return len(self.groups)

    def part(self, pairs: slice) -> "_Pairs":
        where = self.where if isinstance(self.where, int) else self.where[pairs]
        return _Pairs(self.groups[pairs], self.images[pairs], self.weight[pairs], where)


@dataclass(frozen=True)
class _Taken:
    """What the rollout did at the steps of some pairs: each [M, ...], [M]."""

    latents: Tensor
    sample: Tensor
    mean: Tensor
    log_prob: Tensor


def _taken(batch: Batch, pairs: _Pairs) -> _Taken:
    def at_step(step: int, name: str, rows: slice) -> Tensor:
        found: Tensor = getattr(batch.sampled.window[step], name)
        images = pairs.images[rows]
        shared = found.shape[1] < batch.advantages.shape[1]
        return found[pairs.groups[rows], torch.zeros_like(images) if shared else images]

    def values(name: str) -> Tensor:
        if isinstance(pairs.where, int):
            return at_step(pairs.where, name, slice(None))
        if batch.window is not None:
            at = (pairs.where.to(pairs.groups.device), pairs.groups, pairs.images)
            stacked: Tensor = getattr(batch.window, name)[at]
            return stacked
        # Slot by slot: each step's rows lie side by side.
        steps, counts = pairs.where.unique_consecutive(return_counts=True)
        parts, begin = [], 0
        for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
            parts.append(at_step(step, name, slice(begin, begin + count)))
            begin += count
        return torch.cat(parts)

    return _Taken(*(values(name) for name in ("latents", "sample", "mean", "log_prob")))


def _apart(
    config: RunConfig,
    batch: Batch,
    pairs: _Pairs,
    velocity: Velocity,
    reference: Velocity | None,
) -> Judged:
    """Every pair begins its step from its own latents."""
    taken = _taken(batch, pairs)
    x = taken.latents
    sigma = _like(batch.sigmas[pairs.where], x.flatten(1)[:, 0])
    text = take(batch.conditioning, pairs.groups)
    v = velocity(x, sigma, text)
    with torch.no_grad():
        base = None if reference is None else reference(x, sigma, text)
    return _losses(config, batch, pairs, taken, v, base)


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
    groups = rows.groups[::size]
    x = batch.sampled.window[slot].latents[groups, 0]
    sigma = float(batch.sigmas[slot])
    text = take(batch.conditioning, groups)
    v = velocity(x, sigma, text).repeat_interleave(size, 0)
    with torch.no_grad():
        base = None if reference is None else reference(x, sigma, text).repeat_interleave(size, 0)
    pairs = _Pairs.of(rows, [slot])
    return _losses(config, batch, pairs, _taken(batch, pairs), v, base)


def _losses(
    config: RunConfig,
    batch: Batch,
    pairs: _Pairs,
    taken: _Taken,
    v: Tensor,
    base: Tensor | None,
) -> Judged:
    """Loss of pairs [M], given the velocity today and of the reference at their latents."""
    objective, x, where = config.objective, taken.latents, pairs.where
    cx, cv, std = batch.coefficients[where].unbind(-1)
    wx, wv = (_like(c, x) for c in (cx, cv))
    mean = wide(x) * wx + wide(v) * wv
    new = log_prob(taken.sample, mean, std, config.sampler.density)
    delta = new - taken.log_prob
    log_ratio = delta
    if objective.ratio == "guard":
        log_ratio = guarded_log_ratio(delta, mean, taken.mean, std)
    # What only keeps the ranks in step has weight 0, which must hold for infinite terms too.
    counts = pairs.weight > 0
    advantages = batch.advantages[pairs.groups, pairs.images] * pairs.weight
    terms = clipped_terms(log_ratio, advantages, objective.clip_range)
    loss = (terms * _like(batch.weights[where], terms)).sum()
    kl = exact = torch.zeros_like(loss)
    if base is not None:
        of_base = wide(x) * wx + wide(base) * wv
        each = torch.where(counts, gaussian_kl(mean, of_base, std), torch.zeros_like(terms))
        exact = each.detach().sum()
        kl = (each * _like(batch.kl_weights[where], each)).sum()
    with torch.no_grad():
        nothing = torch.zeros_like(log_ratio)
        delta, log_ratio = (torch.where(counts, v, nothing) for v in (delta, log_ratio))
        distance = (log_ratio.exp() - 1).abs()
        clipped = (distance > objective.clip_range).to(distance.dtype).sum()
        largest = [values.abs().max() for values in (log_ratio, delta)]
        stats = torch.stack([distance.max(), clipped, *largest, loss.detach(), exact])
    return Judged(loss, kl, stats)


def _like(coefficient: Tensor, x: Tensor) -> Tensor | float:
    """A number, or one per row of x, on its device."""
    if coefficient.dim() == 0:
        return float(coefficient)
    return coefficient.to(x.device, wide(x).dtype).reshape(-1, *[1] * (x.dim() - 1))


class Conflict:
    """Compares the gradients of an update's first and last trained step while it accumulates."""

    def __init__(self, parameters: list[Parameter], slots: int) -> None:
        self._parameters = parameters
        self._slots = slots
        self._first: list[Tensor] = []
        self._earlier: list[Tensor] = []

    def after_first(self) -> None:
        self._first = [g.clone() for g in gradients(self._parameters)]

    def before_last(self) -> None:
        # With two steps that is what there was after the first.
        self._earlier = (
            self._first if self._slots == 2 else [g.clone() for g in gradients(self._parameters)]
        )

    def cosine(self, ranks: Ranks) -> float | None:
        """Cosine between the two, summed over ranks; None where one of them is zero.

        Below 0 the two steps pull the weights in opposite directions.
        """
        now = gradients(self._parameters)
        # A rank without images of its own has met neither step.
        nothing = [] if self._first else [torch.zeros_like(g) for g in now]
        first, earlier = self._first or nothing, self._earlier or nothing
        last = [g - e for g, e in zip(now, earlier, strict=True)]
        ranks.sum_gradients([*first, *last])
        product = torch.stack([(a * b).sum() for a, b in zip(first, last, strict=True)]).sum()
        lengths = (get_total_norm(first), get_total_norm(last))
        values = (float(ranks.whole(value)) for value in (product, *lengths))
        numerator, denominator = next(values), math.prod(values)
        found = numerator / denominator if denominator else math.nan
        return found if math.isfinite(found) else None


class UnitSteps:
    """Averages the gradients of an update's trained steps, each scaled to norm 1."""

    def __init__(self, parameters: list[Parameter], slots: int) -> None:
        self._parameters = parameters
        self._slots = slots
        self._total: list[Tensor] = []

    def take(self, ranks: Ranks) -> None:
        """Add the accumulated gradient of one step and begin the next from zero. A collective."""
        found = gradients(self._parameters)
        ranks.sum_gradients(found)
        norm = get_total_norm(found)
        # A step without noise has none; one that is not finite must reach the check for it.
        scale = 1 / self._slots if float(ranks.whole(norm)) == 0 else 1 / (norm * self._slots)
        scaled = [g * scale for g in found]
        if not self._total:
            self._total = scaled
        else:
            torch._foreach_add_(self._total, scaled)
        for parameter in self._parameters:
            parameter.grad = None

    def give(self) -> list[Tensor]:
        """The average, as the gradient of the parameters."""
        for parameter, gradient in zip(self._parameters, self._total, strict=True):
            parameter.grad = gradient
        return self._total


def gradients(parameters: list[Parameter]) -> list[Tensor]:
    """Of every parameter: zeros where this rank's images did not reach it."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in parameters if p.grad is not None]
