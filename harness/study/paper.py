"""The numbers that the MixGRPO paper published (arXiv 2507.21802), as data frames.

Measured on FLUX.1-dev with 32 GPUs and the 400 HPDv2 test prompts (SD3.5-M where a table says so):
one run per row, no seeds, no intervals. The same setting differs by 0.03 to 0.08 in ImageReward
between tables. They are shown beside measured numbers, never tested against them.

Numbers that the paper prints twice (`REPEATED`) show how precise such a number is (`noise`).

Columns: hps, clip, pick, ir, ur (HPS-v2.1, CLIP score, PickScore, ImageReward, UnifiedReward),
nfe_old (network evaluations per image while sampling), nfe_theta (denoising steps per image that
receive a gradient), seconds_per_iteration, seconds_per_image.
"""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

LABEL = "published, FLUX.1-dev, HPDv2, another task; one run"
LABEL_SD3 = "published, SD3.5-M, another task; one run"

Value = float | str | None


@dataclass(frozen=True)
class PublishedTable:
    """One table: `rows[key]` holds a value for every column, None where the paper gives none."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Value, ...]]
    label: str = LABEL


_SCORES = ("hps", "pick", "ir", "ur")

TABLES: dict[str, PublishedTable] = {
    "main": PublishedTable(
        "Main comparison",
        ("nfe_old", "nfe_theta", "seconds_per_iteration", *_SCORES, "note"),
        {
            "FLUX.1-dev": (None, None, None, 0.313, 0.227, 1.088, 3.370, None),
            "DanceGRPO": (25, 14, 291.284, 0.356, 0.233, 1.436, 3.397, None),
            "DanceGRPO, 4 random steps": (25, 4, 149.978, 0.334, 0.225, 1.335, 3.374, None),
            "DanceGRPO, first 4 steps": (25, 4, 150.059, 0.333, 0.229, 1.235, 3.325, "frozen"),
            "MixGRPO": (25, 4, 150.839, 0.367, 0.237, 1.629, 3.418, None),
            "MixGRPO, CPS noise": (25, 4, 149.326, 0.369, 0.238, 1.645, 3.419, "later version"),
            "MixGRPO-Flash": (16, 4, 112.372, 0.358, 0.236, 1.528, 3.407, "mean NFE_old"),
            "MixGRPO-Flash*": (8, 4, 83.278, 0.357, 0.232, 1.624, 3.402, "frozen window"),
        },
    ),
    "rewards": PublishedTable(
        "Rewards inside and outside the training set",
        ("trained_on", "method", "hps", "clip", "pick", "ir", "ur"),
        {
            "FLUX": (None, "FLUX", 0.313, 0.388, 0.227, 1.088, 3.370),
            "HPS / DanceGRPO": ("HPS", "DanceGRPO", 0.367, 0.349, 0.227, 1.141, 3.270),
            "HPS / MixGRPO": ("HPS", "MixGRPO", 0.373, 0.372, 0.228, 1.396, 3.370),
            "HPS + CLIP / DanceGRPO": (
                "HPS + CLIP",
                "DanceGRPO",
                0.346,
                0.400,
                0.228,
                1.314,
                3.377,
            ),
            "HPS + CLIP / MixGRPO": ("HPS + CLIP", "MixGRPO", 0.349, 0.415, 0.229, 1.416, 3.430),
        },
    ),
    "strategy": PublishedTable(
        "Moving strategy of the window",
        _SCORES,
        {
            "frozen": (0.354, 0.234, 1.580, 3.403),
            "random": (0.365, 0.237, 1.513, 3.388),
            "linear-decay": (0.365, 0.235, 1.566, 3.382),
            "exp-decay": (0.360, 0.239, 1.632, 3.416),
            "constant": (0.367, 0.237, 1.629, 3.418),
        },
    ),
    "tau": PublishedTable(
        "Shift interval (τ)",
        _SCORES,
        {
            "15": (0.366, 0.237, 1.509, 3.403),
            "20": (0.366, 0.238, 1.610, 3.411),
            "25": (0.367, 0.237, 1.629, 3.418),
            "30": (0.350, 0.229, 1.589, 3.385),
        },
    ),
    "size": PublishedTable(
        "Window size (w = NFE_theta)",
        (*_SCORES, "note"),
        {
            "1": (0.359, 0.234, 1.629, 3.235, "later version"),
            "2": (0.362, 0.235, 1.588, 3.419, None),
            "4": (0.367, 0.237, 1.629, 3.418, None),
            "6": (0.370, 0.238, 1.547, 3.398, None),
        },
    ),
    "stride": PublishedTable(
        "Stride (s)",
        _SCORES,
        {
            "1": (0.367, 0.237, 1.629, 3.418),
            "2": (0.357, 0.236, 1.575, 3.391),
            "3": (0.370, 0.236, 1.578, 3.404),
            "4": (0.368, 0.238, 1.575, 3.407),
        },
    ),
    "order": PublishedTable(
        "Solver order after the window (progressive Flash)",
        ("order", "variant", *_SCORES),
        {
            "1": (1, None, 0.367, 0.236, 1.570, 3.403),
            "2 midpoint": (2, "midpoint", 0.358, 0.237, 1.578, 3.407),
            "2 heun": (2, "heun", 0.362, 0.233, 1.488, 3.399),
            "3": (3, None, 0.359, 0.234, 1.512, 3.387),
        },
    ),
    "overhead": PublishedTable(
        "Sampling overhead",
        ("method", "nfe_old", "seconds_per_image", *_SCORES, "note"),
        {
            "DanceGRPO 25": (
                *("DanceGRPO", 25, 9.301, 0.334, 0.225, 1.335, 3.374),
                "4 random steps",
            ),
            "Flash 19": ("Flash", 19, 7.343, 0.357, 0.236, 1.564, 3.394, "mean NFE_old"),
            "Flash 16": ("Flash", 16, 6.426, 0.362, 0.237, 1.578, 3.407, "mean NFE_old"),
            "Flash 13": ("Flash", 13, 5.453, 0.344, 0.229, 1.447, 3.363, "mean NFE_old"),
            "Flash* 12": ("Flash*", 12, 4.859, 0.353, 0.230, 1.588, 3.396, None),
            "Flash* 10": ("Flash*", 10, 4.214, 0.359, 0.234, 1.548, 3.430, None),
            "Flash* 8": ("Flash*", 8, 3.789, 0.357, 0.232, 1.624, 3.402, None),
        },
    ),
    "acceleration": PublishedTable(
        "Accelerating before the window too (later version)",
        ("hps", "pick", "ir"),
        {"after": (0.358, 0.236, 1.528), "before and after": (0.335, 0.223, 1.235)},
    ),
    "noise": PublishedTable(
        "Initial noise within a group (later version)",
        ("hps", "pick", "ir"),
        {"same": (0.367, 0.237, 1.629), "own": (0.342, 0.228, 1.448)},
    ),
    "hybrid": PublishedTable(
        "Hybrid inference (first p_mix of the steps with the trained model)",
        _SCORES,
        {
            "0": (0.313, 0.226, 1.089, 3.369),
            "20": (0.342, 0.233, 1.372, 3.386),
            "40": (0.356, 0.235, 1.539, 3.395),
            "60": (0.362, 0.236, 1.598, 3.407),
            "80": (0.366, 0.238, 1.610, 3.411),
            "100": (0.369, 0.238, 1.607, 3.378),
        },
    ),
    "alignment": PublishedTable(
        "Other alignment methods on SD3.5-M",
        ("nfe_old", "nfe_theta", "hps", "pick", "ir"),
        {
            "SD3.5-M": (None, None, 0.307, 0.227, 1.163),
            "Flow-DPO offline": (40, 40, 0.304, 0.222, 1.452),
            "Flow-DPO online": (40, 40, 0.313, 0.221, 1.500),
            "DiffusionNFT": (10, 10, 0.313, 0.235, 1.494),
            "Flow-GRPO": (10, 10, 0.331, 0.232, 1.457),
            "DanceGRPO": (10, 10, 0.309, 0.226, 1.433),
            "MixGRPO": (10, 4, 0.342, 0.236, 1.485),
        },
        label=LABEL_SD3,
    ),
    "branchgrpo": PublishedTable(
        "BranchGRPO's README (independent of the paper)",
        ("seconds_per_iteration", "hps"),
        {
            "DanceGRPO": (698, 0.360),
            "DanceGRPO, 60 % of the steps": (469, 0.353),
            "MixGRPO, 20 steps, 5 trained": (289, 0.359),
            "BranchGRPO": (493, 0.363),
        },
        label="published by BranchGRPO, FLUX, another task; one run",
    ),
}


@dataclass(frozen=True)
class Repeated:
    """A setting for which the paper prints several different scores."""

    setting: str
    score: str
    """Column of the scores."""
    printed: tuple[tuple[float, str, str | None], ...]
    """Each value with its table in `TABLES` and its row, or with a description of where it is
    printed and None for a value outside of `TABLES`."""

    @property
    def spread(self) -> float:
        values = [value for value, _, _ in self.printed]
        return max(values) - min(values)


REPEATED: tuple[Repeated, ...] = (
    Repeated("w = 2", "ir", ((1.588, "size", "2"), (1.618, "another table of the paper", None))),
    Repeated("w = 6", "ir", ((1.547, "size", "6"), (1.624, "another table of the paper", None))),
    Repeated(
        "MixGRPO-Flash at 16 NFE",
        "ir",
        (
            *((1.528, "main", "MixGRPO-Flash"), (1.528, "acceleration", "after")),
            *((1.578, "order", "2 midpoint"), (1.578, "overhead", "Flash 16")),
        ),
    ),
    Repeated(
        "MixGRPO-Flash at 16 NFE",
        "hps",
        (
            *((0.358, "main", "MixGRPO-Flash"), (0.358, "acceleration", "after")),
            *((0.358, "order", "2 midpoint"), (0.362, "overhead", "Flash 16")),
        ),
    ),
)


def noise(score: str) -> tuple[float, float] | None:
    """The paper's visible noise in a score: the smallest and the largest spread of a setting that
    it prints several times with different values; None where there is no such setting.

    A difference above the range exceeds the visible noise, one below it is within, one inside it is
    of the same size. The range rests on few settings, so even a difference above it may be chance;
    in ImageReward both ends come from tables that are not among `TABLES`.
    """
    spreads = [round(repeated.spread, 6) for repeated in REPEATED if repeated.score == score]
    return (min(spreads), max(spreads)) if spreads else None


def differences(name: str, reference: str, score: str) -> dict[str, tuple[float, ...]]:
    """Score of every other row of a table minus that of the row `reference`, by row.

    The first difference is the table's; others follow where the paper prints another score for
    either setting elsewhere.
    """
    bases = printed(name, reference, score)
    by_row = {}
    for key in find(name).rows:
        values = printed(name, key, score)
        if key != reference and values and bases:
            # The paper prints three digits.
            every = (round(value - base, 6) for value in values for base in bases)
            by_row[key] = tuple(dict.fromkeys(every))
    return by_row


def printed(name: str, key: str, score: str) -> tuple[float, ...]:
    """A row's score as the table has it, then the other values printed for the same setting."""
    in_table = row(name, key).get(score)
    if in_table is None:
        return ()
    values = [float(in_table)]
    for repeated in REPEATED:
        if repeated.score == score and any(entry[1:] == (name, key) for entry in repeated.printed):
            values += [value for value, _, _ in repeated.printed]
    return tuple(dict.fromkeys(values))


def find(name: str) -> PublishedTable:
    """The published table `name`. ConfigError, with the nearest name, where there is none."""
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no published table {name}{hint} (known: {', '.join(TABLES)})")
    return TABLES[name]


def table(name: str) -> "pd.DataFrame":
    """The published table as a frame: its name, the row's key, then its columns."""
    import pandas as pd

    published = find(name)
    return pd.DataFrame(
        [
            {"table": name, "key": key, **dict(zip(published.columns, values, strict=True))}
            for key, values in published.rows.items()
        ]
    )


def row(name: str, key: str) -> dict[str, Any]:
    """One published row by column, without what the paper leaves empty."""
    published = find(name)
    if key not in published.rows:
        raise ConfigError(
            f"the published table {name} has no row {key} (known: {', '.join(published.rows)})"
        )
    values = zip(published.columns, published.rows[key], strict=True)
    return {column: value for column, value in values if value is not None}
