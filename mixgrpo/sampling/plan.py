"""One trajectory before it runs: its grid, the kind of each step, and what it will cost.

Costs are known without torch; the grid is made when it is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mixgrpo.settings.config import RunConfig, SamplerConfig

if TYPE_CHECKING:
    from torch import Tensor

StepKind = Literal["ode", "sde", "dpm"]


@dataclass(frozen=True)
class Plan:
    """The steps of one trajectory: the head before the window, the window, the tail after it."""

    sampler: SamplerConfig
    kinds: tuple[StepKind, ...]
    window: tuple[int, ...]
    """Indices of the steps that are trained; all of them are SDE steps."""
    head: int
    """Steps before the window."""
    head_on_grid: int
    """Steps of the sampler's grid that the head stands for: more than `head` where it is
    accelerated."""
    tail_begin: int
    """First step after the window."""

    @property
    def steps(self) -> int:
        """T~, the number of steps of this trajectory: the paper's NFE_old."""
        return len(self.kinds)

    @property
    def sde(self) -> tuple[int, ...]:
        """Indices of the random steps: the window's, or all."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind == "sde")

    @property
    def shared_steps(self) -> int:
        """Steps at whose start all images of a group are the same where their first noise is.

        That is every step up to and including the first SDE step.
        """
        return min((*self.sde, self.steps - 1)) + 1

    @property
    def window_begins_shared(self) -> bool:
        """Whether the window's first step is the first random one."""
        return bool(self.window) and self.window[0] == self.shared_steps - 1

    @cached_property
    def sigmas(self) -> "Tensor":
        """The grid [steps + 1] in float64, from 1 to 0."""
        import torch

        from mixgrpo.maths.schedule import head_schedule, sigma_schedule, tail_schedule

        total, shift = self.sampler.steps, self.sampler.shift
        grid = sigma_schedule(total, shift, torch.float64)
        begin = self.head_on_grid
        end = begin + self.tail_begin - self.head
        parts = [grid[begin : end + 1]]
        if self.head != begin:
            head = head_schedule(total, begin, self.head, shift, torch.float64)
            parts.insert(0, head[:-1])
        elif begin:
            parts.insert(0, grid[:begin])
        if end < total:
            tail = tail_schedule(total, end, self.steps - self.tail_begin, shift, torch.float64)
            parts = [*parts[:-1], parts[-1][:-1], tail]
        return torch.cat(parts)

    def evaluations(self, group_size: int, shared_noise: bool = True) -> int:
        """Network evaluations of the rollout of one group of N images.

        l + 1 + N (T~ - l - 1) where the group shares its initial noise, else N T~.
        """
        shared = self.shared_steps if shared_noise else 0
        return shared + group_size * (self.steps - shared)

    def update_evaluations(
        self,
        group_size: int,
        updates: int = 1,
        shared_noise: bool = True,
        per_image: int | None = None,
    ) -> int:
        """Network evaluations with gradient of one group in one iteration of `updates` updates.

        `group_size`: its images that are trained with. `per_image`: the trained steps of each, all
        of the window's where none is given. With shared noise the window's first step is
        evaluated once per update, not per image, if all images train it.
        """
        size = len(self.window)
        trained = size if per_image is None else per_image
        shared = int(shared_noise and trained == size and self.window_begins_shared)
        return shared * updates + group_size * (trained - shared)


def make_plan(sampler: SamplerConfig, window_steps: Iterable[int]) -> Plan:
    """The trajectory of `sampler` whose steps `window_steps` are trained.

    With l = the first and l + w - 1 = the last of them, n = max(1, round((T - l - w) ratio)) steps
    follow, or none where l + w = T (MixGRPO Sec. 3.4); the l steps before become
    max(1, round(l head_ratio)). Without window steps: a pure ODE trajectory. ValueError for steps
    outside the trajectory.
    """
    window = sorted(set(window_steps))
    total = sampler.steps
    if window and not 0 <= window[0] <= window[-1] < total:
        raise ValueError(f"window steps {window} are not within a trajectory of {total} steps")
    first, after = (window[0], window[-1] + 1) if window else (total, total)
    head = _accelerated(first, sampler.head_ratio if window else 1.0)
    tail = _accelerated(total - after, sampler.tail_ratio)
    if sampler.sde == "all" and window:
        kinds: list[StepKind] = ["sde"] * total
    else:
        head_kind: StepKind = "dpm" if sampler.head_ratio < 1 and window else "ode"
        tail_kind: StepKind = "dpm" if sampler.tail_ratio < 1 or sampler.order > 1 else "ode"
        inside = set(window)
        middle: list[StepKind] = ["sde" if i in inside else "ode" for i in range(first, after)]
        kinds = [*[head_kind] * head, *middle, *[tail_kind] * tail]
    moved = head - first
    return Plan(
        sampler=sampler,
        kinds=tuple(kinds),
        window=tuple(i + moved for i in window),
        head=head,
        head_on_grid=first,
        tail_begin=after + moved,
    )


def _accelerated(steps: int, ratio: float) -> int:
    return max(1, round(steps * ratio)) if steps else 0


@dataclass(frozen=True)
class Cost:
    """Network evaluations of one or more iterations, counted as the trainer counts them."""

    forward: int
    """In the rollout and the updates, the reference model's included."""
    backward: int
    """With gradient, in the updates."""


def iteration_cost(config: RunConfig, iteration: int) -> Cost:
    """What `iteration` costs on one process where no group is skipped."""
    return _cost(config, config.make_window().start_at(iteration))


def run_cost(config: RunConfig) -> Cost:
    """What all iterations cost together; see `Window.iterations_at`."""
    starts = config.make_window().iterations_at(config.iterations)
    costs = [(_cost(config, start), count) for start, count in starts.items()]
    return Cost(
        sum(cost.forward * count for cost, count in costs),
        sum(cost.backward * count for cost, count in costs),
    )


def _cost(config: RunConfig, start: int) -> Cost:
    """What an iteration costs whose window begins at `start`."""
    plan = make_plan(config.sampler, range(start, start + config.window.size))
    shared = config.rollout.noise == "shared"
    update = plan.update_evaluations(
        config.trained_images, config.objective.updates, shared, config.trained_per_image
    )
    rollout = plan.evaluations(config.rollout.group_size, shared)
    update_forwards = update * (2 if config.objective.kl_weight else 1)
    prompts = config.rollout.prompts
    return Cost(prompts * (rollout + update_forwards), prompts * update)
