"""Which seeds a sweep has: how many, which, or looks at more and more until every arm is decided.

    seeds: {looks: [5, 8, 12, 16, 24, 32], until: decided, budget: {core_hours: 2}}

What is decided at a look is said by `harness.planning.standing`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, ValidationError

from harness.study.profiles import Chosen, Given
from harness.study.spec import Budget
from harness.study.sweepfile import MOST_RUNS
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import Section
from mixgrpo.settings.yamlfile import Key
from mixgrpo.text.suggest import did_you_mean

LEAST = 3
"""Seeds of the first look: with fewer, nothing is ever concluded."""

Hours = Annotated[float, Field(gt=0)]


class BudgetKeys(Section):
    """What ends a sweep before its last look; one of the two."""

    core_hours: Hours | None = None
    gpu_hours: Hours | None = None


class LooksKeys(Section):
    """Seeds until it is decided."""

    until: Literal["decided"]
    looks: tuple[StrictInt, ...] | None = None
    """Numbers of seeds, growing."""
    budget: BudgetKeys | None = None


@dataclass(frozen=True)
class Seeds:
    """The seeds of a sweep, up to those of the last look."""

    seeds: tuple[int, ...]
    looks: tuple[int, ...] = ()
    """How many of them each look has; empty for fixed seeds."""
    budget: Budget | None = None


def seeds_of(chosen: Chosen, until_decided: bool = False) -> Seeds:
    """What `seeds:` says. With `until_decided` a number or a list of seeds gets the usual looks,
    beginning with the seeds given. ConfigError with the key and what to write instead."""
    given = chosen.get("seeds")
    if given is None:
        raise ConfigError(
            f"{chosen.document.file}: seeds: this key is missing; give their number, such as 5"
        )
    if isinstance(given.value, dict):
        return _with_looks(chosen, given)
    seeds = _fixed(chosen, given)
    if not until_decided:
        return Seeds(seeds)
    looks = _usual_looks()
    if len(seeds) > looks[-1]:
        looks = (*looks, len(seeds))
    # Seeds of a search's confirmation are fresh ones: those after them are as well.
    more = range(max(seeds) + 1, max(seeds) + 1 + looks[-1] - min(len(seeds), looks[-1]))
    if more.stop > 2**31:
        raise chosen.error(given.key, f"--until-decided: no seeds follow {max(seeds)}")
    return Seeds((*seeds, *more)[: looks[-1]], looks)


def _fixed(chosen: Chosen, given: Given) -> tuple[int, ...]:
    count = given.value if isinstance(given.value, int) else len(given.value)
    _check_count(chosen, given.key, count)
    if isinstance(given.value, int):
        return tuple(range(count))
    seeds: tuple[int, ...] = given.value
    if not seeds:
        raise chosen.error(given.key, "is empty; give a count such as 5, or a list of seeds")
    first: dict[int, int] = {}
    for i, seed in enumerate(seeds):
        if first.setdefault(seed, i) < i:
            raise chosen.error((*given.key, i), f"the seed {seed} is given twice; keep one")
    return seeds


def _check_count(chosen: Chosen, key: Key, count: int) -> None:
    if count > MOST_RUNS:
        raise chosen.error(key, f"{count:,} seeds are more than {MOST_RUNS:,}; give fewer")


def _with_looks(chosen: Chosen, given: Given) -> Seeds:
    try:
        keys = LooksKeys.model_validate(given.value)
    except ValidationError as error:
        raise _wrong_key(chosen, given.key, error) from None
    key: Key = (*given.key, "looks")
    looks = _usual_looks() if keys.looks is None else keys.looks
    if len(looks) < 2:
        fixed = f", or a fixed number, seeds: {looks[0]}" if looks else ""
        raise chosen.error(key, f"give two looks or more, such as [5, 8, 12]{fixed}")
    if looks[0] < LEAST:
        raise chosen.error(key, f"a look needs {LEAST} seeds or more, not {looks[0]}")
    for before, after in pairwise(looks):
        if after <= before:
            raise chosen.error(key, f"looks grow; {after} does not come after {before}")
    _check_count(chosen, key, looks[-1])
    return Seeds(tuple(range(looks[-1])), looks, _budget(chosen, given.key, keys.budget))


def _budget(chosen: Chosen, key: Key, keys: BudgetKeys | None) -> Budget | None:
    if keys is None:
        return None
    if (keys.core_hours is None) == (keys.gpu_hours is None):
        raise chosen.error((*key, "budget"), "give either core_hours or gpu_hours, with a number")
    if keys.core_hours is not None:
        return Budget(keys.core_hours, "core")
    assert keys.gpu_hours is not None
    return Budget(keys.gpu_hours, "GPU")


def _usual_looks() -> tuple[int, ...]:
    from harness.evidence.sequential import LOOKS  # it brings scipy

    return LOOKS


def _wrong_key(chosen: Chosen, key: Key, error: ValidationError) -> ConfigError:
    """The first mistake below `seeds:`."""
    first = error.errors()[0]
    here = (*key, *first["loc"])
    while here not in chosen.document.lines and len(here) > len(key):
        here = here[:-1]
    name, given = str(first["loc"][-1]), first["input"]
    known: Any = BudgetKeys if "budget" in first["loc"][:-1] else LooksKeys
    if first["type"] == "extra_forbidden":
        return chosen.error(here, f"unknown key{did_you_mean(name, known.model_fields)}")
    if name == "until":
        said = "is missing" if first["type"] == "missing" else f"{given!r} is not known"
        return chosen.error(here, f"until: {said}; write until: decided")
    if "looks" in first["loc"]:
        return chosen.error(here, "give whole numbers of seeds, such as [5, 8, 12]")
    return chosen.error(
        here, f"give a number of hours above 0, such as budget: {{core_hours: 2}}, not {given!r}"
    )
