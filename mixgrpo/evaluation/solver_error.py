"""How far fewer steps before or after the window lead away from the ODE that they should follow.

From the same noise and prompt one trajectory takes the steps of a plan (`mixgrpo.sampling.plan`, by
DPM-Solver++ of some order), another follows the ODE by fine Runge-Kutta steps
(`mixgrpo.evaluation.trajectories`). Where the window's steps are the ODE's too, only the solver's
error remains; where they are the sampler's random ones, both trajectories take them with the same
noise. Distances are relative: the root mean square of the difference over that of the ODE's state,
for each image.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.evaluation.held_out import choose, evaluation_noise
from mixgrpo.evaluation.trajectories import States, fine_ode, plan_steps, relative_distance
from mixgrpo.maths.randomness import normal
from mixgrpo.models.load import prepare
from mixgrpo.models.policy import held_out_prompts
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import images_at_once
from mixgrpo.sampling.plan import Plan, make_plan
from mixgrpo.sampling.rollout import slices
from mixgrpo.settings.config import RewardsConfig, RunConfig, SamplerConfig
from mixgrpo.settings.probes import SolverErrorOptions

log = logging.getLogger(__name__)

MOST_STARTS = 3
WindowSteps = Literal["ode", "sde"]
"""Who takes the window's steps: the fine ODE, or the sampler with its noise."""


@dataclass(frozen=True)
class Solver:
    """DPM-Solver++ with a part of the steps before the window, or after it."""

    place: Literal["before", "after"]
    order: str
    """`1`, `2 midpoint`, `2 heun` or `3`."""
    ratio: float
    history: Literal["keep", "restart"] = "keep"
    """Whether it goes on from the window's predictions; after the window only."""

    def plan(self, sampler: SamplerConfig, start: int, size: int) -> Plan:
        """The trajectory around a window, with fewer steps on this side alone."""
        order, _, variant = self.order.partition(" ")
        settings = {
            "order": int(order),
            "variant": variant or "midpoint",
            "head_ratio": self.ratio if self.place == "before" else 1.0,
            "tail_ratio": self.ratio if self.place == "after" else 1.0,
            "history": self.history,
        }
        changed = sampler.model_copy(update=settings)
        return make_plan(changed, range(start, start + size))


def solvers(orders: Sequence[str], ratios: Sequence[float]) -> list[Solver]:
    """Every order and ratio on both sides of the window, and all steps as a comparison: before the
    window by Euler, as in a plan, after it by every order."""
    before = [Solver("before", order, ratio) for order in orders for ratio in ratios]
    after = [
        Solver("after", order, ratio, history)
        for order in orders
        for history in (("keep", "restart") if order != "1" else ("keep",))
        for ratio in (*ratios, 1.0)
    ]
    return [Solver("before", "1", 1.0), *before, *after]


@dataclass(frozen=True)
class Error:
    """The error of one solver at one position of the window."""

    solver: Solver
    start: int
    saved: int
    """Network evaluations per image fewer than with all steps."""
    window: WindowSteps
    at: Literal["state", "image"]
    """The state at the window's first step, or the latents that are decoded."""
    distance: Tensor
    """[B], relative."""


@torch.no_grad()
def errors(
    velocity: Velocity,
    sampler: SamplerConfig,
    starts: Sequence[int],
    size: int,
    measured: Sequence[Solver],
    conditioning: Conditioning,
    noise: Tensor,
    window_noise: Tensor,
    fine: int,
) -> Iterator[Error]:
    """The error of every solver for windows of `size` steps that begin at `starts`.

    noise: [B, ...], window_noise: [B, size, ...]. A solver without a step on its side, as before a
    window at 0, has no error.
    """
    grid = make_plan(sampler, ()).sigmas
    exact = fine_ode(velocity, grid, conditioning, noise, fine)
    for start in starts:
        before = [s for s in measured if s.place == "before" and start > 0]
        after = [s for s in measured if s.place == "after" and start + size < sampler.steps]
        context = (velocity, sampler, start, size, conditioning)
        yield from _errors_before(*context, before, exact.x[start], noise, window_noise)
        yield from _errors_after(*context, after, exact, window_noise, fine)


def _errors_before(
    velocity: Velocity,
    sampler: SamplerConfig,
    start: int,
    size: int,
    conditioning: Conditioning,
    measured: Sequence[Solver],
    exact: Tensor,
    noise: Tensor,
    window_noise: Tensor,
) -> Iterator[Error]:
    """Of solvers from `noise` to the window, where the ODE reaches `exact`."""
    grid, inside = make_plan(sampler, ()).sigmas, range(start, start + size)
    euler = Solver("before", "1", 1.0).plan(sampler, start, size)

    def onward(x: Tensor) -> dict[WindowSteps, Tensor]:
        # The same from either state, so that the integrator's own error cancels: 1 is fine enough.
        left = plan_steps(velocity, euler, inside, conditioning, x, window_noise).x[-1]
        return {
            "ode": fine_ode(velocity, grid[start:], conditioning, x, 1).x[-1],
            "sde": fine_ode(velocity, grid[inside.stop :], conditioning, left, 1).x[-1],
        }

    images = onward(exact)
    reached: list[tuple[Tensor, dict[WindowSteps, Tensor]]] = []
    for solver in measured:
        plan = solver.plan(sampler, start, size)
        saved, head = sampler.steps - plan.steps, range(plan.head)
        x = plan_steps(velocity, plan, head, conditioning, noise, window_noise).x[-1]
        # Ratios that leave the same steps, and orders without a history, lead to equal states.
        ends = next((known for state, known in reached if torch.equal(state, x)), None)
        if ends is None:
            ends = onward(x)
            reached.append((x, ends))
        yield Error(solver, start, saved, "ode", "state", relative_distance(x, exact))
        for window, image in images.items():
            distance = relative_distance(ends[window], image)
            yield Error(solver, start, saved, window, "image", distance)


def _errors_after(
    velocity: Velocity,
    sampler: SamplerConfig,
    start: int,
    size: int,
    conditioning: Conditioning,
    measured: Sequence[Solver],
    exact: States,
    window_noise: Tensor,
    fine: int,
) -> Iterator[Error]:
    """Of solvers from the window's end, which the ODE reaches, or random steps from the ODE."""
    grid, end = make_plan(sampler, ()).sigmas, start + size
    euler = Solver("after", "1", 1.0).plan(sampler, start, size)
    inside = range(start, end)
    random = plan_steps(velocity, euler, inside, conditioning, exact.x[start], window_noise)
    left: dict[WindowSteps, tuple[States, Tensor]] = {
        "ode": (States(exact.x[: end + 1], exact.x0[:end]), exact.x[-1]),
        "sde": (
            States([*exact.x[:start], *random.x], [*exact.x0[:start], *random.x0]),
            fine_ode(velocity, grid[end:], conditioning, random.x[-1], fine).x[-1],
        ),
    }
    for solver in measured:
        plan = solver.plan(sampler, start, size)
        saved, tail = sampler.steps - plan.steps, range(plan.tail_begin, plan.steps)
        for window, (states, image) in left.items():
            x, seen = states.x[-1], states.x0
            x = plan_steps(velocity, plan, tail, conditioning, x, window_noise, seen).x[-1]
            yield Error(solver, start, saved, window, "image", relative_distance(x, image))


def reference_error(
    velocity: Velocity, sampler: SamplerConfig, conditioning: Conditioning, noise: Tensor, fine: int
) -> Tensor:
    """[B]: the relative distance of the fine ODE's images from those of half as many steps.

    By the method's order that is many times the error of the fine ODE.
    """
    grid = make_plan(sampler, ()).sigmas
    x, coarser = (
        fine_ode(velocity, grid, conditioning, noise, steps).x[-1] for steps in (fine, fine // 2)
    )
    return relative_distance(x, coarser)


def window_starts(config: RunConfig, wanted: Sequence[int]) -> list[int]:
    """The windows to measure: those wanted, or a few of those that the run's window visits.

    ConfigError where a window of the run's size does not fit at one that is wanted.
    """
    last = config.sampler.steps - config.window.size
    for start in wanted:
        if start > last:
            raise ConfigError(
                f"probes.solver-error.starts: a window of {config.window.size} steps does not fit "
                f"at {start} of {config.sampler.steps}; the last start is {last}"
            )
    if wanted:
        return sorted(set(wanted))
    window = config.make_window()
    visited = sorted(window.iterations_at(config.iterations))
    count = min(MOST_STARTS, len(visited))
    # Spread over them without the first: before a window at 0 there is nothing to measure.
    return sorted({visited[(k + 1) * len(visited) // count - 1] for k in range(count)})


@torch.no_grad()
def measure(
    folder: Path,
    iteration: int,
    options: SolverErrorOptions,
    of_sweep: RewardsConfig | None = None,
) -> list[dict[str, Any]]:
    """The solver's errors for the averaged weights of the run in `folder`, by its checkpoint
    `iteration`, and for the base model; and the error of the reference ODE.

    One row for every model, solver, start and `at`, with the mean `error` over `images`.
    ConfigError for a run whose sampler is random on all steps. `of_sweep` is what all probes are
    given; nothing is scored here.
    """
    loaded = load_run(folder, iteration)
    config, policy = loaded.config, loaded.policy
    sampler, size = config.sampler, config.window.size
    if sampler.sde == "all":
        raise ConfigError(
            "probes.solver-error: sampler.sde all leaves no step to a solver; measure runs with "
            "sampler.sde window"
        )
    starts = window_starts(config, options.starts)
    measured = solvers(options.orders, options.ratios)
    prompts = choose(held_out_prompts(config, policy), options.prompts)
    prepare(policy, prompts, log.info)
    device = next(policy.network.parameters()).device
    shape = policy.latent_shape
    noise = evaluation_noise(config.seed, prompts, 1, shape).to(device)
    drawn = [normal((size, *shape), "solver-error", config.seed, p) for p in prompts]
    window_noise = torch.stack(drawn).to(device)
    images = _Images(policy, sampler, size, starts, measured, prompts, noise, window_noise)
    batch = images_at_once(config.compute)
    like = _same_base(config, starts, prompts, options)
    if like not in _OF_BASE:
        _OF_BASE.clear()
        _OF_BASE[like] = _rows("base", loaded.reference, images, batch, options.fine)
    return [*_rows("trained", loaded.velocity, images, batch, options.fine), *_OF_BASE[like]]


_OF_BASE: dict[str, list[dict[str, Any]]] = {}
"""The base model's rows as they were measured last, by `_same_base`: the arms of a sweep have the
base model in common, and for one seed its errors too."""


def _same_base(
    config: RunConfig, starts: Sequence[int], prompts: Sequence[str], options: SolverErrorOptions
) -> str:
    """What the base model's errors depend on: not on how many steps the run leaves out itself."""
    left_out = {"order", "variant", "head_ratio", "tail_ratio", "history"}
    return repr(
        (
            *(config.model, config.sampler.model_dump(exclude=left_out), config.window.size),
            *(config.seed, config.compute, list(starts), list(prompts), options),
        )
    )


@dataclass(frozen=True)
class _Images:
    """What every model is measured on."""

    policy: Policy
    sampler: SamplerConfig
    size: int
    starts: Sequence[int]
    """The window's size and its first steps."""
    measured: Sequence[Solver]
    prompts: list[str]
    noise: Tensor
    """[prompts, ...]"""
    window_noise: Tensor
    """[prompts, size, ...]"""


def _rows(
    model: str, velocity: Velocity, images: _Images, batch: int, fine: int
) -> list[dict[str, Any]]:
    """See `measure`; `batch` images at a time."""
    distances: dict[tuple[Any, ...], list[Tensor]] = {}
    sampler = images.sampler
    for rows in slices(len(images.prompts), batch):
        text, x = images.policy.encode(images.prompts[rows]), images.noise[rows]
        error = reference_error(velocity, sampler, text, x, fine)
        distances.setdefault(("reference", "", 1.0, "", -1, 0, "ode", "image"), []).append(error)
        for e in errors(
            *(velocity, sampler, images.starts, images.size, images.measured),
            *(text, x, images.window_noise[rows], fine),
        ):
            s = e.solver
            key = (s.place, s.order, s.ratio, s.history, e.start, e.saved, e.window, e.at)
            distances.setdefault(key, []).append(e.distance)
    names = ("place", "order", "ratio", "history", "start", "saved", "window", "at")
    return [
        {
            "model": model,
            **dict(zip(names, key, strict=True)),
            "error": float(torch.cat(parts).mean()),
            "images": len(images.prompts),
        }
        for key, parts in distances.items()
    ]
