"""The arms of a sweep file: the product of its grid, its named alternatives, or both."""

import itertools
import re
from dataclasses import dataclass
from typing import Any

from harness.sweepfile import Chosen, Given
from mixgrpo.errors import ConfigError

SYMBOLS = {
    "window.interval": "τ",
    "window.size": "w",
    "window.stride": "s",
    "window.strategy": "window",
    "sampler.steps": "T",
    "sampler.shift": "shift",
    "sampler.eta": "η",
    "sampler.kernel": "noise",
    "sampler.tail_ratio": "tail ratio",
    "rollout.group_size": "N",
    "objective.clip_range": "clip",
    "objective.kl_weight": "β",
    "optimizer.lr": "learning rate",
    "rewards.train": "trained on",
}
"""How figures name a field; the others go by the last part of their key."""


@dataclass(frozen=True)
class Arm:
    """One alternative of a sweep: settings on top of what all arms share."""

    name: str
    """Part of folder names, such as `interval=15`."""
    label: str
    """As figures and tables show it, such as `τ = 15`."""
    settings: dict[str, Any]
    """Values by dotted key."""


def make_arms(chosen: Chosen) -> list[Arm]:
    """The arms in the order of the file. ConfigError where there is nothing to compare."""
    grid, arms = chosen.get("grid"), chosen.get("arms")
    if grid is None and arms is None:
        raise ConfigError(
            f"{chosen.document.file}: neither grid nor arms: nothing to compare; give "
            "`grid: {window.interval: [15, 25]}` or `arms:`"
        )
    # Where one of them is missing, a single arm without name and settings stands for it.
    named = _named_arms(chosen, arms) if arms else [Arm("", "", {})]
    points = _grid_points(chosen, grid) if grid else [Arm("", "", {})]
    product = [
        Arm(
            ",".join(filter(None, (a.name, p.name))),
            ", ".join(filter(None, (a.label, p.label))),
            {**a.settings, **p.settings},
        )
        for a in named
        for p in points
    ]
    for first, second in itertools.combinations(product, 2):
        if first.name.lower() == second.name.lower():  # some file systems ignore case
            key = (grid or arms).key  # type: ignore[union-attr]
            raise chosen.error(key, f"two arms have the name {second.name}; keep one of them")
    return product


def _named_arms(chosen: Chosen, arms: Given) -> list[Arm]:
    if not arms.value:
        raise chosen.error(arms.key, "is empty: nothing to compare; add an arm")
    found = []
    for name, settings in arms.value.items():
        settings = dict(settings or {})
        label = settings.pop("label", name)
        if not isinstance(label, str) or not label.strip():
            raise chosen.error((*arms.key, name, "label"), f"expected text, not {label!r}")
        found.append(Arm(name, label, chosen.flat(settings, (*arms.key, name))))
    return found


def _grid_points(chosen: Chosen, grid: Given) -> list[Arm]:
    if not grid.value:
        raise chosen.error(
            grid.key, "is empty: nothing to compare; add a key with values, or use arms"
        )
    short = [key.rsplit(".", 1)[-1] for key in grid.value]
    axes = []
    for key, values in grid.value.items():
        place = (*grid.key, key)
        chosen.check_setting(key, place)
        if not values:
            raise chosen.error(place, "has no values; give a list such as [1, 2]")
        last = key.rsplit(".", 1)[-1]
        name = last if short.count(last) == 1 else key
        axes.append([_grid_arm(key, name, value) for value in values])
        for i, j in itertools.combinations(range(len(values)), 2):
            if values[i] == values[j]:
                raise chosen.error(
                    (*place, j),
                    f"{values[j]!r} is given twice: the arms {axes[-1][i].name} and "
                    f"{axes[-1][j].name} are the same configuration; keep one",
                )
    return [
        Arm(
            ",".join(p.name for p in point),
            ", ".join(p.label for p in point),
            {k: v for p in point for k, v in p.settings.items()},
        )
        for point in itertools.product(*axes)
    ]


def place_of(chosen: Chosen, arm: Arm, key: str) -> str:
    """Where the file gives an arm this value."""
    arms, grid = chosen.get("arms"), chosen.get("grid")
    if grid and key in grid.value:
        index = next(i for i, v in enumerate(grid.value[key]) if v == arm.settings[key])
        return chosen.document.place((*grid.key, key, index))
    name = next(n for n in arms.value if arm.name.split(",")[0] == n) if arms else ""
    return chosen.place_under((*arms.key, name) if arms else (), key)


def _grid_arm(key: str, name: str, value: Any) -> Arm:
    text = value_text(value)
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)
    return Arm(f"{name}={safe}", f"{SYMBOLS.get(key, name)} = {text}", {key: value})


def value_text(value: Any) -> str:
    """A setting's value as people write it: reward names with weight 1 go without it."""
    if isinstance(value, dict):
        return " + ".join(k if v == 1 else f"{value_text(v)} {k}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return " + ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def ways_to_name(arm: Arm) -> list[str]:
    """The texts by which `paper_rows` may call an arm; the last is its default row."""
    if len(arm.settings) == 1 and "=" in arm.name:
        return [arm.name, value_text(next(iter(arm.settings.values())))]
    return [arm.name]
