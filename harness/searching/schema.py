"""What a search file may say, key by key; an error names line, key and mend."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from harness.searching.space import Asked, Range, Settings, asked_keys, settings_in_order
from harness.study.sweepfile import (
    MOST_RUNS,
    Seeds,
    check_setting,
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
from harness.text import command
from mixgrpo.errors import ConfigError, ErrorList, Place, all_errors, shown
from mixgrpo.files.regular import is_folder
from mixgrpo.settings.config import Name, Section
from mixgrpo.settings.configfile import as_tuples, check_value, is_section
from mixgrpo.settings.yamlfile import Document, Key, read_yaml
from mixgrpo.text.suggest import RANGE, SEARCH, did_you_mean

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
    if is_folder(path):  # a name may be too long, which is said when it is read
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


def flat(
    document: Document, settings: Mapping[str, Any], place: Key, prefix: str = ""
) -> dict[str, tuple[Any, Key]]:
    """Settings, nested or dotted, by dotted key, each with its key in the file."""
    found: dict[str, tuple[Any, Key]] = {}
    errors = ErrorList()
    for name, value in settings.items():
        dotted, here = f"{prefix}{name}", (*place, name)
        with errors.collected():
            if is_section(dotted) and isinstance(value, dict):
                inner = flat(document, value, here, f"{dotted}.")
            else:
                check_setting(document, dotted, here, SearchFile, "search")
                inner = {dotted: (value, here)}
            for key in inner.keys() & found.keys():
                raise error_at(document, here, f"{key} is given twice; keep one")
            found |= inner
    errors.raise_all()
    return found


def read_space(document: Document, parts: Sequence[tuple[Part, Key]]) -> tuple[Range, ...]:
    """The ranges, each after those that it depends on. ConfigError, with every mistake, for what
    cannot be searched."""
    given: dict[str, tuple[Any, Key]] = {}
    errors = ErrorList()
    for part, prefix in parts:
        for key, value in (part.space or {}).items():
            place = (*prefix, "space", key)
            with errors.collected():
                check_setting(document, key, place, SearchFile, "search")
                given[key] = (value, place)
    found = []
    for key, (value, place) in given.items():
        with errors.collected():
            found.append(_range(document, key, value, place, given))
    errors.raise_all()
    if not given:
        raise error_at(
            document,
            ("space",),
            "is empty; give ranges by key, such as {window.size: {low: 1, high: 8}}",
        )
    ordered = settings_in_order(found)
    if ordered is None:
        raise error_at(
            document, ("space",), "settings wait for each other by `unless`; break the circle"
        )
    by_key = {one.key: one for one in found}
    for one in found:
        for other, values in one.unless:
            known = by_key[other]
            for value in values:
                if not (value in known.choices if known.choices else known.has(value)):
                    at = ("space", one.key, "unless", other)
                    message = f"{shown(value)} is not in the range of {other}, {known.text}"
                    raise error_at(document, at, message)
    return ordered


def _range(document: Document, key: str, value: Any, place: Key, given: Mapping[str, Any]) -> Range:
    text = value
    if not isinstance(value, RangeText):
        if not value:
            raise error_at(document, place, "is empty; give at least two values")
        try:
            check_choices(value)
        except ValueError as error:
            raise error_at(document, place, str(error)) from None
        text = RangeText(choices=value)
    for other in text.unless:
        if other not in given or other == key:
            hint = did_you_mean(other, [name for name in given if name != key])
            raise error_at(
                document,
                (*place, "unless", other),
                f"{other} is no other setting of the space{hint}",
            )
    unless = {
        other: values if isinstance(values, tuple) else (values,)
        for other, values in text.unless.items()
    }
    low, high, step = _bounds(document, key, text, place)
    found = Range(key, low, high, step, text.log, text.choices, tuple(unless.items()))
    if low is not None and found.tidy(low) == found.tidy(high):
        raise error_at(
            document,
            place,
            f"low {low} and high {high} are the same value in three digits; widen the range",
        )
    return found


def _bounds(
    document: Document, key: str, text: RangeText, place: Key
) -> tuple[float | None, float | None, float | None]:
    """low, high and step as the setting takes them: floats where it takes fractions. ConfigError,
    with every mistake, for a value that the setting never has."""
    errors = ErrorList()
    for word, values in (("low", (text.low,)), ("high", (text.high,)), ("choices", text.choices)):
        for value in values or ():
            if value is not None:
                with errors.collected():
                    _check_value(document, key, value, place, word)
    errors.raise_all()
    if text.low is None or text.high is None:
        return None, None, None
    whole = isinstance(text.low, int) and isinstance(text.high, int)
    if whole and _takes(key, text.low + 0.5):  # 1 to 3 of a setting that may be 1.5
        step = None if text.step is None else float(text.step)
        return float(text.low), float(text.high), step
    if whole and isinstance(text.step, float):
        raise error_at(
            document,
            (*place, "step"),
            f"{key} takes whole numbers, and {text.step} is none; write a whole step",
        )
    return text.low, text.high, text.step


def _check_value(document: Document, key: str, value: Any, place: Key, word: str) -> None:
    line = document.place((*place, word))
    try:
        check_value(key, value, line)
    except ConfigError as error:
        fix = ""
        if isinstance(value, float) and value.is_integer() and _takes(key, int(value)):
            fix = f"write {int(value)}"
        name = word if word != "choices" else "choice"
        raise ConfigError(
            f"{name} {shown(value)}: {error.message}", place=line, key=key, fix=fix
        ) from None


def _takes(key: str, value: Any) -> bool:
    """Whether a setting may have a value."""
    try:
        check_value(key, value, Place("search"))
    except ConfigError:
        return False
    return True


def read_enqueued(document: Document, given: Settings, key: Key, space: tuple[Range, ...]) -> Asked:
    """Settings of the file as those of a trial. ConfigError unless they are in the space."""
    given_values = flat(document, given, key)
    by_key = {one.key: one for one in space}

    def wrong(at: Key, message: str) -> ConfigError:
        return ConfigError(message, place=document.place(at), key="enqueue")

    for name, (value, at) in given_values.items():
        if name not in by_key:
            raise wrong(at, f"{name} is not in the space{did_you_mean(name, by_key)}")
        if not by_key[name].has(value):
            text = by_key[name].text
            raise wrong(at, f"{name}: {shown(value)} is not in its range, {text}")
    values = {name: value for name, (value, _) in given_values.items()}
    asked = asked_keys(space, values)
    for name in asked:
        if name not in values:
            raise wrong(key, f"{name} is missing; give it a value")
    for name in values:
        if name not in asked:
            raise wrong(
                key, f"{name} is not asked for beside the other values (unless); leave it out"
            )
    return {one.key: one.tidy(values[one.key]) for one in space if one.key in asked}
