"""The arms of a sweep file: the product of its grid, its named alternatives, or both."""

import difflib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.sweepfile import Chosen, Given
from mixgrpo.configfile import Key
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
    "model.checkpoint": "model",
}
"""How figures name a field; the others go by the last part of their key."""

JOINT = " · "
"""Between the parts of a label, so that a sentence can list labels with commas."""


@dataclass(frozen=True)
class Arm:
    """One alternative of a sweep: settings on top of what all arms share."""

    name: str
    """Part of folder names, such as `interval=15`."""
    label: str
    """As figures and tables show it, such as `τ = 15`."""
    settings: dict[str, Any]
    """Values by dotted key."""
    base: str | None = None
    """The run configuration it stands on instead of the sweep's, relative to the sweep file."""


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
            JOINT.join(filter(None, (a.label, p.label))),
            {**a.settings, **p.settings},
            a.base,
        )
        for a in named
        for p in points
    ]
    key = (grid or arms).key  # type: ignore[union-attr]
    names: set[str] = set()
    labels: dict[str, str] = {}
    for arm in product:
        if arm.name.lower() in names:  # some file systems ignore case
            raise chosen.error(key, f"two arms have the name {arm.name}; keep one of them")
        if arm.label in labels:
            raise chosen.error(
                key,
                f"the arms {labels[arm.label]} and {arm.name} have the same label {arm.label}, so "
                "that no figure could tell them apart; give one another `label:`",
            )
        names.add(arm.name.lower())
        labels[arm.label] = arm.name
    return product


def _named_arms(chosen: Chosen, arms: Given) -> list[Arm]:
    if not arms.value:
        raise chosen.error(arms.key, "is empty: nothing to compare; add an arm")
    found = []
    for name, given in arms.value.items():
        place, settings = (*arms.key, name), dict(given or {})
        own_base = "base" in settings
        base = settings.pop("base", None)
        if own_base and not isinstance(base, str):
            raise chosen.error(
                (*place, "base"), f"expected the path of a run configuration, not {base!r}"
            )
        settings.pop("slurm", None)  # where it runs: harness.resources
        label = settings.pop("label", Path(base).stem if own_base and not settings else name)
        if not isinstance(label, str) or not label.strip():
            raise chosen.error((*place, "label"), f"expected text, not {label!r}")
        _check_words(chosen, settings, place)
        found.append(Arm(name, label, chosen.flat(settings, place), base))
    return found


def _check_words(chosen: Chosen, settings: dict[str, Any], place: Key) -> None:
    """ConfigError for what looks like an arm's own key and is none; settings are not judged."""
    for key in settings:
        if key == "set":
            raise chosen.error(
                (*place, key), "an arm's settings need no `set:`; write them below the arm's name"
            )
        near = difflib.get_close_matches(str(key), ("base", "label", "slurm"), n=1, cutoff=0.7)
        if near:
            raise chosen.error((*place, key), f"unknown key; did you mean {near[0]}?")


def base_place(chosen: Chosen, arm: Arm) -> Given | None:
    """The run configuration that an arm stands on, and the key that names it."""
    if arm.base is None:
        return chosen.get("base")
    arms = chosen.get("arms")
    assert arms is not None  # a grid alone gives no bases
    return Given(arm.base, (*arms.key, _name_in_file(arm), "base"))


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
        first: dict[Any, int] = {}
        for j, value in enumerate(values):
            i = first.setdefault(_hashable(value), j)
            if i < j:
                raise chosen.error(
                    (*place, j),
                    f"{value!r} is given twice: the arms {axes[-1][i].name} and "
                    f"{axes[-1][j].name} are the same configuration; keep one",
                )
    return [
        Arm(
            ",".join(p.name for p in point),
            JOINT.join(p.label for p in point),
            {k: v for p in point for k, v in p.settings.items()},
        )
        for point in itertools.product(*axes)
    ]


def _hashable(value: Any) -> Any:
    """What is equal for equal values, and can be looked up."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, tuple | list) else value


def place_of(chosen: Chosen, arm: Arm, key: str) -> str:
    """Where the file gives an arm this value."""
    arms, grid = chosen.get("arms"), chosen.get("grid")
    if grid and key in grid.value:
        index = next(i for i, v in enumerate(grid.value[key]) if v == arm.settings[key])
        return chosen.document.place((*grid.key, key, index))
    return chosen.place_under((*arms.key, _name_in_file(arm)) if arms else (), key)


def _name_in_file(arm: Arm) -> str:
    """The name below `arms:` of an arm whose own name may have grid values after it."""
    return arm.name.split(",")[0]


def _grid_arm(key: str, name: str, value: Any) -> Arm:
    text = value_text(value)
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)
    label = SYMBOLS.get(key, name.replace("_", " "))
    return Arm(f"{name}={safe}", f"{label} = {text}", {key: value})


def symbol(key: str) -> str:
    """How figures name a setting."""
    return SYMBOLS.get(key, key.rpartition(".")[2].replace("_", " "))


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
