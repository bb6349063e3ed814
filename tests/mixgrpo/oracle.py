"""The mathematics of a run in numpy float64, written from the formulas and nothing else.

Shares no code with the package. Every image is computed on its own: nothing is shared in a group.
One image is a vector of its elements; batches are [B, D].
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shifted(t: Array, shift: float) -> Array:
    """sigma = s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def schedule(steps: int, shift: float) -> Array:
    """t_i = linspace(1, 0, T + 1), shifted."""
    return shifted(np.array([1 - i / steps for i in range(steps + 1)]), shift)


def grid(steps: int, shift: float, begin: int, tail: int, first: int = 0, head: int = 0) -> Array:
    """T steps up to index `begin`, then `tail` steps uniform in unshifted t to 0.

    `head` steps uniform in unshifted t, from 1 to t_first, stand in for the first `first` ones.
    """
    before = [1 - (first / steps) * (j / head) for j in range(head)]
    window = [1 - i / steps for i in range(first, begin)]
    rest = [(1 - begin / steps) * (1 - j / tail) for j in range(tail + 1)] if tail else [0.0]
    return shifted(np.array(before + window + rest), shift)


def shortened(steps: int, ratio: float) -> int:
    """max(1, round(steps * ratio)), and 0 where there are none."""
    return max(1, round(steps * ratio)) if steps else 0


@dataclass(frozen=True)
class Transition:
    """mean = cx x + cv v; x' = mean + std eps."""

    cx: float
    cv: float
    std: float


def euler(sigma: float, after: float) -> Transition:
    return Transition(1.0, after - sigma, 0.0)


def sde(kind: str, eta: float, sigma: float, after: float, sigma_one: float) -> Transition:
    """The kernels flow, dance and cps; `sigma_one` is the schedule's second entry."""
    if kind == "cps":
        std = after * math.sin(eta * math.pi / 2)
        kept = math.sqrt(after**2 - std**2)
        # (1 - sigma') (x - sigma v) + kept (x + (1 - sigma) v)
        return Transition((1 - after) + kept, -(1 - after) * sigma + kept * (1 - sigma), std)
    if kind == "flow":
        g = eta * math.sqrt(sigma / (1 - (sigma_one if sigma == 1.0 else sigma)))
    else:
        g = eta
    dt = after - sigma
    return Transition(
        1 + g * g * dt / (2 * sigma),
        (1 + g * g * (1 - sigma) / (2 * sigma)) * dt,
        g * math.sqrt(-dt),
    )


def log_prob(sample: Array, mean: Array, std: float, density: str = "normalised") -> Array:
    """Mean over elements of the log-density of N(mean, std^2), or of -(x' - mean)^2. -> [B].

    A step without noise has no density: 0, whatever the mean.
    """
    if std == 0:
        return np.zeros(len(sample))
    if density == "released":
        squares: Array = ((sample - mean) ** 2).mean(1)
        return -squares
    terms = -((sample - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
    result: Array = terms.mean(1)
    return result


def dpm(
    order: int, variant: str, x: Array, m: Sequence[Array], sigmas: Sequence[float], after: float
) -> Array:
    """DPM-Solver++ to sigma' = `after`; m and sigmas newest first: m0 at sigmas[0] and so on."""
    if after == 0:
        return m[0]
    alpha = 1 - after

    def lam(sigma: float) -> float:
        return -math.inf if sigma == 1 else math.log(1 - sigma) - math.log(sigma)

    h = lam(after) - lam(sigmas[0])
    phi = math.exp(-h) - 1
    base: Array = (after / sigmas[0]) * x - alpha * phi * m[0]
    if order == 1:
        return base
    r0 = (lam(sigmas[0]) - lam(sigmas[1])) / h
    d1a = (m[0] - m[1]) / r0
    if order == 2 and variant == "midpoint":
        return base - alpha * phi * d1a / 2
    if order == 2:
        return base + alpha * (phi / h + 1) * d1a
    r1 = (lam(sigmas[1]) - lam(sigmas[2])) / h
    d1b = (m[1] - m[2]) / r1
    d1 = d1a + r0 / (r0 + r1) * (d1a - d1b)
    d2 = (d1a - d1b) / (r0 + r1)
    return base + alpha * (phi / h + 1) * d1 - alpha * ((phi + h) / h**2 - 0.5) * d2


@dataclass
class ToyNet:
    """The toy policy's velocity and its derivative with respect to the parameters."""

    inner: Array
    outer: Array

    def seen(self, x: Array, sigma: float, text: Array) -> Array:
        return np.concatenate([x, np.full((len(x), 1), sigma), text], 1)

    def velocity(self, x: Array, sigma: float, text: Array) -> Array:
        result: Array = np.tanh(self.seen(x, sigma, text) @ self.inner) @ self.outer
        return result

    def backward(self, x: Array, sigma: float, text: Array, dv: Array) -> dict[str, Array]:
        seen = self.seen(x, sigma, text)
        hidden = np.tanh(seen @ self.inner)
        return {
            "inner": seen.T @ ((dv @ self.outer.T) * (1 - hidden**2)),
            "outer": hidden.T @ dv,
        }


@dataclass
class Sampler:
    """What describes a trajectory, by the names of the configuration."""

    steps: int
    shift: float
    kernel: str
    eta: float
    tail_ratio: float = 1.0
    order: int = 1
    variant: str = "midpoint"
    history: str = "keep"
    sde: str = "window"
    decode: str = "sample"
    head_ratio: float = 1.0
    density: str = "normalised"


@dataclass
class Step:
    """One SDE step that was taken, for a batch of images."""

    sigma: float
    transition: Transition
    before: Array
    after: Array
    log_prob: Array
    mean: Array
    dt: float
    index: int
    """In the trajectory as it ran, an accelerated head counted in its own steps."""


@dataclass
class Trajectory:
    final: Array
    """What is decoded: the last sample, or the last prediction of x0."""
    window: list[Step]
    """The window's steps, which are the trained ones."""
    sigmas: Array
    path: list[Array]
    """The samples at all sigmas."""
    sde: list[Step]
    """All SDE steps: those of the window, or all there are."""


Velocity = Callable[[Array, float, Array], Array]


def trajectory(
    velocity: Velocity, s: Sampler, first: int, size: int, x: Array, noise: Array, text: Array
) -> Trajectory:
    """Images [B, D] from sigma 1 to 0: the head, SDE at first .. first + size - 1, the tail.

    `first` counts in the T steps of the schedule. x: the initial noise of every image [B, D].
    noise: [B, number of SDE steps, D].
    """
    head = first if s.head_ratio == 1 else shortened(first, s.head_ratio)
    tail = shortened(s.steps - first - size, s.tail_ratio)
    sigmas = grid(s.steps, s.shift, first + size, tail, first, head)
    begin = head + size
    total = begin + tail
    predictions: list[Array] = []
    window: list[Step] = []
    taken: list[Step] = []
    path = [x]
    for i in range(total):
        sigma, after = float(sigmas[i]), float(sigmas[i + 1])
        v = velocity(x, sigma, text)
        predictions.append(x - sigma * v)
        if s.sde == "all" or head <= i < begin:
            t = sde(s.kernel, s.eta, sigma, after, float(sigmas[1]))
            mean = t.cx * x + t.cv * v
            y = mean + t.std * noise[:, len(taken)]
            logp = log_prob(y, mean, t.std, s.density)
            taken.append(Step(sigma, t, x, y, logp, mean, after - sigma, i))
            if head <= i < begin:
                window.append(taken[-1])
            x = y
        elif (i < head and s.head_ratio == 1) or (s.order == 1 and s.tail_ratio == 1):
            x = x + (after - sigma) * v
        else:
            oldest = begin if s.history == "restart" and i >= begin else 0
            order = min(s.order, i - oldest + 1)
            if i == total - 1:
                order = 1
            elif i == total - 2 and total < 15:
                order = min(order, 2)
            newest = [predictions[i - k] for k in range(order)]
            x = dpm(
                order, s.variant, x, newest, [float(sigmas[i - k]) for k in range(order)], after
            )
        path.append(x)
    final = predictions[-1] if s.decode == "x0" else x
    return Trajectory(final, window, sigmas, path, taken)


def advantages(rewards: dict[str, Array], weights: dict[str, float], aggregate: str) -> Array:
    """Groups are rows; (R - mean) / (std + 1e-8 (max R - min R)), N - 1 degrees of freedom; 0 where
    there is no variance."""

    def normalised(values: Array) -> Array:
        result = np.zeros_like(values)
        for g, group in enumerate(values):
            mean = math.fsum(group) / len(group)
            spread = math.sqrt(math.fsum((group - mean) ** 2) / (len(group) - 1))
            if max(group) > min(group):
                result[g] = (group - mean) / (spread + 1e-8 * (max(group) - min(group)))
        return result

    if aggregate == "reward":
        return normalised(np.sum([weights[k] * rewards[k] for k in rewards], 0))
    total: Array = np.sum([weights[k] * normalised(rewards[k]) for k in rewards], 0)
    return total / len(rewards) if aggregate == "mean" else total


def objective(ratio: Array, a: Array, clip: float) -> Array:
    """max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)), per entry."""
    return np.maximum(-a * ratio, -a * np.clip(ratio, 1 - clip, 1 + clip))


def constant_groups(advantages: Array) -> NDArray[np.bool_]:
    """Which groups [P, N] have no advantage at all: every one exactly 0. -> [P]."""
    return np.array([all(a == 0 for a in group) for group in advantages])


def best_and_worst(advantages: Array, k: int) -> NDArray[np.int64]:
    """The k best and the k worst images of every group [P, N], by index: [P, 2k].

    Of equal ones the lower index, for the best and, among the images that are left, the worst.
    """
    chosen = []
    for group in advantages:
        images = list(range(len(group)))
        best = sorted(images, key=lambda i: (-group[i], i))[:k]
        rest = [i for i in images if i not in best]
        worst = sorted(rest, key=lambda i: (group[i], i))[:k]
        chosen.append(sorted(best + worst))
    return np.array(chosen)


def step_weights(steps: Sequence[Step], kind: str) -> Array:
    """Weights of the window's steps, of mean 1: by std (TempFlow-GRPO) or 1 / -dt (GRPO-Guard)."""
    if kind == "none":
        return np.ones(len(steps))
    raw = [step.transition.std if kind == "noise" else 1 / -step.dt for step in steps]
    mean = math.fsum(raw) / len(raw)
    # Where no step has noise there is no gradient to weigh.
    return np.array([value / mean if mean else 1.0 for value in raw])


def log_ratio(step: Step, mean: Array, kind: str, density: str, chosen: Any) -> Array:
    """log of the policy ratio of the images `chosen`, whose mean today is `mean`. -> [B].

    plain: logp_new - logp_old. guard (GRPO-Guard, arXiv 2510.22319): (that + b) * std with
    b = mean over elements of (mean_new - mean_old)^2 / (2 std^2), which is mean over elements of
    eps (mean_new - mean_old): of the same size at every step, and without b's drift below 1.
    """
    std = step.transition.std
    change: Array = log_prob(step.after[chosen], mean, std, density) - step.log_prob[chosen]
    if kind == "plain" or std == 0:
        return change
    bias: Array = ((mean - step.mean[chosen]) ** 2).mean(1) / (2 * std**2)
    return (change + bias) * std


@dataclass
class Judged:
    """Loss and KL of one update, as means over images and each one's steps, with the gradient."""

    loss: float
    kl: float
    """Exact, in nats per element."""
    penalty: float
    """The same in the unit of `kl_kind`."""
    gradient: dict[str, Array]


def judge(
    net: ToyNet,
    steps: Sequence[Step],
    chosen: Any,
    a: Array,
    text: Array,
    clip: float,
    kl_weight: float = 0.0,
    reference: ToyNet | None = None,
    *,
    trained: Sequence[Collection[int]] | None = None,
    ratio_kind: str = "plain",
    step_weight: str = "none",
    density: str = "normalised",
    kl_kind: str = "exact",
    kernel: str = "flow",
) -> Judged:
    """Loss of the images `chosen` (an index of the batch) over their steps of the window.

    steps: all of the window. trained: for each image of the batch, the places in `steps` of those
    that it trains; none: all of them. The KL has no step weight; by `kl_kind`:

    * exact: mean (mean - mean_ref)^2 / (2 std^2).
    * flow-grpo: mean (mean - mean_ref)^2 / (2 g^2), g the noise level of the kernel without its
      sqrt(-dt); cps has none, and there g is the std.
    """
    loss = kl = penalty = 0.0
    gradient = {"inner": np.zeros_like(net.inner), "outer": np.zeros_like(net.outer)}
    images = np.arange(len(a))[chosen]
    a, text = a[chosen], text[chosen]
    weights = step_weights(steps, step_weight)
    for place, step in enumerate(steps):
        # Each image's mean over its steps, then the mean over images.
        share = np.full(len(images), 1 / (len(images) * len(steps)))
        if trained is not None:
            share = np.array(
                [(place in trained[b]) / (len(images) * len(trained[b])) for b in images]
            )
        weight = weights[place]
        x, y, t = step.before[chosen], step.after[chosen], step.transition
        if t.std == 0:  # no density: ratio 1, no gradient
            loss += (share * weight * -a).sum()
            continue
        elements = x.shape[1]
        mean = t.cx * x + t.cv * net.velocity(x, step.sigma, text)
        ratio = np.exp(log_ratio(step, mean, ratio_kind, density, chosen))
        loss += (share * weight * objective(ratio, a, clip)).sum()
        # The unclipped branch counts where it is the larger one, or where clip does nothing.
        acts = -a * ratio >= -a * np.clip(ratio, 1 - clip, 1 + clip)
        by_log_ratio = np.where(acts, share * weight * -a * ratio, 0.0)[:, None]
        if density == "released":
            by_mean = by_log_ratio * 2 * (y - mean) / elements
        elif ratio_kind == "guard":
            # Of (logp_new + b) std: the terms in today's mean cancel.
            by_mean = by_log_ratio * (y - step.mean[chosen]) / t.std / elements
        else:
            by_mean = by_log_ratio * (y - mean) / t.std**2 / elements
        if reference is not None:
            base = t.cx * x + t.cv * reference.velocity(x, step.sigma, text)
            kl += (share * ((mean - base) ** 2 / (2 * t.std**2)).mean(1)).sum()
            noise = t.std
            if kl_kind == "flow-grpo" and kernel != "cps":
                noise = t.std / math.sqrt(-step.dt)
            penalty += (share * ((mean - base) ** 2 / (2 * noise**2)).mean(1)).sum()
            by_mean = by_mean + kl_weight * share[:, None] * (mean - base) / noise**2 / elements
        parts = net.backward(x, step.sigma, text, t.cv * by_mean)
        gradient = {k: gradient[k] + parts[k] for k in gradient}
    return Judged(float(loss), float(kl), float(penalty), gradient)
