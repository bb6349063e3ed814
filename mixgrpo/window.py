"""Where the window of SDE steps stands, as a pure function of the iteration (Sec. 3.2, Alg. 1).

The window covers the steps l .. l + w - 1 of a trajectory of T steps. It is never empty and never
shorter than w: its last position is L = T - w. Nothing here keeps state, so resuming needs only
the iteration.
"""

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Strategy = Literal["frozen", "random", "constant", "linear-decay", "exp-decay"]


@dataclass(frozen=True)
class Window:
    """A window of `size` SDE steps that moves through a trajectory of `steps` steps.

    * frozen: stays at `start`.
    * random: l uniform in 0 .. L, drawn from (seed, iteration) alone.
    * constant: moves by `stride` every `interval` iterations.
    * linear-decay: the interval at position l falls linearly from `interval` at l = 0 to
      `interval_min` at l = L (rounded up).
    * exp-decay: the interval at position l is ceil(interval exp(-decay max(0, l - threshold))).

    The progressive strategies move from `start`; at L they stay (`at_end="hold"`, Algorithm 1) or,
    when the interval at L has passed, begin again at `start` (`"restart"`).

    Raises ValueError where the window does not fit the trajectory.
    """

    steps: int
    size: int
    interval: int
    stride: int
    strategy: Strategy
    at_end: Literal["hold", "restart"] = "hold"
    start: int = 0
    seed: int = 0
    interval_min: int = 1
    decay: float = 0.1
    threshold: int = 13

    def __post_init__(self) -> None:
        if min(self.size, self.interval, self.stride, self.interval_min) < 1:
            raise ValueError("size, interval, interval_min and stride must be at least 1")
        if not 0 <= self.start <= self.last:
            raise ValueError(
                f"a window of {self.size} steps from step {self.start} is longer than the "
                f"trajectory of {self.steps} steps"
            )

    @property
    def last(self) -> int:
        """L = T - w, the last position of the window's first step."""
        return self.steps - self.size

    def start_at(self, iteration: int) -> int:
        """l, the window's first step at `iteration` = 0, 1, 2, ..."""
        if iteration < 0:
            raise ValueError(f"iteration must not be negative: {iteration}")
        if self.strategy == "frozen":
            return self.start
        if self.strategy == "random":
            return self._draw(iteration)
        positions, begins, total = self._path
        if self.at_end == "restart":
            iteration %= total
        return positions[bisect_right(begins, iteration) - 1]

    def steps_at(self, iteration: int) -> range:
        """The indices of the window's steps at `iteration`: never empty, always `size` long."""
        first = self.start_at(iteration)
        return range(first, first + self.size)

    def interval_at(self, position: int) -> int:
        """How many iterations a progressive window stays at `position`."""
        if self.strategy == "linear-decay":
            # In whole numbers: a rounding error would round a whole interval up by one.
            return self.interval - (self.interval - self.interval_min) * position // max(
                1, self.last
            )
        if self.strategy == "exp-decay":
            falling = math.exp(-self.decay * max(0, position - self.threshold))
            return max(1, math.ceil(self.interval * falling))
        return self.interval

    @cached_property
    def _path(self) -> tuple[list[int], list[int], int]:
        """Positions, the iteration at which each begins, and the length of one whole pass."""
        positions = [*range(self.start, self.last, self.stride), self.last]
        begins, begin = [], 0
        for position in positions:
            begins.append(begin)
            begin += self.interval_at(position)
        return positions, begins, begin

    def _draw(self, iteration: int) -> int:
        # A hash is the same on every platform, rank and version; 2^64 values over at most a
        # thousand positions leave a bias below 1e-16.
        digest = hashlib.sha256(f"window/{self.seed}/{iteration}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % (self.last + 1)
