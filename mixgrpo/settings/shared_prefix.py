"""How long two runs are the same run: the first iterations in which both compute the same bytes.

Runs that differ in nothing but how their windows move, and in how long they are, do the same until
their windows first stand at different steps. Nothing here imports torch.
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
"""Iterations that are compared; later ones count as different."""


def common_iterations(a: RunConfig, b: RunConfig) -> int:
    """The number of first iterations after which both runs have the same bytes, or MOST.

    In weights, in the lines of metrics.jsonl (timings and memory apart) and in the evaluations
    that both make; an evaluation after a run's own last iteration may be its own.
    """
    if a.seed != b.seed or must_equal(a) != must_equal(b):
        return 0
    return common_length(path(a), path(b))


def must_equal(config: RunConfig) -> str:
    """What two runs must have in common, beside their seed, to be the same at first.

    All settings but those of the window's movement. What changes no result but what a folder holds
    (health, pictures) counts too; the length of the run only where the learning rate goes by it.
    """
    rest = config.model_dump(exclude={"seed", "iterations", "window", "output"})
    parts = [rest, config.window.size, config.trained_per_image, config.output.samples]
    if config.optimizer.schedule != "constant":
        parts.append(config.iterations)
    return repr(parts)


def why_not_continued(there: RunConfig, claimed: str | None, wanted: RunConfig) -> str:
    """Why `wanted` cannot go on where a run was that differs from it in length alone, and whose
    hash was `claimed` when it began; "" where it can."""
    if wanted.optimizer.schedule != "constant":
        return (
            "the learning rate depends on the number of iterations (optimizer.schedule: "
            f"{wanted.optimizer.schedule})"
        )
    try:
        if config_hash(there) != claimed:
            return "its weights, prompts or code were others than they are now"
    except ConfigError as error:
        return str(error)
    if must_equal(there) != must_equal(wanted):
        return "it was measured with other settings of health or output.samples"
    return ""


def path(config: RunConfig) -> str:
    """One letter for each of the first MOST iterations: where the window stands, and whether drift
    is measured."""
    window = config.make_window()
    if window.strategy != "random":  # the seed moves no other one
        window = replace(window, seed=0)
    return _path(window, min(config.iterations, MOST), config.health.drift)


@lru_cache(maxsize=4096)
def _path(window: Window, iterations: int, drift: bool) -> str:
    stands = "".join(chr(2 * start) * length for start, length in window.stays(iterations))
    if not drift:
        return stands
    letters = list(stands)
    begins: Iterable[int] = range(0, iterations, window.interval)  # of a frozen or random window
    if window.strategy not in ("frozen", "random"):
        begins = accumulate((n for _, n in window.stays(iterations)), initial=0)
    for m in begins:
        if m < iterations:
            letters[m] = chr(ord(letters[m]) + 1)
    return "".join(letters)


def common_length(a: str, b: str) -> int:
    """Letters that two paths begin with in common."""
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
