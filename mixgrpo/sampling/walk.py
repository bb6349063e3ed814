"""The one loop over the steps of a trajectory, which sampling, training and measuring share.

A step asks the model for the velocity, predicts x0 and moves on: by Euler (`ode`), by
DPM-Solver++ (`dpm`) or at random (`sde`). `walk` knows sigmas and kinds of steps alone, `walk_plan`
takes both from a plan.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixgrpo.maths.dpm import DPMSolver
from mixgrpo.maths.steps import (
    Coefficients,
    SDEStep,
    ode_step,
    predict_x0,
    sde_step,
    step_coefficients,
)
from mixgrpo.sampling.plan import Plan, StepKind


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it was taken."""

    index: int
    kind: StepKind
    sigma: float
    """Where it begins."""
    x: Tensor
    """[B, ...] before the step."""
    v: Tensor
    """[B, ...]: the model's velocity at x."""
    x0: Tensor
    """[B, ...]: what the model predicts of the image, in float32 or better."""
    after: Tensor
    """[B, ...] after the step."""
    random: SDEStep | None
    """Mean and std of a step of kind `sde`."""


def walk(
    velocity: Callable[[Tensor, float, int], Tensor],
    sigmas: Tensor,
    kinds: Sequence[StepKind],
    x: Tensor,
    *,
    solver: DPMSolver | None = None,
    steps: range | None = None,
    restart: int | None = None,
    random_step: Callable[[int, Tensor, Tensor], SDEStep] | None = None,
) -> Iterator[Step]:
    """Take `steps` (all by default) of the trajectory along `sigmas` from x [B, ...].

    `velocity` is called with x, sigma and the step's index. `solver` takes the steps of kind `dpm`
    and sees the prediction at every other one; it forgets them before step `restart`. `random_step`
    takes those of kind `sde`, given index, x and v. Neither is needed where there is no such step.
    """
    solver = solver or DPMSolver(1)
    for index in steps if steps is not None else range(len(kinds)):
        kind, sigma = kinds[index], float(sigmas[index])
        v = velocity(x, sigma, index)
        x0 = predict_x0(x, v, sigma)
        random = None
        if index == restart:
            solver.reset()
        if kind == "dpm":
            after = solver.step(x, x0, sigmas, index)
        else:
            solver.observe(x0)
            if kind == "ode":
                after = ode_step(x, v, sigma, sigmas[index + 1])
            else:
                assert random_step is not None
                random = random_step(index, x, v)
                after = random.sample
        yield Step(index, kind, sigma, x, v, x0, after, random)
        x = after


def walk_plan(
    velocity: Callable[[Tensor, float, int], Tensor],
    plan: Plan,
    x: Tensor,
    noise: Mapping[int, Tensor],
    *,
    steps: range | None = None,
    history: Sequence[Tensor] = (),
) -> Iterator[Step]:
    """Take `steps` (all by default) of `plan` from x [B, ...] (MixGRPO Alg. 1, lines 5 to 12).

    noise: of each random step by its index; it broadcasts with x. `history`: x0 predictions of the
    steps before, oldest first.
    """
    sampler = plan.sampler
    solver = DPMSolver(sampler.order, sampler.variant)
    for x0 in history:
        solver.observe(x0)
    return walk(
        velocity,
        plan.sigmas,
        plan.kinds,
        x,
        solver=solver,
        steps=steps,
        restart=plan.tail_begin if sampler.history == "restart" else None,
        random_step=lambda index, x, v: sde_transition(plan, index, x, v, noise[index]),
    )


def sde_transition(plan: Plan, index: int, x: Tensor, v: Tensor, noise: Tensor) -> SDEStep:
    """Random step `index` of `plan` from x, by its sampler's kernel; x and noise broadcast."""
    sigmas = plan.sigmas[index], plan.sigmas[index + 1]
    return sde_step(x, v, *sigmas, **_kernel(plan), noise=noise)


def plan_coefficients(plan: Plan, index: int) -> Coefficients:
    """What random step `index` of `plan` does to x, v and noise, by its sampler's kernel."""
    return step_coefficients(plan.sigmas[index], plan.sigmas[index + 1], **_kernel(plan))


def _kernel(plan: Plan) -> dict[str, Any]:
    sampler = plan.sampler
    return {"eta": sampler.eta, "kind": sampler.kernel, "sigma_max": plan.sigmas[1]}
