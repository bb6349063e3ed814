"""A search file -> a validated search, with errors that name line, key and fix.

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
    Prune,
    read_enqueued,
    read_search_file,
    read_space,
)
from harness.searching.space import Asked, Range, Settings
from harness.study.arms import value_in_name
from harness.study.names import check_name, shorten
from harness.study.profiles import FileParts, Given, asked_of_slurm
from harness.study.sweepfile import MOST_RUNS
from mixgrpo.errors import ConfigError, ErrorList, Place
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import add_overrides
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.trust import MAY_NAME_CODE, check_jobs, is_own
from mixgrpo.settings.trust import check as check_trust
from mixgrpo.settings.yamlfile import Document, Key
from mixgrpo.text.suggest import did_you_mean

SEARCHED = Place("search")
"""Of what a trial was given."""

NAMES_FILES = (
    *("model.name", "model.checkpoint", "optimizer.name"),
    *("prompts.train", "prompts.held_out"),
)
"""Settings whose values name code or files, beside those of rewards."""


@dataclass(frozen=True)
class Search:
    """What a search file says, with one profile chosen."""

    name: str
    question: str
    file: Path
    profile: str
    variant: str
    """In what its names differ from the file's default search: its profile, its overrides."""
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
        naming = ("model", "prompts", "rewards", "optimizer")
        ranges = [one for one in self.space if one.key.partition(".")[0] in naming]
        choices = [{one.key: value} for one in ranges for value in one.choices or ()]
        for asked in [{}, *self.enqueue, *choices]:
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
        if any(one.key in NAMES_FILES or one.key.startswith("rewards.") for one in self.space):
            # What a choice names counts by its contents, as what the base names does.
            what["choices"] = [config_hash(config) for config, _ in self.named()]
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]


def load_search(
    path: Path, profile: str | None = None, overrides: Sequence[str] = (), trust: bool = True
) -> Search:
    """The search that a file describes. ConfigError names place, key and fix. `trust` as
    `load_sweep` has it."""
    document, said = read_search_file(path)
    file = FileParts(document, said, profile, "search")
    base = file.get("base")
    layers = Layers()
    space: tuple[Range, ...] = ()
    errors = ErrorList()
    with errors.collected():
        layers = file.layers(base)
    with errors.collected():
        space = read_space(file)
    errors.raise_all()
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key == "seed" or key in {one.key for one in space}:
            message = f"{key} is what the trials differ in; change the file"
            raise ConfigError(message, place=Place(f"--set {text}"))
    add_overrides(layers, list(overrides))
    seeds = _seeds(file)
    config = layers.validate(seeds[0])
    check_trust(config, layers.place, trust)
    check_jobs(path, asked_of_slurm(file.parts), document.place, trust)
    varied = [one.key for one in space if one.key in MAY_NAME_CODE]
    if varied and not (trust or is_own(path)):
        raise ConfigError(
            f"{path}: space: {varied[0]}: names code, and the file is not in the working folder; "
            "if you know whose it is, add --trust"
        )

    def get(field: str, default: Any) -> Any:
        given = file.get(field)
        return default if given is None else given.value

    enqueue = file.get("enqueue") or Given((), ("enqueue",))
    search = Search(
        name=said.name,
        question=said.question,
        file=path,
        profile=file.profile,
        variant=file.variant(overrides),
        overrides=tuple(overrides),
        base=path.parent / base.value if base else None,
        layers=layers,
        shared={key: given.value for key, given in file.settings().items()},
        space=space,
        objectives=get("objectives", ("reward", "evaluations")),
        budget=get("budget", None),
        measure=_measure(file, config),
        trials=get("trials", 0),
        seeds=seeds,
        parallel=get("parallel", 1),
        enqueue=tuple(
            read_enqueued(file, one, (*enqueue.key, i), space)
            for i, one in enumerate(enqueue.value)
        ),
        prune=get("prune", Prune()),
        confirm=get("confirm", Confirm()),
        sampler_seed=get("sampler_seed", 0),
        notes=get("notes", "").strip(),
        slurm=tuple((part.slurm or {}, (*prefix, "slurm")) for part, prefix in file.parts),
        document=document,
    )
    check_name(search.name, document.place(("name",)))
    _check(search, file)
    for i, asked in enumerate(search.enqueue):
        try:
            search.config(asked)
        except ConfigError as error:
            place = document.place((*enqueue.key, i))
            raise ConfigError(error.without_place, place=place, key="enqueue") from None
    return search


def _seeds(file: FileParts) -> tuple[int, ...]:
    given = file.get("seeds") or Given(3, ("seeds",))
    if isinstance(given.value, int):
        if given.value > MOST_RUNS:
            message = f"{given.value:,} seeds are more than {MOST_RUNS:,}; give fewer"
            raise file.error(given.key, message)
        return tuple(range(given.value))
    if not given.value or len(set(given.value)) < len(given.value):
        raise file.error(given.key, "give different seeds, or a count")
    return tuple(given.value)


def _measure(file: FileParts, config: RunConfig) -> str:
    known = [*config.rewards.train, *config.rewards.held_out]
    given = file.get("measure")
    if given is not None and given.value not in known:
        hint = did_you_mean(given.value, known)
        raise file.error(given.key, f"no such reward: {given.value}{hint}")
    return str(given.value if given else known[0])


def _check(search: Search, file: FileParts) -> None:
    """ConfigError for keys that do not go together."""

    def wrong(field: str, message: str) -> ConfigError:
        given = file.get(field)
        return file.error(given.key if given else (field,), message)

    goals, seeds, trials = search.objectives, search.seeds, search.trials
    if goals[0] != "reward" or len(set(goals)) < len(goals) or len(goals) > 2:
        raise wrong(
            "objectives", "give [reward], or reward and one cost, such as [reward, evaluations]"
        )
    if search.budget is not None and len(goals) > 1:
        raise wrong(
            "budget",
            "bounds what [reward] alone may cost; take objectives: [reward], or leave budget out",
        )
    if not trials:
        message = "this key is missing; give a total, such as 24"
        raise ConfigError(message, place=file.document.place(), key="trials")
    if search.confirm.best == 1 and not search.enqueue:
        raise file.error(
            ("confirm",),
            "the best trial alone has nothing to be compared with; raise best, or enqueue the "
            "setting that it should beat",
        )
    first = search.confirm.first_seed
    old = sorted(set(seeds) & set(range(first, first + search.confirm.seeds)))
    if old:
        raise file.error(
            ("confirm",),
            f"seed {old[0]} is one of the search's own; fresh seeds alone can confirm: raise "
            "first_seed",
        )
    _check_names_of_choices(search, file)
    if trials * len(seeds) > MOST_RUNS:
        raise wrong(
            "trials",
            f"{trials:,} trials of {len(seeds):,} seeds are more than {MOST_RUNS:,} runs; lower "
            "one of them",
        )
    if len(search.enqueue) > trials:
        raise wrong(
            "trials",
            f"enqueue has {len(search.enqueue)} settings, trials is {trials}; raise trials",
        )


def _check_names_of_choices(search: Search, file: FileParts) -> None:
    """Trials are known by the names of their folders."""
    for one in search.space:
        first: dict[str, Any] = {}
        for value in one.choices or ():
            other = first.setdefault(value_in_name(value).lower(), value)
            if other is not value:
                keys = [(*prefix, "space", one.key) for part, prefix in file.parts if part.space]
                key = next(k for k in reversed(keys) if k in file.document.lines)
                raise ConfigError(
                    f"{file.document.place(key)}: space: {one.key}: {other!r} and {value!r} "
                    "differ in no letter, digit or one of _.+- (capitals count as small ones), so "
                    "that their trials would have one name; rename one of them"
                )
