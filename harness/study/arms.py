"""The arms of a sweep file: the product of its grid, its named alternatives, or both."""

import hashlib
import itertools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.study.mistakes import wrong_word_of_arm
from harness.study.profiles import Chosen, Given
from mixgrpo.errors import ConfigError, ErrorList, Place, shown
from mixgrpo.settings.yamlfile import Key

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


def make_arms(chosen: Chosen, most: int) -> list[Arm]:
    """The arms in the order of the file. ConfigError for none, or for more than `most`."""
    grid, arms = chosen.get("grid"), chosen.get("arms")
    if grid is None and arms is None:
        raise ConfigError(
            f"{chosen.document.file}: neither grid nor arms: nothing to compare; give "
            "`grid: {window.interval: [15, 25]}` or `arms:`"
        )
    _check_number(chosen, grid, arms, most)
    # For a missing one, a single arm without name and settings takes part in the product.
    named, points = [Arm("", "", {})], [Arm("", "", {})]
    errors = ErrorList()
    with errors.collected():
        named = _named_arms(chosen, arms) if arms else named
    with errors.collected():
        points = _grid_points(chosen, grid) if grid else points
    errors.raise_all()
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
                "that figures cannot distinguish them; give one another `label:`",
            )
        names.add(arm.name.lower())
        labels[arm.label] = arm.name
    return product


def _check_number(chosen: Chosen, grid: Given | None, arms: Given | None, most: int) -> None:
    """Before any arm is made."""
    count = math.prod(len(values) for values in grid.value.values()) if grid else 1
    count *= len(arms.value) if arms else 1
    if count > most:
        raise chosen.error(
            (grid or arms).key,  # type: ignore[union-attr]
            f"makes {count:,} arms, and with this many seeds at most {most:,} are allowed; give "
            "fewer values or seeds",
        )


def _named_arms(chosen: Chosen, arms: Given) -> list[Arm]:
    if not arms.value:
        raise chosen.error(arms.key, "is empty: nothing to compare; add an arm")
    named = []
    errors = ErrorList()
    for name, given in arms.value.items():
        with errors.collected():
            named.append(_named_arm(chosen, arms, name, dict(given or {})))
    errors.raise_all()
    return named


def _named_arm(chosen: Chosen, arms: Given, name: str, settings: dict[str, Any]) -> Arm:
    key = (*arms.key, name)
    has_base = "base" in settings
    base = settings.pop("base", None)
    if has_base and not isinstance(base, str):
        raise chosen.error(
            (*key, "base"), f"expected the path of a run configuration, not {base!r}"
        )
    settings.pop("slurm", None)  # read by harness.launching.resources
    label = settings.pop("label", Path(base).stem if has_base and not settings else name)
    if not isinstance(label, str) or not label.strip():
        raise chosen.error((*key, "label"), f"expected text, not {label!r}")
    _check_words(chosen, settings, key)
    return Arm(name, label, chosen.flat(settings, key), base)


def _check_words(chosen: Chosen, settings: dict[str, Any], key: Key) -> None:
    """ConfigError for a misspelt key of an arm; settings are not checked here."""
    for word in settings:
        wrong = wrong_word_of_arm(word)
        if wrong:
            raise chosen.error((*key, word), wrong)


def base_of(chosen: Chosen, arm: Arm) -> Given | None:
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
    errors = ErrorList()
    for key, values in grid.value.items():
        with errors.collected():
            last = key.rsplit(".", 1)[-1]
            axes.append(_axis(chosen, grid, key, last if short.count(last) == 1 else key, values))
    errors.raise_all()
    return [
        Arm(
            ",".join(p.name for p in point),
            JOINT.join(p.label for p in point),
            {k: v for p in point for k, v in p.settings.items()},
        )
        for point in itertools.product(*axes)
    ]


def _axis(chosen: Chosen, grid: Given, key: str, name: str, values: tuple[Any, ...]) -> list[Arm]:
    grid_key = (*grid.key, key)
    chosen.check_setting(key, grid_key)
    if not values:
        raise chosen.error(grid_key, "has no values; give a list such as [1, 2]")
    axis = [_grid_arm(key, name, value) for value in values]
    first: dict[Any, int] = {}
    for j, value in enumerate(values):
        i = first.setdefault(_hashable(value), j)
        if i < j:
            raise chosen.error(
                (*grid_key, j),
                f"{shown(value)} is given twice: the arms {axis[i].name} and {axis[j].name} are "
                "the same configuration; keep one",
            )
    return _distinct(axis)


def _hashable(value: Any) -> Any:
    """A hashable value that is equal for equal values."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, tuple | list) else value


def place_of(chosen: Chosen, arm: Arm, key: str) -> Place:
    """Where the file gives an arm this value."""
    arms, grid = chosen.get("arms"), chosen.get("grid")
    if grid and key in grid.value:
        index = grid.value[key].index(arm.settings[key])  # by identity first: NaN equals nothing
        return chosen.document.place((*grid.key, key, index))
    return chosen.setting_place((*arms.key, _name_in_file(arm)) if arms else (), key)


def _name_in_file(arm: Arm) -> str:
    """The name below `arms:` of an arm, whose name may have grid values after it."""
    return arm.name.split(",")[0]


def _grid_arm(key: str, name: str, value: Any) -> Arm:
    label = SYMBOLS.get(key, name.replace("_", " "))
    return Arm(f"{name}={value_in_name(value)}", f"{label} = {value_text(value)}", {key: value})


def value_in_name(value: Any) -> str:
    """A setting's value as a part of a folder's name: only letters, digits and `_.+-`."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", value_text(value))


def _distinct(arms: list[Arm]) -> list[Arm]:
    """The arms of an axis under distinct names: where an earlier arm has the same name, in upper or
    lower case, a digest of the value is appended, as in `checkpoint=_a_b-1f03c2`."""
    taken: set[str] = set()
    distinct = []
    for arm in arms:
        name = arm.name
        if name.lower() in taken:
            name += f"-{hashlib.sha256(arm.label.encode()).hexdigest()[:6]}"
        taken.add(name.lower())
        distinct.append(replace(arm, name=name))
    return distinct


def symbol(key: str) -> str:
    """How figures name a setting."""
    return SYMBOLS.get(key, key.rpartition(".")[2].replace("_", " "))


def value_text(value: Any) -> str:
    """A setting's value in figures and tables: a reward of weight 1 is shown without its weight."""
    if isinstance(value, dict):
        return " + ".join(k if v == 1 else f"{value_text(v)} {k}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return " + ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def ways_to_name(arm: Arm) -> list[str]:
    """The names that `paper_rows` may use for an arm; the last is its default row."""
    if len(arm.settings) == 1 and "=" in arm.name:
        return [arm.name, value_text(next(iter(arm.settings.values())))]
    return [arm.name]
