"""Trajectories whose every state is kept: by the ODE in fine steps, and by the steps of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.maths.steps import predict_x0, wide
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import Plan
from mixgrpo.sampling.walk import walk_plan


@dataclass(frozen=True)
class States:
    """A piece of a trajectory."""

    x: list[Tensor]
    """[B, ...] before each of its steps, and after the last."""
    x0: list[Tensor]
    """What the model predicted at the beginning of each step; [B, ...], one fewer."""


@torch.no_grad()
def fine_ode(
    velocity: Velocity, sigmas: Tensor, conditioning: Conditioning, x: Tensor, fine: int
) -> States:
    """The flow ODE dx/dsigma = v from x [B, ...] along `sigmas`, by the classical fourth-order
    Runge-Kutta method with `fine` equal steps from each sigma to the next."""
    states = [x]
    predictions: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        begin, end = float(sigmas[i]), float(sigmas[i + 1])
        h = (end - begin) / fine
        for k in range(fine):
            sigma = begin + k * h
            last = end if k == fine - 1 else sigma + h  # never below 0 by rounding
            middle = (sigma + last) / 2
            k1 = wide(velocity(x, sigma, conditioning))
            if k == 0:
                predictions.append(predict_x0(x, k1, sigma))
            k2 = wide(velocity(_euler(x, k1, h / 2), middle, conditioning))
            k3 = wide(velocity(_euler(x, k2, h / 2), middle, conditioning))
            k4 = wide(velocity(_euler(x, k3, h), last, conditioning))
            x = _euler(x, (k1 + 2 * k2 + 2 * k3 + k4) / 6, h)
        states.append(x)
    return States(states, predictions)


def _euler(x: Tensor, v: Tensor, h: float) -> Tensor:
    return (wide(x) + h * v).to(x.dtype)


@torch.no_grad()
def plan_steps(
    velocity: Velocity,
    plan: Plan,
    steps: range,
    conditioning: Conditioning,
    x: Tensor,
    noise: Tensor,
    seen: Sequence[Tensor] = (),
) -> States:
    """Some consecutive steps of `plan` from x [B, ...], as a rollout takes them.

    `steps` begin at 0, at the window or after it. noise: [B, W, ...] of the window's steps. `seen`:
    x0 predictions of the steps before, oldest first.
    """
    noises = dict(zip(plan.window, noise.unbind(1), strict=True))
    states, predictions = [x], []
    for step in walk_plan(
        lambda x, sigma, _: velocity(x, sigma, conditioning),
        *(plan, x, noises),
        steps=steps,
        history=seen,
    ):
        predictions.append(step.x0)
        states.append(step.after)
    return States(states, predictions)


def relative_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Root mean square of x - reference over that of reference: [B, ...] -> [B] in float64."""
    exact = reference.double()
    squares = (x.double() - exact).square().flatten(1).sum(1)
    return (squares / exact.square().flatten(1).sum(1)).sqrt()
