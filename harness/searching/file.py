"""A search file -> a validated search, with errors that name line, key and mend.

Knows nothing of what has run, and imports no Optuna.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, ValidationError, model_validator

from harness.searching.space import Asked, Range, Settings, asked_keys, settings_in_order
from harness.sweepfile import DEFAULT_PROFILE, Scalar, Seeds, did_you_mean
from mixgrpo.config import Name, RunConfig, Section
from mixgrpo.configfile import (
    Document,
    Key,
    Layers,
    add_overrides,
    as_tuples,
    check_key,
    known_keys,
    load_layers,
    read_yaml,
)
from mixgrpo.errors import ConfigError
from mixgrpo.identity import config_hash

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


@dataclass(frozen=True)
class Search:
    """What a search file says, with one profile chosen."""

    name: str
    question: str
    file: Path
    profile: str
    variant: str
    """What tells this search from the file's default one: its profile, its overrides."""
    overrides: tuple[str, ...]
    base: Path | None
    layers: Layers
    """What all trials stand on."""
    shared: Settings
    """The part of it that lies on top of `base`, by dotted key."""
    space: tuple[Range, ...]
    objectives: tuple[Objective, ...]
    budget: Budget | None
    measure: str
    trials: int
    seeds: tuple[int, ...]
    parallel: int
    enqueue: tuple[Asked, ...]
    prune: Prune
    confirm: Confirm
    sampler_seed: int
    notes: str
    slurm: tuple[tuple[Settings, Key], ...]
    """What jobs ask of Slurm, with where that stands in the file."""
    document: Document

    @property
    def report_name(self) -> str:
        return self.name + self.variant

    @property
    def confirm_name(self) -> str:
        return f"{self.report_name}-confirm"

    def config(self, asked: Asked) -> RunConfig:
        """The run of these settings, with the first seed. ConfigError where it cannot be run."""
        layers = self.layers.copy()
        for key, value in asked.items():
            layers.set(key, value, "search")
        return layers.validate(self.seeds[0])

    @property
    def identity(self) -> str:
        """Changes when trials would no longer be comparable with those before."""
        what = {
            "space": [repr(one) for one in self.space],
            "objectives": self.objectives,
            "budget": self.budget.model_dump() if self.budget else None,
            "measure": self.measure,
            "seeds": self.seeds,
            "base": config_hash(self.layers.validate(self.seeds[0])),
        }
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]


def load_search(path: Path, profile: str | None = None, overrides: Sequence[str] = ()) -> Search:
    """The search that a file describes. ConfigError names place, key and mend."""
    document, file = _read(path)
    chosen = _choose(document, file, profile)
    parts: list[tuple[Part, Key]] = [(file, ())]
    if chosen:
        parts.append((file.profiles[chosen], ("profiles", chosen)))

    def get(field: str, default: Any = None) -> tuple[Any, Key]:
        for part, prefix in reversed(parts):
            value = getattr(part, field)
            if value is not None:
                return value, (*prefix, field)
        return default, (field,)

    base, base_key = get("base")
    layers = _base_layers(document, base, base_key) if base else Layers()
    shared: Settings = {}
    for part, prefix in parts:
        for key, (value, at) in _flat(document, part.set or {}, (*prefix, "set")).items():
            layers.set(key, value, document.place(at))
            shared[key] = value
    space = _space(document, parts)
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key == "seed" or key in {one.key for one in space}:
            raise ConfigError(f"--set {text}: {key} is what the trials differ in; change the file")
    add_overrides(layers, list(overrides))
    seeds = _seeds(document, *get("seeds", 3))
    config = layers.validate(seeds[0])
    objectives, objectives_key = get("objectives", ("reward", "evaluations"))
    budget, budget_key = get("budget")
    _check_objectives(document, objectives, objectives_key, budget, budget_key)
    asked, enqueue_key = get("enqueue", ())
    enqueue = tuple(
        _enqueued(document, one, (*enqueue_key, i), space) for i, one in enumerate(asked)
    )
    usual = _choose(document, file, None)
    variant = f"-{chosen}" if chosen != usual else ""
    if overrides:
        variant += f"-set-{hashlib.sha256(repr(sorted(overrides)).encode()).hexdigest()[:6]}"
    search = Search(
        name=file.name,
        question=file.question,
        file=path,
        profile=chosen,
        variant=variant,
        overrides=tuple(overrides),
        base=path.parent / base if base else None,
        layers=layers,
        shared=shared,
        space=space,
        objectives=objectives,
        budget=budget,
        measure=_measure(document, config, *get("measure")),
        trials=_given(document, *get("trials")),
        seeds=seeds,
        parallel=get("parallel", 1)[0],
        enqueue=enqueue,
        prune=get("prune", Prune())[0],
        confirm=get("confirm", Confirm())[0],
        sampler_seed=get("sampler_seed", 0)[0],
        notes=(get("notes")[0] or "").strip(),
        slurm=tuple((part.slurm or {}, (*prefix, "slurm")) for part, prefix in parts),
        document=document,
    )
    _check_confirm(search)
    for i, settings in enumerate(enqueue):
        try:
            search.config(settings)
        except ConfigError as error:
            place = document.place((*enqueue_key, i))
            raise ConfigError(f"{place}: enqueue: {reason(error)}") from None
    return search


def reason(error: ConfigError) -> str:
    """What is wrong with a configuration, without the place, which a trial does not have."""
    return str(error).removeprefix("search: ").removeprefix("configuration: ")


def _read(path: Path) -> tuple[Document, SearchFile]:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the search file")
    document = read_yaml(path)
    profiles = document.data.get("profiles")
    parts = [document.data, *(profiles.values() if isinstance(profiles, dict) else [])]
    keys = {key for part in parts if isinstance(part, dict) for key in part}
    if "space" not in keys and keys & {"grid", "arms"}:
        raise ConfigError(f"{path}: is a sweep file; run it with python -m harness.sweep")
    try:
        return document, SearchFile.model_validate(as_tuples(document.data))
    except ValidationError as error:
        raise ConfigError(_explain(document, error)) from None


_PARTS: dict[str, type[Section]] = {"budget": Budget, "prune": Prune, "confirm": Confirm}


def _explain(document: Document, error: ValidationError) -> str:
    # A union reports each of its members: the error deepest in the file is the one that was meant.
    first = max(error.errors(), key=lambda e: len(_file_key(document, e["loc"])))
    key = _file_key(document, first["loc"])
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
    if kind == "tuple_type":
        return f"{place}: {dotted}: expected a list, such as [1, 2], not {given!r}"
    return f"{place}: {dotted}: {message}, not {given!r}"


def _file_key(document: Document, location: tuple[str | int, ...]) -> Key:
    """The part of pydantic's location that is in the file (unions add names of their own)."""
    key: Key = ()
    for part in location:
        if (*key, part) in document.lines:
            key = (*key, part)
    return key


def _choose(document: Document, file: SearchFile, profile: str | None) -> str:
    if profile is None:
        if not file.profiles:
            return ""
        return DEFAULT_PROFILE if DEFAULT_PROFILE in file.profiles else next(iter(file.profiles))
    if profile not in file.profiles:
        hint = did_you_mean(profile, file.profiles) if file.profiles else "; the file has none"
        raise ConfigError(f"{document.place(('profiles',))}: no such profile: {profile}{hint}")
    return profile


def _base_layers(document: Document, base: str, key: Key) -> Layers:
    path = Path(document.file).parent / base
    try:
        return load_layers(path)
    except ConfigError as error:
        if str(error).startswith(f"{path}: "):
            raise ConfigError(f"{document.place(key)}: base: {error}") from None
        raise


def _flat(
    document: Document, settings: Mapping[str, Any], place: Key, prefix: str = ""
) -> dict[str, tuple[Any, Key]]:
    """Settings, nested or dotted, by dotted key, each with its key in the file."""
    found: dict[str, tuple[Any, Key]] = {}
    for name, value in settings.items():
        dotted, here = f"{prefix}{name}", (*place, name)
        section = any(key.startswith(f"{dotted}.") for key in known_keys())
        if section and isinstance(value, dict):
            inner = _flat(document, value, here, f"{dotted}.")
        else:
            _check_setting(document, dotted, here)
            inner = {dotted: (value, here)}
        for key in inner.keys() & found.keys():
            raise ConfigError(f"{document.place(here)}: {key} is given twice; keep one")
        found |= inner
    return found


def _check_setting(document: Document, dotted: str, key: Key) -> None:
    check_key(dotted, document.place(key))
    if dotted == "seed":
        raise ConfigError(f"{document.place(key)}: seed: give `seeds:` of the search")


def _space(document: Document, parts: Sequence[tuple[Part, Key]]) -> tuple[Range, ...]:
    given: dict[str, tuple[Any, Key]] = {}
    for part, prefix in parts:
        for key, value in (part.space or {}).items():
            place = (*prefix, "space", key)
            _check_setting(document, key, place)
            given[key] = (value, place)
    if not given:
        raise ConfigError(
            f"{document.place(('space',))}: space: is empty; give ranges by key, such as "
            "{window.size: {low: 1, high: 8}}"
        )
    found = []
    for key, (value, place) in given.items():
        text = value if isinstance(value, RangeText) else RangeText(choices=value)
        for other in text.unless:
            if other not in given or other == key:
                hint = did_you_mean(other, [name for name in given if name != key])
                raise ConfigError(
                    f"{document.place((*place, 'unless', other))}: {key}: unless: {other} is no "
                    f"other setting of the space{hint}"
                )
        unless = {
            other: values if isinstance(values, tuple) else (values,)
            for other, values in text.unless.items()
        }
        found.append(
            Range(
                key, text.low, text.high, text.step, text.log, text.choices, tuple(unless.items())
            )
        )
    ordered = settings_in_order(found)
    if ordered is None:
        raise ConfigError(
            f"{document.place(('space',))}: space: settings wait for each other by `unless`; break "
            "the circle"
        )
    return ordered


def _enqueued(document: Document, given: Settings, key: Key, space: tuple[Range, ...]) -> Asked:
    """Settings of the file as those of a trial. ConfigError unless they are in the space."""
    flat = _flat(document, given, key)
    by_key = {one.key: one for one in space}
    for name, (value, at) in flat.items():
        if name not in by_key:
            hint = did_you_mean(name, by_key)
            raise ConfigError(f"{document.place(at)}: enqueue: {name} is not in the space{hint}")
        if not by_key[name].has(value):
            raise ConfigError(
                f"{document.place(at)}: enqueue: {name}: {value!r} is not in its range, "
                f"{by_key[name].text}"
            )
    values = {name: value for name, (value, _) in flat.items()}
    asked = asked_keys(space, values)
    for name in asked:
        if name not in values:
            raise ConfigError(f"{document.place(key)}: enqueue: {name} is missing; give it a value")
    for name in values:
        if name not in asked:
            raise ConfigError(
                f"{document.place(key)}: enqueue: {name} is not asked for beside the other values "
                "(unless); leave it out"
            )
    return {one.key: one.tidy(values[one.key]) for one in space if one.key in asked}


def _seeds(document: Document, given: Any, key: Key) -> tuple[int, ...]:
    if isinstance(given, int):
        return tuple(range(given))
    if not given or len(set(given)) < len(given):
        raise ConfigError(f"{document.place(key)}: seeds: give different seeds, or a count")
    return tuple(given)


def _given(document: Document, value: Any, key: Key) -> int:
    if value is None:
        raise ConfigError(f"{document.file}: trials: this key is missing; give a total, such as 24")
    return int(value)


def _measure(document: Document, config: RunConfig, given: str | None, key: Key) -> str:
    known = [*config.rewards.train, *config.rewards.held_out]
    if given is not None and given not in known:
        hint = did_you_mean(given, known)
        raise ConfigError(f"{document.place(key)}: measure: no such reward: {given}{hint}")
    return given or known[0]


def _check_objectives(
    document: Document, objectives: tuple[str, ...], key: Key, budget: Any, budget_key: Key
) -> None:
    place = document.place(key)
    if objectives[0] != "reward" or len(set(objectives)) < len(objectives) or len(objectives) > 2:
        raise ConfigError(
            f"{place}: objectives: give [reward], or reward and one cost, such as "
            "[reward, evaluations]"
        )
    if budget is not None and len(objectives) > 1:
        raise ConfigError(
            f"{document.place(budget_key)}: budget: bounds what [reward] alone may cost; take "
            "objectives: [reward], or leave budget out"
        )


def _check_confirm(search: Search) -> None:
    first, count = search.confirm.first_seed, search.confirm.seeds
    old = sorted(set(search.seeds) & set(range(first, first + count)))
    if old:
        raise ConfigError(
            f"{search.document.place(('confirm',))}: confirm: seed {old[0]} is one of the "
            "search's own; fresh seeds alone can confirm: raise first_seed"
        )
