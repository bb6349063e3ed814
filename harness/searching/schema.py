"""What a search file may say, key by key; an error names line, key and fix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, model_validator

from harness.searching.space import Asked, Range, Settings, settings, settings_in_order
from harness.study.mistakes import checked, misplaced_setting, unknown_key
from harness.study.profiles import FileParts, Given
from harness.study.sweepfile import MOST_RUNS, Seeds, keys_of_parts
from harness.text import command
from mixgrpo.errors import ConfigError, ErrorList, Place, shown
from mixgrpo.files.regular import is_folder
from mixgrpo.settings.config import Name, Section
from mixgrpo.settings.layers import check_value
from mixgrpo.settings.yamlfile import Document, Key, read_yaml
from mixgrpo.text.suggest import RANGE, SEARCH, did_you_mean

Choice = StrictBool | StrictInt | float | str

Objective = Literal["reward", "seconds", "evaluations"]


_MOST_STEPS = 1e9
"""Of a range."""


class RangeText(Section):
    """One range as the file has it; a list is one of choices."""

    low: StrictInt | float | None = None
    high: StrictInt | float | None = None
    step: StrictInt | float | None = None
    log: bool = False
    choices: tuple[Choice, ...] | None = Field(None, min_length=1)
    unless: dict[str, Choice | tuple[Choice, ...]] = Field(default={})
    """The setting is not asked for where these others have one of these values."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, tuple) else value

    @model_validator(mode="after")
    def _one_way(self) -> "RangeText":
        low, high, step = self.low, self.high, self.step
        if self.choices is not None:
            if any(part is not None for part in (low, high, step)) or self.log:
                raise ValueError("choices stand alone; leave low, high, step and log out")
            self._check_choices(self.choices)
        elif low is None or high is None:
            raise ValueError("give low and high, or choices")
        elif low > high:
            raise ValueError(f"low {low} must be less than high {high}")
        elif low == high:
            raise ValueError(
                f"low and high are both {low}, so there is nothing to search; low must be less "
                "than high, or write the value below `set:`"
            )
        elif step is not None and (step <= 0 or self.log):
            raise ValueError("step must be above 0, and cannot go with log")
        elif step and not (high - low) / step < _MOST_STEPS:
            raise ValueError(f"a step of {step} is too small for the range from {low} to {high}")
        elif step and abs((n := (high - low) / step) - round(n)) > 1e-9:
            raise ValueError(f"steps of {step} from {low} do not reach high {high}")
        elif self.log and low <= 0:
            raise ValueError("log needs a low above 0")
        return self

    @staticmethod
    def _check_choices(choices: tuple[Any, ...]) -> None:
        for index, one in enumerate(choices):
            if one in choices[:index]:
                raise ValueError(f"the choice {shown(one)} is given twice; keep one")
        if len(choices) == 1:
            raise ValueError(
                f"has one choice, {shown(choices[0])}, so there is nothing to search; add another, "
                "or write it below `set:`"
            )


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
    space: dict[str, RangeText] | None = None
    """Ranges by dotted key. A profile's replace the file's by key."""
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
    return document, checked(document, SearchFile, "search", SEARCH, _unknown_key)


_PARTS: dict[str, type[Section]] = {"budget": Budget, "prune": Prune, "confirm": Confirm}


def _unknown_key(document: Document, key: Key) -> ConfigError:
    inner = [str(part) for part in key[:-1] if part in _PARTS]
    if inner:
        return unknown_key(document, key, _PARTS[inner[-1]].model_fields, {})
    if "space" in key:
        return unknown_key(document, key, RangeText.model_fields, RANGE)
    known = Part.model_fields if "profiles" in key else SearchFile.model_fields
    return unknown_key(
        document, key, known, SEARCH, misplaced_setting(str(key[-1]), {*known, *SEARCH})
    )


def read_space(file: FileParts) -> tuple[Range, ...]:
    """The ranges, each after those that it depends on. ConfigError, with every mistake, for what
    cannot be searched."""
    given: dict[str, Given] = {}
    errors = ErrorList()
    for part, prefix in file.parts:
        for key, value in (part.space or {}).items():
            with errors.collected():
                file.check_setting(key, (*prefix, "space", key))
                given[key] = Given(value, (*prefix, "space", key))
    space = []
    for key in given:
        with errors.collected():
            space.append(_range(file, key, given))
    errors.raise_all()
    if not given:
        raise file.error(
            ("space",), "is empty; give ranges by key, such as {window.size: {low: 1, high: 8}}"
        )
    ordered = settings_in_order(space)
    if ordered is None:
        raise file.error(("space",), "settings wait for each other by `unless`; break the circle")
    by_key = {one.key: one for one in space}
    for one in space:
        for other, values in one.unless:
            known = by_key[other]
            for value in values:
                if not (value in known.choices if known.choices else known.has(value)):
                    message = f"{shown(value)} is not in the range of {other}, {known.text}"
                    raise file.error(("space", one.key, "unless", other), message)
    return ordered


def _range(file: FileParts, key: str, given: Mapping[str, Given]) -> Range:
    text, at = given[key].value, given[key].key
    for other in text.unless:
        if other not in given or other == key:
            hint = did_you_mean(other, [name for name in given if name != key])
            message = f"{other} is no other setting of the space{hint}"
            raise file.error((*at, "unless", other), message)
    unless = tuple(
        (other, values if isinstance(values, tuple) else (values,))
        for other, values in text.unless.items()
    )
    low, high, step = _bounds(file, key, text, at)
    made = Range(key, low, high, step, text.log, text.choices, unless)
    if low is not None and made.tidy(low) == made.tidy(high):
        message = f"low {low} and high {high} are the same value in three digits; widen the range"
        raise file.error(at, message)
    return made


def _bounds(
    file: FileParts, key: str, text: RangeText, at: Key
) -> tuple[float | None, float | None, float | None]:
    """low, high and step as the setting takes them: floats where it takes fractions. ConfigError,
    with every mistake, for a value that the setting never has."""
    errors = ErrorList()
    for word, values in (("low", (text.low,)), ("high", (text.high,)), ("choices", text.choices)):
        for value in values or ():
            if value is not None:
                with errors.collected():
                    _check_value(key, value, file.document.place((*at, word)), word)
    errors.raise_all()
    if text.low is None or text.high is None:
        return None, None, None
    whole = isinstance(text.low, int) and isinstance(text.high, int)
    if whole and _takes(key, text.low + 0.5):  # 1 to 3 of a setting that may be 1.5
        step = None if text.step is None else float(text.step)
        return float(text.low), float(text.high), step
    if whole and isinstance(text.step, float):
        message = f"{key} takes whole numbers, and {text.step} is none; write a whole step"
        raise file.error((*at, "step"), message)
    return text.low, text.high, text.step


def _check_value(key: str, value: Any, line: Place, word: str) -> None:
    try:
        check_value(key, value, line)
    except ConfigError as error:
        fix = ""
        if isinstance(value, float) and value.is_integer() and _takes(key, int(value)):
            fix = f"write {int(value)}"
        message = f"{word.replace('choices', 'choice')} {shown(value)}: {error.message}"
        raise ConfigError(message, place=line, key=key, fix=fix) from None


def _takes(key: str, value: Any) -> bool:
    """Whether a setting may have a value."""
    try:
        check_value(key, value, Place("search"))
    except ConfigError:
        return False
    return True


def read_enqueued(file: FileParts, given: Settings, key: Key, space: tuple[Range, ...]) -> Asked:
    """Settings of the file as those of a trial. ConfigError unless they are in the space."""
    values = file.flat(given, key)
    by_key = {one.key: one for one in space}

    def wrong(message: str, line: Place | None = None) -> ConfigError:
        return ConfigError(message, place=line or file.document.place(key), key="enqueue")

    for name, value in values.items():
        line = file.setting_place(key, name)
        if name not in by_key:
            raise wrong(f"{name} is not in the space{did_you_mean(name, by_key)}", line)
        if not by_key[name].has(value):
            text = by_key[name].text
            raise wrong(f"{name}: {shown(value)} is not in its range, {text}", line)
    try:
        asked = settings(space, lambda one: values[one.key])
    except KeyError as missing:
        raise wrong(f"{missing.args[0]} is missing; give it a value") from None
    for name in values:
        if name not in asked:
            raise wrong(f"{name} is not asked for with the other values (unless); leave it out")
    return asked
