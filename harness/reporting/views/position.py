"""Separates what the window's position does to a measurement from what training does.

The measurement y of arm a with the window at step l after m iterations (its logarithm, where it is
above zero) is taken as

    y = F(l) + d_a m + error

with one free value F(l) for every position, shared by arms that sample alike, and a slope d_a for
every arm: training is taken to do the same at every position. Least squares over all seeds
together; intervals by leaving out one seed at a time (jackknife). Where an arm's position follows
from the iteration and no other arm was measured at the same positions at other times, d_a cannot be
known, and is NaN.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.stats import MIN_SEEDS

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-9
"""Eigenvalues below this part of the largest count as zero."""

Array = NDArray[np.float64]


def training_parts(lines: "pd.DataFrame", column: str) -> dict[str, dict[int, float]]:
    """Change of `column` at equal position over an arm's run, by arm: one value per seed.

    The values are jackknife pseudo-values: their mean is the estimate (less its bias), and
    `mean_interval` of them its interval. Arms whose slope cannot be known are left out.

    lines: columns arm, seed, iteration, window_start, `alike` (arms with the same one share F) and
    `column`, without missing values.
    """
    seeds = sorted({int(seed) for seed in lines["seed"]})
    arms = list(dict.fromkeys(lines["arm"].astype(str)))
    if len(seeds) < MIN_SEEDS:
        return {}
    squares, products = _sums(lines, column, arms, seeds)
    every = _slopes(squares.sum(0), products.sum(0), len(arms))
    n = len(seeds)
    without = [
        _slopes(squares.sum(0) - squares[k], products.sum(0) - products[k], len(arms))
        for k in range(n)
    ]
    spans = lines.groupby(lines["arm"].astype(str))["iteration"].agg(lambda m: m.max() - m.min())
    changes = {}
    for a, arm in enumerate(arms):
        values = [n * every[a] - (n - 1) * rest[a] for rest in without]
        if np.isfinite(values).all():
            changes[arm] = {s: v * float(spans[arm]) for s, v in zip(seeds, values, strict=True)}
    return changes


def _sums(
    lines: "pd.DataFrame", column: str, arms: list[str], seeds: list[int]
) -> tuple[Array, Array]:
    """X'X and X'y of every seed: [seeds, k, k] and [seeds, k], the arms' slopes first."""
    arm = lines["arm"].astype(str).map({name: a for a, name in enumerate(arms)}).to_numpy(int)
    seed = lines["seed"].map({s: k for k, s in enumerate(seeds)}).to_numpy(int)
    position = len(arms) + lines.groupby(["alike", "window_start"]).ngroup().to_numpy(int)
    iteration = lines["iteration"].to_numpy(float)
    x, y = iteration / max(1.0, float(iteration.max())), lines[column].to_numpy(float)
    size = int(position.max()) + 1
    squares, products = np.zeros((len(seeds), size, size)), np.zeros((len(seeds), size))
    np.add.at(squares, (seed, arm, arm), x * x)
    np.add.at(squares, (seed, position, position), 1.0)
    np.add.at(squares, (seed, arm, position), x)
    np.add.at(squares, (seed, position, arm), x)
    np.add.at(products, (seed, arm), x * y)
    np.add.at(products, (seed, position), y)
    return squares, products / max(1.0, float(iteration.max()))


def _slopes(squares: Array, products: Array, arms: int) -> Array:
    """The slopes per iteration, NaN where they cannot be known."""
    values, vectors = np.linalg.eigh(squares)
    real = values > TOLERANCE * values[-1]
    kept = vectors[:, real]
    solved = kept @ ((kept.T @ products) / values[real])
    unknown = np.linalg.norm(vectors[:arms, ~real], axis=1) > TOLERANCE**0.5
    slopes: Array = np.where(unknown, np.nan, solved[:arms])
    return slopes
