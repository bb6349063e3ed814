"""The mathematics of a run in numpy float64, written from the formulas and nothing else.

Shares no code with the package. Every image is computed on its own: nothing is shared in a group.
One image is a vector of its elements; batches are [B, D].
"""

import math
from collections.abc import Callable, Sequence
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


def grid(steps: int, shift: float, begin: int, tail: int) -> Array:
    """T steps up to index `begin`, then `tail` steps uniform in unshifted t to 0."""
    head = [1 - i / steps for i in range(begin)]
    rest = [(1 - begin / steps) * (1 - j / tail) for j in range(tail + 1)] if tail else [0.0]
    return shifted(np.array(head + rest), shift)


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


def log_prob(sample: Array, mean: Array, std: float) -> Array:
    """Mean over elements of the log-density of N(mean, std^2). [B, D] -> [B]."""
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


@dataclass
class Step:
    """One SDE step that was taken, for a batch of images."""

    sigma: float
    transition: Transition
    before: Array
    after: Array
    log_prob: Array


@dataclass
class Trajectory:
    final: Array
    window: list[Step]
    sigmas: Array
    path: list[Array]


Velocity = Callable[[Array, float, Array], Array]


def trajectory(
    velocity: Velocity, s: Sampler, first: int, size: int, x: Array, noise: Array, text: Array
) -> Trajectory:
    """Images [B, D] from sigma 1 to 0: ODE, SDE at first .. first + size - 1, the tail."""
    begin = first + size
    rest = s.steps - begin
    tail = max(1, round(rest * s.tail_ratio)) if rest else 0
    sigmas = grid(s.steps, s.shift, begin, tail)
    total = begin + tail
    predictions: list[Array] = []
    window: list[Step] = []
    path = [x]
    for i in range(total):
        sigma, after = float(sigmas[i]), float(sigmas[i + 1])
        v = velocity(x, sigma, text)
        predictions.append(x - sigma * v)
        if first <= i < begin:
            t = sde(s.kernel, s.eta, sigma, after, float(sigmas[1]))
            mean = t.cx * x + t.cv * v
            y = mean + t.std * noise[:, i - first]
            logp = log_prob(y, mean, t.std) if t.std else np.zeros(len(x))
            window.append(Step(sigma, t, x, y, logp))
            x = y
        elif i < begin or (s.order == 1 and s.tail_ratio == 1):
            x = x + (after - sigma) * v
        else:
            known = i - (begin if s.history == "restart" else 0) + 1
            order = min(s.order, known)
            if i == total - 1:
                order = 1
            elif i == total - 2 and total < 15:
                order = min(order, 2)
            newest = [predictions[i - k] for k in range(order)]
            x = dpm(
                order, s.variant, x, newest, [float(sigmas[i - k]) for k in range(order)], after
            )
        path.append(x)
    return Trajectory(x, window, sigmas, path)


def advantages(rewards: dict[str, Array], weights: dict[str, float], aggregate: str) -> Array:
    """Groups are rows; (R - mean) / (std + 1e-8), N - 1 degrees of freedom; no variance gives 0."""

    def normalised(values: Array) -> Array:
        result = np.zeros_like(values)
        for g, group in enumerate(values):
            mean = math.fsum(group) / len(group)
            spread = math.sqrt(math.fsum((group - mean) ** 2) / (len(group) - 1))
            if max(group) > min(group):
                result[g] = (group - mean) / (spread + 1e-8)
        return result

    if aggregate == "reward":
        return normalised(np.sum([weights[k] * rewards[k] for k in rewards], 0))
    total: Array = np.sum([weights[k] * normalised(rewards[k]) for k in rewards], 0)
    return total / len(rewards) if aggregate == "mean" else total


def objective(ratio: Array, a: Array, clip: float) -> Array:
    """max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)), per entry."""
    return np.maximum(-a * ratio, -a * np.clip(ratio, 1 - clip, 1 + clip))


@dataclass
class Judged:
    """Loss and KL of one update, as means over images and steps, with the gradient."""

    loss: float
    kl: float
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
) -> Judged:
    """Loss of the images `chosen` (an index of the batch) over all window steps."""
    loss = kl = 0.0
    gradient = {"inner": np.zeros_like(net.inner), "outer": np.zeros_like(net.outer)}
    a, text = a[chosen], text[chosen]
    for step in steps:
        x, y, t = step.before[chosen], step.after[chosen], step.transition
        entries = x.size
        if t.std == 0:  # no density: ratio 1, no gradient
            loss += -a.mean() / len(steps)
            continue
        mean = t.cx * x + t.cv * net.velocity(x, step.sigma, text)
        ratio = np.exp(log_prob(y, mean, t.std) - step.log_prob[chosen])
        loss += objective(ratio, a, clip).mean() / len(steps)
        # The unclipped branch counts where it is the larger one, or where clip does nothing.
        acts = -a * ratio >= -a * np.clip(ratio, 1 - clip, 1 + clip)
        by_log_prob = np.where(acts, -a * ratio, 0.0)[:, None]
        by_mean = by_log_prob * (y - mean) / t.std**2 / entries
        if reference is not None:
            base = t.cx * x + t.cv * reference.velocity(x, step.sigma, text)
            kl += ((mean - base) ** 2 / (2 * t.std**2)).mean() / len(steps)
            by_mean = by_mean + kl_weight * (mean - base) / t.std**2 / entries
        parts = net.backward(x, step.sigma, text, t.cv * by_mean / len(steps))
        gradient = {k: gradient[k] + parts[k] for k in gradient}
    return Judged(float(loss), float(kl), gradient)
