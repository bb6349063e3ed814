"""One trajectory before it runs: its grid, the kind of each step, and what it will cost.

Costs are known without torch; the grid is made when it is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mixgrpo.config import SamplerConfig

if TYPE_CHECKING:
    from torch import Tensor

StepKind = Literal["ode", "sde", "dpm"]


@dataclass(frozen=True)
class Plan:
    """The steps of one trajectory: ODE before the window, SDE inside, ODE or DPM after it."""

    sampler: SamplerConfig
    kinds: tuple[StepKind, ...]
    tail_begin: int
    """First step after the window; the grid is the sampler's own up to there."""

    @property
    def steps(self) -> int:
        """T~, the number of steps of this trajectory: the paper's NFE_old."""
        return len(self.kinds)

    @property
    def window(self) -> tuple[int, ...]:
        """Indices of the SDE steps, which are the trained ones: as many as NFE_theta."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind == "sde")

    @property
    def shared_steps(self) -> int:
        """Steps at whose start all images of a group are the same where their first noise is.

        That is every step up to and including the first SDE step.
        """
        return min((*self.window, self.steps - 1)) + 1

    @cached_property
    def sigmas(self) -> "Tensor":
        """The grid [steps + 1] in float64, from 1 to 0."""
        import torch

        from mixgrpo.schedule import sigma_schedule, tail_schedule

        total, shift = self.sampler.steps, self.sampler.shift
        grid = sigma_schedule(total, shift, torch.float64)
        if self.tail_begin == total:
            return grid
        tail_steps = self.steps - self.tail_begin
        tail = tail_schedule(total, self.tail_begin, tail_steps, shift, torch.float64)
        return torch.cat([grid[: self.tail_begin], tail])

    def evaluations(self, group_size: int, shared_noise: bool = True) -> int:
        """Network evaluations of the rollout of one group of N images.

        l + 1 + N (T~ - l - 1) where the group shares its initial noise, else N T~.
        """
        shared = self.shared_steps if shared_noise else 0
        return shared + group_size * (self.steps - shared)

    def update_evaluations(
        self, group_size: int, updates: int = 1, shared_noise: bool = True
    ) -> int:
        """Network evaluations with gradient of one group in one iteration of `updates` updates.

        With shared noise the window's first step is evaluated once per update, not per image.
        """
        trained = len(self.window)
        shared = 1 if shared_noise and trained else 0
        return shared * updates + group_size * (trained - shared)


def make_plan(sampler: SamplerConfig, window_steps: Iterable[int]) -> Plan:
    """The trajectory of `sampler` with SDE steps at `window_steps`.

    With l = the first and l + w - 1 = the last of them, n = max(1, round((T - l - w) ratio)) steps
    follow, or none where l + w = T (MixGRPO Sec. 3.4). Without window steps: a pure ODE
    trajectory. ValueError for steps outside the trajectory.
    """
    window = sorted(set(window_steps))
    total = sampler.steps
    if window and not 0 <= window[0] <= window[-1] < total:
        raise ValueError(f"window steps {window} are not within a trajectory of {total} steps")
    begin = window[-1] + 1 if window else total
    rest = total - begin
    tail = max(1, round(rest * sampler.tail_ratio)) if rest else 0
    tail_kind: StepKind = "dpm" if sampler.tail_ratio < 1 or sampler.order > 1 else "ode"
    inside = set(window)
    head: list[StepKind] = ["sde" if i in inside else "ode" for i in range(begin)]
    return Plan(sampler, (*head, *[tail_kind] * tail), begin)
