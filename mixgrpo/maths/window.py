"""The position of the window of SDE steps, as a pure function of the iteration (Sec. 3.2, Alg. 1).

The window covers the steps l .. l + w - 1 of a trajectory of T steps. It always has w steps: its
last position is L = T - w. There is no state, so resuming needs only the iteration.
"""

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

MOST_DRAWN = 100_000
"""Up to this many iterations of a random window `iterations_at` counts the actual draws."""

Strategy = Literal["frozen", "random", "constant", "linear-decay", "exp-decay"]
AtEnd = Literal["hold", "restart", "released"]


@dataclass(frozen=True)
class Window:
    """A window of `size` steps that moves through a trajectory of `steps` steps.

    It ends before step `stop`, by default the trajectory's end: L = stop - w.

    * frozen: stays at `start`.
    * random: l uniform in start .. L, drawn from (seed, iteration).
    * constant: moves by `stride` every `interval` iterations.
    * linear-decay: the interval at position l falls linearly from `interval` at l = 0 to
      `interval_min` at l = L (rounded up).
    * exp-decay: the interval at position l is ceil(interval exp(-decay max(0, l - threshold))).

    The progressive strategies move from `start`. At L they stay (`at_end="hold"`, Algorithm 1) or,
    when the interval at L has passed, begin again at `start` (`"restart"`).

    `"released"` shifts when the released code shifts, in every strategy that moves by an interval:
    its bound is M = T - 2 (or `stop`, if that comes first), so that no window covers the last two
    steps; its first steps go up to M - 1 and then begin again. Its linear decay falls to
    `interval_min` at l = M and rounds down. The released code shrinks the window where its first
    step is above M - w; this one then stays at M - w with all its steps.

    Raises ValueError where the window does not fit the trajectory.
    """

    steps: int
    size: int
    interval: int
    stride: int
    strategy: Strategy
    at_end: AtEnd = "hold"
    start: int = 0
    stop: int | None = None
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
        """L, the last position of the window's first step: T - w without `stop`."""
        return self._bound - self.size

    @property
    def _bound(self) -> int:
        """The step before which every window ends; M with at_end="released"."""
        bound = self.steps if self.stop is None else min(self.stop, self.steps)
        return min(bound, self.steps - 2) if self.at_end == "released" else bound

    def start_at(self, iteration: int) -> int:
        """l, the window's first step at `iteration` = 0, 1, 2, ..."""
        if iteration < 0:
            raise ValueError(f"iteration must not be negative: {iteration}")
        if self.strategy == "frozen":
            return self.start
        if self.strategy == "random":
            return self._draw(iteration)
        positions, begins, total = self._path
        if self.at_end != "hold":
            iteration %= total
        return positions[bisect_right(begins, iteration) - 1]

    def steps_at(self, iteration: int) -> range:
        """The indices of the window's steps at `iteration`: never empty, always `size` long."""
        first = self.start_at(iteration)
        return range(first, first + self.size)

    def stays(self, iterations: int) -> Iterator[tuple[int, int]]:
        """(first step, number of iterations) of every stay of the window within the first
        `iterations` iterations, in order; consecutive stays have different first steps. The time
        it takes grows with the stays, not with the iterations."""
        for start, same in groupby(self._stays(iterations), key=lambda stay: stay[0]):
            yield start, sum(length for _, length in same)

    def _stays(self, iterations: int) -> Iterator[tuple[int, int]]:
        if self.strategy == "frozen":
            yield self.start, iterations
        elif self.strategy == "random":
            yield from ((self._draw(m), 1) for m in range(iterations))
        else:
            positions, begins, total = self._path
            ends = [*begins[1:], total if self.at_end != "hold" else max(total, iterations)]
            for first in range(0, iterations, ends[-1]):
                for position, begin, end in zip(positions, begins, ends, strict=True):
                    length = min(first + end, iterations) - (first + begin)
                    if length > 0:
                        yield position, length

    def iterations_at(self, iterations: int) -> dict[int, int]:
        """How many of the first `iterations` iterations have each first step. Fast for any number;
        for a random window with more than 100,000 iterations these are the expected numbers."""
        counts: Counter[int] = Counter()
        if self.strategy == "random" and iterations > MOST_DRAWN:
            choices = range(self.start, self.last + 1)
            each, more = divmod(iterations, len(choices))
            return {start: each + (k < more) for k, start in enumerate(choices)}
        if self.at_end != "hold" and self.strategy not in ("frozen", "random"):
            passes, iterations = divmod(iterations, self._path[2])
            for start, length in self.stays(self._path[2] if passes else 0):
                counts[start] += passes * length
        for start, length in self.stays(iterations):
            counts[start] += length
        return dict(counts)

    def moves_at(self, iteration: int) -> bool:
        """Whether `iteration` begins a stay: the first iteration, and those in which a progressive
        window has just moved; every `interval` iterations for a frozen or random window."""
        if self.strategy in ("frozen", "random"):
            return iteration % self.interval == 0
        return iteration == 0 or self.start_at(iteration) != self.start_at(iteration - 1)

    def released_size_at(self, iteration: int) -> int:
        """The number of steps of the released code's window at `iteration`: `size`, or less where
        its bound T - 2 shortens it."""
        if self.at_end != "released" or self.strategy in ("frozen", "random"):
            return self.size
        _, begins, total = self._path
        first = self.start + self.stride * (bisect_right(begins, iteration % total) - 1)
        return min(self.size, self._bound - first)

    def interval_at(self, position: int) -> int:
        """How many iterations a progressive window stays at `position`; with at_end="released" the
        position may be that of a shortened window."""
        if self.strategy == "linear-decay":
            # In integers: a rounding error could change an interval by one.
            fall = (self.interval - self.interval_min) * position
            if self.at_end == "released":
                return self.interval + -fall // self._bound
            return self.interval - fall // max(1, self.last)
        if self.strategy == "exp-decay":
            falling = math.exp(-self.decay * max(0, position - self.threshold))
            return max(1, math.ceil(self.interval * falling))
        return self.interval

    @cached_property
    def _path(self) -> tuple[list[int], list[int], int]:
        """Positions, the iteration at which each begins, and the length of one whole pass."""
        if self.at_end == "released":
            moves = list(range(self.start, self._bound, self.stride))
        else:
            moves = [*range(self.start, self.last, self.stride), self.last]
        begins, begin = [], 0
        for position in moves:
            begins.append(begin)
            begin += self.interval_at(position)
        return [min(position, self.last) for position in moves], begins, begin

    def _draw(self, iteration: int) -> int:
        # A hash is the same on every platform, rank and version; 2^64 values over at most a
        # thousand positions leave a bias below 1e-16.
        digest = hashlib.sha256(f"window/{self.seed}/{iteration}".encode()).digest()
        choices = self.last - self.start + 1
        return self.start + int.from_bytes(digest[:8], "big") % choices
