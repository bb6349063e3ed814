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

from harness.analysis.columns import ARM, ITERATION, SEED, WINDOW_START
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
    seeds = sorted({int(seed) for seed in lines[SEED]})
    arms = list(dict.fromkeys(lines[ARM].astype(str)))
    if len(seeds) < MIN_SEEDS:
        return {}
    last = max(1.0, float(lines[ITERATION].max()))
    x, y = _design(lines, arms, last), lines[column].to_numpy(float)
    of_seeds = [lines[SEED].to_numpy() == seed for seed in seeds]
    every, n = _slopes(x, y, len(arms)), len(seeds)
    without = [_slopes(x[~rows], y[~rows], len(arms)) for rows in of_seeds]
    spans = lines.groupby(lines[ARM].astype(str))[ITERATION].agg(lambda m: m.max() - m.min())
    changes = {}
    for a, arm in enumerate(arms):
        values = [n * every[a] - (n - 1) * rest[a] for rest in without]
        if np.isfinite(values).all():
            changes[arm] = {
                s: v / last * float(spans[arm]) for s, v in zip(seeds, values, strict=True)
            }
    return changes


def _design(lines: "pd.DataFrame", arms: list[str], last: float) -> Array:
    """[lines, arms + positions]: the iteration, as a part of the `last` one, in the column of the
    line's arm, and 1 in that of its position."""
    arm = lines[ARM].astype(str).map({name: a for a, name in enumerate(arms)}).to_numpy(int)
    position = len(arms) + lines.groupby(["alike", WINDOW_START]).ngroup().to_numpy(int)
    x, row = np.zeros((len(lines), int(position.max()) + 1)), np.arange(len(lines))
    x[row, arm], x[row, position] = lines[ITERATION] / last, 1.0
    return x


def _slopes(x: Array, y: Array, arms: int) -> Array:
    """The coefficients of the arms' columns, NaN where they cannot be known."""
    values, vectors = np.linalg.eigh(x.T @ x)
    real = values > TOLERANCE * values[-1]
    kept = vectors[:, real]
    solved = kept @ ((kept.T @ (x.T @ y)) / values[real])
    unknown = np.linalg.norm(vectors[:arms, ~real], axis=1) > TOLERANCE**0.5
    slopes: Array = np.where(unknown, np.nan, solved[:arms])
    return slopes
