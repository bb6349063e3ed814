"""A search file -> a validated search, with errors that name line, key and mend.

Knows nothing of what has run, and imports no Optuna.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.searching.schema import (
    Budget,
    Confirm,
    Objective,
    Part,
    Prune,
    flat,
    read_enqueued,
    read_search_file,
    read_space,
)
from harness.searching.space import Asked, Range, Settings
from harness.study.arms import value_in_name
from harness.study.names import check_name, shorten
from harness.study.sweepfile import MOST_RUNS, asked_of_slurm, choose_profile, error_at
from mixgrpo.errors import ConfigError, ErrorList, Place
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import Layers, add_overrides, load_layers
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.trust import MAY_NAME_CODE, check_jobs, is_own
from mixgrpo.settings.trust import check as check_trust
from mixgrpo.settings.yamlfile import Document, Key
from mixgrpo.text.suggest import did_you_mean

SEARCHED = Place("search")
"""Of what a trial was given."""


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
        return f"{shorten(self.report_name, 64 - len('-confirm'))}-confirm"  # a Name's length

    def config(self, asked: Asked) -> RunConfig:
        """The run of these settings, with the first seed. ConfigError where it cannot be run."""
        layers = self.layers.copy()
        for key, value in asked.items():
            layers.set(key, value, SEARCHED)
        return layers.validate(self.seeds[0])

    def named(self) -> Iterator[tuple[RunConfig, Layers]]:
        """What trials may be, as far as they name code and files: the base, the file's own trials,
        and the base with each choice of a setting that names something. Those that cannot be run
        are left out."""
        tried: list[Asked] = [{}, *self.enqueue]
        tried += [
            {one.key: value}
            for one in self.space
            if one.key.partition(".")[0] in ("model", "prompts", "rewards", "optimizer")
            for value in one.choices or ()
        ]
        for asked in tried:
            layers = self.layers.copy()
            try:
                for key, value in asked.items():
                    layers.set(key, value, self.document.place(("space", key)))
                yield layers.validate(self.seeds[0]), layers
            except ConfigError:
                continue

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


def load_search(
    path: Path, profile: str | None = None, overrides: Sequence[str] = (), trust: bool = True
) -> Search:
    """The search that a file describes. ConfigError names place, key and mend. `trust` as
    `load_sweep` has it."""
    document, file = read_search_file(path)
    chosen = choose_profile(document, file.profiles, profile)
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
    errors = ErrorList()
    for part, prefix in parts:
        with errors.collected():
            for key, (value, at) in flat(document, part.set or {}, (*prefix, "set")).items():
                layers.set(key, value, document.place(at))
                shared[key] = value
    space: tuple[Range, ...] = ()
    with errors.collected():
        space = read_space(document, parts)
    errors.raise_all()
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key == "seed" or key in {one.key for one in space}:
            place = Place(f"--set {text}")
            message = f"{key} is what the trials differ in; change the file"
            raise ConfigError(message, place=place)
    add_overrides(layers, list(overrides))
    seeds = _seeds(document, *get("seeds", 3))
    config = layers.validate(seeds[0])
    check_trust(config, layers.place, trust)
    check_jobs(path, asked_of_slurm(parts), document.place, trust)
    varied = [one.key for one in space if one.key in MAY_NAME_CODE]
    if varied and not (trust or is_own(path)):
        raise ConfigError(
            f"{path}: space: {varied[0]}: names code, and the file is not in the working folder; "
            "if you know whose it is, add --trust"
        )
    objectives, objectives_key = get("objectives", ("reward", "evaluations"))
    budget, budget_key = get("budget")
    _check_objectives(document, objectives, objectives_key, budget, budget_key)
    asked, enqueue_key = get("enqueue", ())
    enqueue = tuple(
        read_enqueued(document, one, (*enqueue_key, i), space) for i, one in enumerate(asked)
    )
    usual = choose_profile(document, file.profiles, None)
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
    check_name(search.name, document.place(("name",)))
    _check_names_of_choices(document, parts, space)
    if search.trials * len(seeds) > MOST_RUNS:
        message = (
            f"{search.trials:,} trials of {len(seeds):,} seeds are more than {MOST_RUNS:,} runs"
        )
        raise error_at(document, get("trials")[1], message, "lower one of them")
    if len(enqueue) > search.trials:
        raise error_at(
            document,
            get("trials")[1],
            f"enqueue has {len(enqueue)} settings, trials is {search.trials}; raise trials",
        )
    for i, settings in enumerate(enqueue):
        try:
            search.config(settings)
        except ConfigError as error:
            place = document.place((*enqueue_key, i))
            raise ConfigError(error.without_place, place=place, key="enqueue") from None
    return search


def _base_layers(document: Document, base: str, key: Key) -> Layers:
    path = Path(document.file).parent / base
    try:
        return load_layers(path)
    except ConfigError as error:
        if error.place == Place(str(path)):
            raise error_at(document, key, str(error)) from None
        raise


def _seeds(document: Document, given: Any, key: Key) -> tuple[int, ...]:
    if isinstance(given, int):
        if given > MOST_RUNS:
            raise error_at(
                document, key, f"{given:,} seeds are more than {MOST_RUNS:,}; give fewer"
            )
        return tuple(range(given))
    if not given or len(set(given)) < len(given):
        raise error_at(document, key, "give different seeds, or a count")
    return tuple(given)


def _given(document: Document, value: Any, key: Key) -> int:
    if value is None:
        message = "this key is missing; give a total, such as 24"
        raise ConfigError(message, place=document.place(), key="trials")
    return int(value)


def _measure(document: Document, config: RunConfig, given: str | None, key: Key) -> str:
    known = [*config.rewards.train, *config.rewards.held_out]
    if given is not None and given not in known:
        raise error_at(document, key, f"no such reward: {given}{did_you_mean(given, known)}")
    return given or known[0]


def _check_objectives(
    document: Document, objectives: tuple[str, ...], key: Key, budget: Any, budget_key: Key
) -> None:
    if objectives[0] != "reward" or len(set(objectives)) < len(objectives) or len(objectives) > 2:
        raise error_at(
            document, key, "give [reward], or reward and one cost, such as [reward, evaluations]"
        )
    if budget is not None and len(objectives) > 1:
        raise error_at(
            document,
            budget_key,
            "bounds what [reward] alone may cost; take objectives: [reward], or leave budget out",
        )


def _check_names_of_choices(
    document: Document, parts: list[tuple[Part, Key]], space: tuple[Range, ...]
) -> None:
    """Trials are known by the names of their folders."""
    for one in space:
        first: dict[str, Any] = {}
        for value in one.choices or ():
            other = first.setdefault(value_in_name(value).lower(), value)
            if other is not value:
                keys = [(*prefix, "space", one.key) for part, prefix in parts if part.space]
                key = next(k for k in reversed(keys) if k in document.lines)
                raise ConfigError(
                    f"{document.place(key)}: space: {one.key}: {other!r} and {value!r} differ in "
                    "no letter, digit or one of _.+- (capitals count as small ones), so that "
                    "their trials would have one name; rename one of them"
                )


def _check_confirm(search: Search) -> None:
    if search.confirm.best == 1 and not search.enqueue:
        raise error_at(
            search.document,
            ("confirm",),
            "the best trial alone has nothing to be compared with; raise best, or enqueue the "
            "setting that it should beat",
        )
    first, count = search.confirm.first_seed, search.confirm.seeds
    old = sorted(set(search.seeds) & set(range(first, first + count)))
    if old:
        raise error_at(
            search.document,
            ("confirm",),
            f"seed {old[0]} is one of the search's own; fresh seeds alone can confirm: raise "
            "first_seed",
        )
