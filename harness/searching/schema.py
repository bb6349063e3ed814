"""What a search file may say, key by key; an error names line, key and mend."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from harness.advice import command
from harness.searching.space import Settings
from harness.sweepfile import (
    MOST_RUNS,
    Seeds,
    error_at,
    explain_all,
    is_no_name,
    keys_of_parts,
    missing_key,
    no_name,
    of_runs,
    unknown_key,
    wrong_settings,
)
from mixgrpo.config import Name, Section
from mixgrpo.configfile import as_tuples
from mixgrpo.errors import ConfigError, Place, all_errors, shown
from mixgrpo.suggest import RANGE, SEARCH
from mixgrpo.yamlfile import Document, Key, read_yaml

Choice = StrictBool | StrictInt | float | str

Objective = Literal["reward", "seconds", "evaluations"]


def check_choices(choices: tuple[Any, ...]) -> None:
    """ValueError for choices that leave nothing to search."""
    for index, one in enumerate(choices):
        if one in choices[:index]:
            raise ValueError(f"the choice {shown(one)} is given twice; keep one")
    if len(choices) == 1:
        raise ValueError(
            f"has one choice, {shown(choices[0])}, so there is nothing to search; add another, or "
            "write it below `set:`"
        )


class RangeText(Section):
    """One range as the file has it."""

    low: StrictInt | float | None = None
    high: StrictInt | float | None = None
    step: StrictInt | float | None = None
    log: bool = False
    choices: tuple[Choice, ...] | None = Field(None, min_length=1)
    unless: dict[str, Choice | tuple[Choice, ...]] = Field(default={})
    """The setting is not asked for where these others have one of these values."""

    @model_validator(mode="after")
    def _one_way(self) -> "RangeText":
        bounds = (self.low, self.high)
        if self.choices is not None:
            if any(bound is not None for bound in (*bounds, self.step)) or self.log:
                raise ValueError("choices stand alone; leave low, high, step and log out")
            check_choices(self.choices)
        elif self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        elif self.low > self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
        elif self.low == self.high:
            raise ValueError(
                f"low and high are both {self.low}, so there is nothing to search; low must be "
                "less than high, or write the value below `set:`"
            )
        elif self.step is not None and (self.step <= 0 or self.log):
            raise ValueError("step must be above 0, and cannot go with log")
        elif self.step is not None and self._misses_high():
            raise ValueError(f"steps of {self.step} from {self.low} do not reach high {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    def _misses_high(self) -> bool:
        low, high, step = self.low or 0, self.high or 0, self.step or 1
        steps = (high - low) / step
        return not math.isclose(steps, round(steps), abs_tol=1e-9)


class Budget(Section):
    """What one run may take at most."""

    evaluations: Annotated[StrictInt, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if (self.evaluations is None) == (self.seconds is None):
            raise ValueError("give either evaluations or seconds")
        return self


class Prune(Section):
    """When a trial is given up."""

    p: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Over seeds: the p of Wilcoxon's signed-rank test below which it counts as worse. Two pairs
    cannot give less than 0.25, three not less than 0.125."""
    percentile: Annotated[float, Field(ge=0, le=100)] = 50.0
    """Along the curve: a run goes on while its best evaluation is among this share of the others'
    at the same iteration; 50 is the median."""
    warmup: Annotated[int, Field(ge=0)] = 30
    """Iterations before which no run is given up."""
    startup: Annotated[int, Field(ge=1)] = 5
    """Other runs that must have got so far."""


class Confirm(Section):
    """The sweep that tests the best settings."""

    best: Annotated[int, Field(ge=1, le=1000)] = 3
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 8
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000


class Part(Section):
    """What the file may say at the top and in a profile."""

    base: str | None = None
    """A run configuration, as a path relative to this file."""
    set: Settings | None = None
    """Settings of all trials; a profile's lie on top of the file's."""
    space: dict[str, RangeText | tuple[Choice, ...]] | None = None
    """Ranges by dotted key; a list is one of choices. A profile's replace the file's by key."""
    objectives: tuple[Objective, ...] | None = Field(None, min_length=1)
    budget: Budget | None = None
    measure: Name | None = None
    trials: Annotated[int, Field(ge=1, le=MOST_RUNS)] | None = None
    """How many settings are tried in all."""
    seeds: Seeds | None = None
    parallel: Annotated[int, Field(ge=1)] | None = None
    """Trials at once."""
    enqueue: tuple[Settings, ...] | None = None
    """Settings that are tried first and never given up. The first of them is the reference."""
    prune: Prune | None = None
    confirm: Confirm | None = None
    sampler_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    notes: str | None = None
    slurm: Settings | None = None


class SearchFile(Part):
    name: Name
    question: Annotated[str, Field(min_length=1)]
    profiles: dict[Name, Part] = Field(default={})


def read_search_file(path: Path) -> tuple[Document, SearchFile]:
    """The file, and what it says, checked key by key. ConfigError, with every mistake that can be
    seen at once."""
    place = Place(str(path))
    if path.is_dir():
        raise ConfigError("is a folder; name the search file", place=place)
    document = read_yaml(path)
    keys = keys_of_parts(document)
    if "space" not in keys and keys & {"grid", "arms"}:
        raise ConfigError(
            f"is a sweep file; run it with {command('harness.sweep', path)}", place=place
        )
    try:
        return document, SearchFile.model_validate(as_tuples(document.data))
    except ValidationError as error:
        found = explain_all(document, error, _explain, {**SEARCH, **SearchFile.model_fields})
    raise all_errors([*found, *wrong_settings(document, SearchFile, "search")])


_PARTS: dict[str, type[Section]] = {"budget": Budget, "prune": Prune, "confirm": Confirm}


def _explain(document: Document, key: Key, error: ErrorDetails) -> ConfigError:
    kind, given = error["type"], shown(error["input"])
    if kind == "extra_forbidden":
        return _unknown_key(document, key)
    if kind == "missing":
        return missing_key(document, key, error, "search")
    if kind == "value_error":
        message = str(error["ctx"]["error"])
    elif is_no_name(kind, key) and "measure" not in key:
        message = no_name(given)
    elif "seeds" in key and "confirm" not in key:
        message = (
            f"{given} is not a seed; give a count of at least 1, or a list of whole numbers from "
            "0, such as [0, 1, 2]"
        )
    elif kind in ("dict_type", "model_type"):
        message = f"expected keys with values, not {given}"
        if "space" in key:
            message = f"expected {{low: 1, high: 8}} or a list of choices, not {given}"
    elif kind == "too_short":
        message = "is empty; give at least one value"
    elif kind == "literal_error":
        message = f"{given} is none of {error['ctx']['expected']}"
    elif kind == "tuple_type":
        message = f"expected a list, such as [1, 2], not {given}"
    else:
        message = f"{error['msg'].replace('Input should be', 'expected')}, not {given}"
    return error_at(document, key, message)


def _unknown_key(document: Document, key: Key) -> ConfigError:
    inner = [str(part) for part in key[:-1] if part in _PARTS]
    if inner:
        return unknown_key(document, key, _PARTS[inner[-1]].model_fields, {})
    if "space" in key:
        return unknown_key(document, key, RangeText.model_fields, RANGE)
    known = Part.model_fields if "profiles" in key else SearchFile.model_fields
    return unknown_key(document, key, known, SEARCH, of_runs(str(key[-1]), {*known, *SEARCH}))
