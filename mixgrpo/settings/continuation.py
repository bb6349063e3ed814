"""Which first iterations two runs have in common, and whether one can continue the other.

Runs that differ only in how their windows move, and in their length, compute the same bytes until
their windows first cover different steps. Nothing here imports torch.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

from mixgrpo.errors import ConfigError
from mixgrpo.maths.window import Window
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash

MOST = 100_000
"""The most iterations that are compared; later ones count as different."""


def common_iterations(a: RunConfig, b: RunConfig) -> int:
    """The number of first iterations in which both runs compute the same bytes, at most MOST.

    The same are weights, lines of metrics.jsonl (timings and memory apart) and the evaluations that
    both make. The evaluation after a run's last iteration may be one that the other does not make.
    """
    if a.seed != b.seed or must_equal(a) != must_equal(b):
        return 0
    return common_length(path(a), path(b))


def must_equal(config: RunConfig) -> str:
    """The settings that two runs must have in common, besides their seed, to begin the same.

    These are all but those of the window's movement. Settings that only change what a run folder
    holds (health, pictures) count too; the number of iterations only where the learning rate
    depends on it.
    """
    rest = config.model_dump(exclude={"seed", "iterations", "window", "output"})
    parts = [rest, config.window.size, config.trained_per_image, config.output.samples]
    if config.optimizer.schedule != "constant":
        parts.append(config.iterations)
    return repr(parts)


def why_not_continued(existing: RunConfig, claimed: str | None, wanted: RunConfig) -> str:
    """Why the run `wanted` cannot continue the run `existing`, which differs from it in length
    only; "" where it can. `claimed`: the hash that `existing` had when it began."""
    if wanted.optimizer.schedule != "constant":
        return (
            "the learning rate depends on the number of iterations (optimizer.schedule: "
            f"{wanted.optimizer.schedule})"
        )
    try:
        if config_hash(existing) != claimed:
            return "its weights, prompts or code have changed since it began"
    except ConfigError as error:
        return str(error)
    if must_equal(existing) != must_equal(wanted):
        return "it was measured with other settings of health or output.samples"
    return ""


def path(config: RunConfig) -> str:
    """One character for each of the first MOST iterations: the window's position, and whether drift
    is measured. Equal beginnings of two paths are equal first iterations."""
    window = config.make_window()
    if window.strategy != "random":  # no other strategy depends on the seed
        window = replace(window, seed=0)
    return _path(window, min(config.iterations, MOST), config.health.drift)


@lru_cache(maxsize=4096)
def _path(window: Window, iterations: int, drift: bool) -> str:
    positions = "".join(chr(2 * start) * length for start, length in window.stays(iterations))
    if not drift:
        return positions
    characters = list(positions)
    measured: Iterable[int] = range(0, iterations, window.interval)  # frozen or random window
    if window.strategy not in ("frozen", "random"):
        measured = accumulate((n for _, n in window.stays(iterations)), initial=0)
    for m in measured:
        if m < iterations:
            characters[m] = chr(ord(characters[m]) + 1)
    return "".join(characters)


def common_length(a: str, b: str) -> int:
    """The number of characters that two paths begin with in common."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
