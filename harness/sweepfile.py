"""The text of a sweep file: which keys it may have, and errors that name line, key and mend.

What the keys mean together is `harness.spec`'s work.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, ValidationError

from mixgrpo.config import Name, RunConfig, Section
from mixgrpo.configfile import Document, Key, as_tuples, check_key, known_keys, read_yaml
from mixgrpo.errors import ConfigError

DEFAULT_PROFILE = "laptop"

Settings = dict[str, Any]
Scalar = str | int | float
Seeds = Annotated[StrictInt, Field(ge=1)] | tuple[Annotated[StrictInt, Field(ge=0, lt=2**31)], ...]


class Part(Section):
    """What the file may say at the top and in a profile."""

    base: str | None = None
    """A run configuration, as a path relative to this file."""
    set: Settings | None = None
    """Settings of all arms on top of the base, dotted (`window.size: 4`) or nested. A profile's lie
    on top of the file's."""
    grid: dict[str, tuple[Any, ...]] | None = None
    """Lists of values by dotted key; their product is the arms. Every sweep has `grid` or `arms`;
    with both, every arm is combined with every point of the grid."""
    arms: dict[Name, Settings | None] | None = None
    """Settings by arm name. Beside them an arm may have a `label` for figures, a `base` of its own
    instead of the above, and a `slurm` of its own on top of the others."""
    seeds: Seeds | None = None
    """How many (`5` means 0 to 4), or which (`[3, 7]`). Every sweep has seeds; fewer than three
    conclude nothing."""
    reference: str | Settings | None = None
    """An arm's name, or settings that only one arm has. The first arm by default."""
    measure: Name | None = None
    """The reward that answers; by default the first one that is trained on."""
    paper_rows: dict[Scalar, Scalar] | None = None
    """Row of the published table by arm name or grid value; by default they are the same."""
    notes: str | None = None
    """A remark that the report shows."""
    probes: dict[Name, Settings | None] | None = None
    """What is measured on every finished run besides its training, by name, each with its options:
    `hybrid`, `solver-error`."""
    slurm: Settings | None = None
    """What jobs ask of Slurm, on top of the site's own settings. It changes no run's identity."""


class Profile(Part):
    pass


class SweepFile(Part):
    name: Name
    """Names the folders `runs/<name>/` and `reports/<name>/`."""
    question: Annotated[str, Field(min_length=1)]
    """One sentence, the title of the report."""
    paper: Name | None = None
    """The published table that stands beside the measured numbers."""
    within: str | None = None
    """A key that the arms differ in, such as `model.checkpoint`: each arm is then compared with the
    arm of the same value that `reference` fits, and never across values."""
    views: tuple[Name, ...] = ()
    """What the page shows beside the usual: `drift`, `turn`, `speedup`, `stability`,
    `interaction`, `hybrid`, `solver-error`."""
    answered_by: Name | None = None
    """The view, one of `views`, that answers the question, where that is not which arm
    scores best."""
    profiles: dict[Name, Profile] = Field(default={}, min_length=1)
    """Variants of the sweep by name. Without `--profile` the one called laptop is taken, or else
    the first."""


def read_file(path: Path) -> tuple[Document, SweepFile]:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the sweep file")
    document = read_yaml(path)
    if _is_run_configuration(document):
        raise ConfigError(
            f"{path}: is a run configuration, not a sweep file; name it as `base:` in a sweep "
            f"file, or train it with python -m mixgrpo.train {path} --out DIR"
        )
    if "space" in keys_of_parts(document):
        raise ConfigError(
            f"{path}: is a search file; run it with python -m harness.search (--status, --report)"
        )
    try:
        return document, SweepFile.model_validate(as_tuples(document.data))
    except ValidationError as error:
        raise ConfigError(_explain(document, error)) from None


def _is_run_configuration(document: Document) -> bool:
    """Whether a file has keys of a run, and none that only a sweep has."""
    keys = document.data.keys()
    if keys & (SweepFile.model_fields.keys() - {"base"}):
        return False
    return bool(keys & {"base", *RunConfig.model_fields})


def keys_of_parts(document: Document) -> set[object]:
    """The keys that a file has, or that one of its profiles has."""
    profiles = document.data.get("profiles")
    parts = [document.data, *(profiles.values() if isinstance(profiles, dict) else [])]
    return {key for part in parts if isinstance(part, dict) for key in part}


def _explain(document: Document, error: ValidationError) -> str:
    # A union reports each of its members: the error deepest in the file is the one that was meant.
    first = max(error.errors(), key=lambda e: len(file_key(document, e["loc"])))
    key = file_key(document, first["loc"])
    dotted, kind, given = ".".join(map(str, key)), first["type"], first["input"]
    place = document.place(key)
    if kind == "extra_forbidden":
        part = Profile if key[0] == "profiles" else SweepFile
        if key[-1] in RunConfig.model_fields.keys() - {"seed"}:
            return f"{place}: {dotted}: is a setting of the runs; write it below `set:`"
        return f"{place}: {dotted}: unknown key{did_you_mean(str(key[-1]), part.model_fields)}"
    if kind == "missing":
        missing = first["loc"][-1]
        return f"{place}: {missing}: this key is missing; every sweep has a {missing}"
    if kind == "string_pattern_mismatch" or (kind == "string_too_long" and key):
        return (
            f"{place}: {dotted}: {given!r} cannot be part of a folder's name; use up to 64 "
            "letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    if "seeds" in key:
        return (
            f"{place}: {dotted}: {given!r} is not a seed; give a count of at least 1, or a list "
            "of whole numbers from 0, such as [0, 1, 2]"
        )
    if kind == "tuple_type":
        return f"{place}: {dotted}: expected a list of values, such as [1, 2], not {given!r}"
    if kind in ("dict_type", "model_type"):
        return f"{place}: {dotted}: expected keys with values, not {given!r}"
    if kind == "too_short":
        return f"{place}: {dotted}: is empty; fill it or leave the key out"
    return f"{place}: {dotted}: {first['msg']}, not {given!r}"


def file_key(document: Document, location: tuple[str | int, ...]) -> Key:
    """The part of pydantic's location that is in the file (unions add names of their own)."""
    key: Key = ()
    for part in location:
        if (*key, part) in document.lines or (*key, str(part)) in document.lines:
            key = (*key, part if (*key, part) in document.lines else str(part))
    return key


def did_you_mean(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f" (known: {', '.join(names)})"


def choose_profile(document: Document, known: Mapping[str, Any], profile: str | None) -> str:
    """The profile that is asked for, or the usual one. ConfigError for one that is not `known`."""
    if profile is None:
        return DEFAULT_PROFILE if DEFAULT_PROFILE in known else next(iter(known), "")
    if profile not in known:
        hint = did_you_mean(profile, known) if known else "; the file has no profiles"
        raise ConfigError(f"{document.place(('profiles',))}: no such profile: {profile}{hint}")
    return profile


@dataclass(frozen=True)
class Given:
    """A value together with its key in the file, for errors."""

    value: Any
    key: Key


class Chosen:
    """A sweep file with one of its profiles laid over it."""

    def __init__(self, path: Path, profile: str | None) -> None:
        self.document, self.file = read_file(path)
        self.profile = choose_profile(self.document, self.file.profiles, profile)
        self.parts: list[tuple[Part, Key]] = [(self.file, ())]
        if self.profile:
            key = ("profiles", self.profile)
            self.parts.append((self.file.profiles[self.profile], key))

    def get(self, field: str) -> Given | None:
        """The profile's value of a field, or else the file's."""
        for part, prefix in reversed(self.parts):
            value = getattr(part, field)
            if value is not None:
                return Given(value, (*prefix, field))
        return None

    def error(self, key: Key, message: str) -> ConfigError:
        """An error about a key of the file."""
        dotted = ".".join(map(str, key))
        return ConfigError(f"{self.document.place(key)}: {dotted}: {message}")

    def flat(self, settings: Mapping[Any, Any], place: Key, prefix: str = "") -> Settings:
        """Settings, nested or dotted, by dotted key. ConfigError for a key that is none."""
        known = set(known_keys())
        found: Settings = {}
        for name, value in settings.items():
            dotted, here = f"{prefix}{name}", (*place, name)
            section = any(key.startswith(f"{dotted}.") for key in known)
            if section and isinstance(value, dict):
                inner = self.flat(value, here, f"{dotted}.")
            else:
                self.check_setting(dotted, here)
                inner = {dotted: value}
            for key in inner.keys() & found.keys():
                raise self.error(here, f"{key} is given twice; keep one")
            found |= inner
        return found

    def check_setting(self, dotted: str, place: Key) -> None:
        """ConfigError unless `dotted` is a setting that an arm may have."""
        check_key(dotted, self.document.place(place))
        if dotted == "seed":
            raise self.error(place, "is not a setting of an arm; give `seeds:` of the sweep")

    def place_under(self, prefix: Key, dotted: str) -> str:
        """The line of a setting that may be written dotted, nested or both."""
        rest, key = dotted.split("."), prefix
        while rest:
            for n in range(len(rest), 0, -1):
                if (*key, ".".join(rest[:n])) in self.document.lines:
                    key, rest = (*key, ".".join(rest[:n])), rest[n:]
                    break
            else:
                break
        return self.document.place(key)
