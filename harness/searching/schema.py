"""What a search file may say, key by key; an error names line, key and mend."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictInt, ValidationError, model_validator

from harness.searching.space import Settings
from harness.sweepfile import Scalar, Seeds, did_you_mean, file_key, keys_of_parts
from mixgrpo.config import Name, RunConfig, Section
from mixgrpo.configfile import Document, as_tuples, read_yaml
from mixgrpo.errors import ConfigError

Objective = Literal["reward", "seconds", "evaluations"]


class RangeText(Section):
    """One range as the file has it."""

    low: StrictInt | float | None = None
    high: StrictInt | float | None = None
    step: StrictInt | float | None = None
    log: bool = False
    choices: tuple[Scalar, ...] | None = Field(None, min_length=1)
    unless: dict[str, Scalar | tuple[Scalar, ...]] = Field(default={})
    """The setting is not asked for where these others have one of these values."""

    @model_validator(mode="after")
    def _one_way(self) -> "RangeText":
        bounds = (self.low, self.high)
        if self.choices is not None:
            if any(bound is not None for bound in (*bounds, self.step)) or self.log:
                raise ValueError("choices stand alone; leave low, high, step and log out")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError("choices has a value twice; keep one")
        elif self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low {self.low} must be less than high {self.high}")
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

    best: Annotated[int, Field(ge=1)] = 3
    seeds: Annotated[int, Field(ge=1)] = 8
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000


class Part(Section):
    """What the file may say at the top and in a profile."""

    base: str | None = None
    """A run configuration, as a path relative to this file."""
    set: Settings | None = None
    """Settings of all trials; a profile's lie on top of the file's."""
    space: dict[str, RangeText | tuple[Scalar, ...]] | None = None
    """Ranges by dotted key; a list is one of choices. A profile's replace the file's by key."""
    objectives: tuple[Objective, ...] | None = Field(None, min_length=1)
    budget: Budget | None = None
    measure: Name | None = None
    trials: Annotated[int, Field(ge=1)] | None = None
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
    """The file, and what it says, checked key by key. ConfigError names line, key and mend."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the search file")
    document = read_yaml(path)
    keys = keys_of_parts(document)
    if "space" not in keys and keys & {"grid", "arms"}:
        raise ConfigError(f"{path}: is a sweep file; run it with python -m harness.sweep")
    try:
        return document, SearchFile.model_validate(as_tuples(document.data))
    except ValidationError as error:
        raise ConfigError(_explain(document, error)) from None


_PARTS: dict[str, type[Section]] = {"budget": Budget, "prune": Prune, "confirm": Confirm}


def _explain(document: Document, error: ValidationError) -> str:
    # A union reports each of its members: the error deepest in the file is the one that was meant.
    first = max(error.errors(), key=lambda e: len(file_key(document, e["loc"])))
    key = file_key(document, first["loc"])
    dotted, kind, given = ".".join(map(str, key)), first["type"], first["input"]
    place = document.place(key)
    if kind == "extra_forbidden":
        inner = [part for part in key[:-1] if part in _PARTS]
        known: type[Section] = Part if "profiles" in key else SearchFile
        if inner:
            known = _PARTS[str(inner[-1])]
        elif "space" in key:
            known = RangeText
        elif key[-1] in RunConfig.model_fields:
            return f"{place}: {dotted}: is a setting of the runs; write it below `set:`"
        return f"{place}: {dotted}: unknown key{did_you_mean(str(key[-1]), known.model_fields)}"
    if kind == "missing":
        missing = first["loc"][-1]
        return f"{place}: {missing}: this key is missing; every search has a {missing}"
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{place}: {dotted}: {message}"
    if kind in ("dict_type", "model_type"):
        return f"{place}: {dotted}: expected keys with values, not {given!r}"
    if kind == "too_short":
        return f"{place}: {dotted}: is empty; give at least one value"
    if kind == "literal_error":
        return f"{place}: {dotted}: {given!r} is none of {first['ctx']['expected']}"
    if kind == "tuple_type":
        return f"{place}: {dotted}: expected a list, such as [1, 2], not {given!r}"
    return f"{place}: {dotted}: {message}, not {given!r}"
