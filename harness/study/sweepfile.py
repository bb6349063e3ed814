"""The text of a sweep file: which keys it may have, and errors that name line, key and fix.

What the keys mean together is `harness.study.spec`'s work.
"""

import difflib
import hashlib
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar

from pydantic import Field, StrictInt, ValidationError
from pydantic_core import ErrorDetails

from harness.text import command
from mixgrpo.errors import ConfigError, ErrorList, Place, all_errors, shown
from mixgrpo.files.regular import is_folder
from mixgrpo.settings.config import Name, RunConfig, Section
from mixgrpo.settings.configfile import load_layers
from mixgrpo.settings.keys import check_key, is_section, known_keys
from mixgrpo.settings.layers import Layers, as_tuples, check_value
from mixgrpo.settings.yamlfile import Document, Key, read_yaml
from mixgrpo.text.suggest import RUN, SWEEP, did_you_mean, nearest_setting, plain, slurm_wish

DEFAULT_PROFILE = "laptop"

MOST_RUNS = 50_000
"""Arms times seeds of a sweep, and trials times seeds of a search."""

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
    """The file, and what it says, checked key by key. ConfigError, with every mistake that can be
    seen at once."""
    place = Place(str(path))
    if is_folder(path):  # a name may be too long, which is said when it is read
        raise ConfigError("is a folder; name the sweep file", place=place)
    document = read_yaml(path)
    if is_run_configuration(document):
        raise ConfigError(
            "is a run configuration, not a sweep file; name it as `base:` in a sweep file, or "
            f"train it with {command('mixgrpo.train', path)} --out DIR",
            place=place,
        )
    if "space" in keys_of_parts(document):
        raise ConfigError(
            f"is a search file; run it with {command('harness.search', path)} (and look at it "
            "with --status, --report)",
            place=place,
        )
    return document, checked(document, SweepFile, "sweep", SWEEP, _unknown_key)


UnknownKey = Callable[[Document, Key], ConfigError]
"""Makes the error of a key that is none."""
F = TypeVar("F", bound=Section)


def checked(
    document: Document,
    schema: type[F],
    word: str,
    synonyms: Mapping[str, str],
    unknown: UnknownKey,
) -> F:
    """What a file says. ConfigError with every mistake. `word`: what errors call such a file;
    `synonyms`: words that mean keys of it."""
    try:
        return schema.model_validate(as_tuples(document.data))
    except ValidationError as error:
        words = {**synonyms, **schema.model_fields}
        wrong = _explain_all(document, error, word, words, unknown)
    raise all_errors([*wrong, *wrong_settings(document, schema, word)])


def wrong_settings(
    document: Document, schema: type[Section] | None = None, word: str = "sweep"
) -> list[ConfigError]:
    """What is wrong with single settings anywhere in a file: their names and values."""
    errors = ErrorList()
    for key, dotted, value in _settings(document):
        with errors.collected():
            check_setting(document, dotted, key, schema or SweepFile, word)
            check_value(dotted, value, document.place(key))
    return errors.errors


def _settings(document: Document) -> Iterator[tuple[Key, str, Any]]:
    """Every setting of the runs in a file that may be wrong elsewhere: key, dotted key, value."""
    profiles = document.data.get("profiles")
    parts: list[tuple[Key, Any]] = [((), document.data)]
    if isinstance(profiles, dict):
        parts += [(("profiles", str(name)), part) for name, part in profiles.items()]
    for prefix, part in parts:
        if not isinstance(part, dict):
            continue
        yield from _dotted((*prefix, "set"), part.get("set"))
        grid, arms = part.get("grid"), part.get("arms")
        for name, values in grid.items() if isinstance(grid, dict) else ():
            for value in values if isinstance(values, list) else ():
                yield (*prefix, "grid", str(name)), str(name), value
        space = part.get("space")
        for name, values in space.items() if isinstance(space, dict) else ():
            if isinstance(values, dict):
                values = [v for k in ("low", "high") if (v := values.get(k)) is not None] + (
                    values["choices"] if isinstance(values.get("choices"), list) else []
                )
            for value in values if isinstance(values, list) else ():
                yield (*prefix, "space", str(name)), str(name), value
        for name, arm in arms.items() if isinstance(arms, dict) else ():
            if isinstance(arm, dict):
                words = {k for k in arm if k in ARM_WORDS or wrong_word_of_arm(str(k))}
                own = {k: v for k, v in arm.items() if k not in words}
                yield from _dotted((*prefix, "arms", str(name)), own)


ARM_WORDS = ("base", "label", "slurm")
"""What an arm may have beside its settings."""


def _of_an_arm(key: str) -> bool:
    """Whether a key looks like what stands below an arm's name."""
    known = is_section(key) or key in (*ARM_WORDS, "set")
    return known or nearest_setting(key, known_keys()) is not None


def wrong_word_of_arm(key: str) -> str:
    """What is wrong with a key that looks like an arm's own and is none; empty for a setting."""
    if plain(key) == "set":
        return "an arm's settings need no `set:`; write them below the arm's name"
    near = difflib.get_close_matches(plain(key), ARM_WORDS, n=1, cutoff=0.7)
    return f"unknown key; did you mean {near[0]}?" if near and key not in ARM_WORDS else ""


def _dotted(key: Key, settings: Any, prefix: str = "") -> Iterator[tuple[Key, str, Any]]:
    for name, value in settings.items() if isinstance(settings, dict) else ():
        here, dotted = (*key, str(name)), f"{prefix}{name}"
        if is_section(dotted) and isinstance(value, dict):
            yield from _dotted(here, value, f"{dotted}.")
        else:
            yield here, dotted, value


def is_run_configuration(document: Document) -> bool:
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


def _explain_all(
    document: Document,
    error: ValidationError,
    word: str,
    words: Collection[str],
    unknown: UnknownKey,
) -> list[ConfigError]:
    """Every error of a file, in the order of its lines. `words`: its own keys, and those that mean
    them."""
    # A union reports each of its members: the error deepest in the file is the one that was meant.
    by_key: dict[Key, ErrorDetails] = {}
    missing = []
    for details in error.errors():
        if details["type"] == "missing":
            missing.append(details)
        else:
            key = file_key(document, details["loc"])
            if key not in by_key or by_key[key]["type"].endswith("_type"):
                by_key[key] = details
    outer = {key[:n] for key in by_key for n in range(len(key))}
    found = []
    for key, details in by_key.items():
        # A word of a profile in place of its name.
        at = key[:2] if key[:1] == ("profiles",) and {*key[1:2]} & {*words} else key
        if details["type"] in _STRAY and (empty := empty_before(document, at, by_key, words)):
            found.append(beside_empty(document, at, empty))
        elif key not in outer:
            is_unknown = details["type"] == "extra_forbidden"
            found.append(unknown(document, key) if is_unknown else _explain(document, key, details))
    return [*found, *(_missing_key(document, e, word) for e in missing)]


_STRAY = ("extra_forbidden", "dict_type", "model_type")
"""Errors of a key that stands where it means nothing."""

_HOLDS: dict[str, tuple[type, ...]] = {
    "set": (object,),
    "slurm": (object,),
    "grid": (list,),
    "space": (list, dict),
    "arms": (dict, NoneType),
    "profiles": (dict, NoneType),
    "probes": (dict, NoneType),
    "paper_rows": (str, int, float),
}
"""What may stand below a key of a file."""


def empty_before(
    document: Document, key: Key, wrong: Container[Key] = (), words: Container[str] = ()
) -> str:
    """The key that `key`, which is wrong where it stands, was to be indented below: the one before
    it that is empty, with only `wrong` ones in between. Empty where it may be one of `words`."""
    *outer, last = key
    beside: Any = document.data
    for part in outer:
        beside = beside.get(part) if isinstance(beside, dict) else None
    if not isinstance(beside, dict) or last not in beside:
        return ""
    value, names, named = beside[last], list(beside), outer[-1:] and outer[-1] in _HOLDS
    if outer[-1:] == ["arms"] and not _of_an_arm(str(last)):
        return ""
    if not named and plain(str(last)) in words and not isinstance(value, dict):
        return ""
    for name in reversed(names[: names.index(last)]):
        here = (*outer, name)
        if beside[name] is None and document.place(here) != document.place(key):
            stray = named or here in wrong
            return str(name) if stray or isinstance(value, _HOLDS.get(str(name), ())) else ""
        if here not in wrong:
            break
    return ""


def _explain(document: Document, key: Key, error: ErrorDetails) -> ConfigError:
    kind, given = error["type"], shown(error["input"])
    if kind == "value_error":
        message = str(error["ctx"]["error"])
    elif (
        kind == "string_pattern_mismatch" or (kind == "string_too_long" and key)
    ) and "measure" not in key:
        message = (
            f"{given} cannot be part of a folder's name; use up to 64 letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit"
        )
    elif "seeds" in key and "confirm" not in key:
        message = (
            f"{given} is not a seed; give a count of at least 1, or a list of whole numbers from "
            "0, such as [0, 1, 2]"
        )
    elif kind == "tuple_type":
        message = f"expected a list of values, such as [1, 2], not {given}"
    elif kind in ("dict_type", "model_type"):
        space = "{low: 1, high: 8} or a list of choices"
        message = f"expected {space if 'space' in key else 'keys with values'}, not {given}"
    elif kind == "too_short":
        message = "is empty; give at least one value, or leave the key out"
    elif kind == "literal_error":
        message = f"{given} is none of {error['ctx']['expected']}"
    else:
        message = f"{error['msg'].replace('Input should be', 'expected')}, not {given}"
    return error_at(document, key, message)


def error_at(document: Document, key: Key, message: str, fix: str = "") -> ConfigError:
    """An error about a key of the file."""
    return ConfigError(message, place=document.place(key), key=".".join(map(str, key)), fix=fix)


def beside_empty(document: Document, key: Key, empty: str) -> ConfigError:
    """The error of a key that was to be indented below an `empty` one."""
    said = f"stands beside `{empty}:`, which is empty"
    return error_at(document, key, said, f"indent it below `{empty}:`")


def _missing_key(document: Document, error: ErrorDetails, word: str) -> ConfigError:
    key, missing = file_key(document, error["loc"]), str(error["loc"][-1])
    message = f"this key is missing; every {word} has a {missing}"
    return ConfigError(message, place=document.place(key), key=".".join(map(str, (*key, missing))))


def _unknown_key(document: Document, key: Key) -> ConfigError:
    name = str(key[-1])
    fields = Profile.model_fields if key[0] == "profiles" else SweepFile.model_fields
    return unknown_key(document, key, fields, SWEEP, of_runs(name, {*fields, *SWEEP}))


def of_runs(name: str, own: Collection[str]) -> tuple[str, str] | None:
    """What is wrong with a key of a file, and what to do, where it is a setting of the runs or of
    their jobs; None for others and for `own` keys and words of the file."""
    word = plain(name)
    if word in own:
        return None
    if word in RunConfig.model_fields or word in known_keys():
        return "is a setting of the runs", "write it below `set:`"
    if word in RUN or any(key.endswith(f".{word}") for key in known_keys()):
        meant = nearest_setting(name, known_keys())
        return "unknown key", f"did you mean {meant}? Write it below `set:`"
    wish = slurm_wish(name, known_keys())
    return ("unknown key", f"did you mean {wish}? Write it below `slurm:`") if wish else None


def unknown_key(
    document: Document,
    key: Key,
    known: Iterable[str],
    synonyms: Mapping[str, str],
    elsewhere: tuple[str, str] | None = None,
) -> ConfigError:
    """The error of a key that is none. `elsewhere`: see `of_runs`."""
    if elsewhere is not None:
        return error_at(document, key, *elsewhere)
    return error_at(document, key, f"unknown key{did_you_mean(str(key[-1]), known, synonyms)}")


def file_key(document: Document, location: tuple[str | int, ...]) -> Key:
    """The part of pydantic's location that is in the file (unions add names of their own)."""
    key: Key = ()
    for part in location:
        if (*key, part) in document.lines or (*key, str(part)) in document.lines:
            key = (*key, part if (*key, part) in document.lines else str(part))
    return key


def check_setting(
    document: Document, dotted: str, key: Key, schema: type[Section], word: str = "sweep"
) -> None:
    """ConfigError unless `dotted`, which stands at `key`, is a setting that runs may differ in."""
    fields = schema.model_fields.keys() - RunConfig.model_fields.keys()
    if dotted in fields:
        message = f"is a key of the {word} file, not a setting of its runs; indent it less"
        raise error_at(document, key, message)
    if dotted == "seed":
        raise error_at(document, key, f"is not a setting of an arm; give `seeds:` of the {word}")
    of_arm = key[-3:-2] == ("arms",) and (
        f"{key[-2]}.{dotted}" in known_keys() or key[-2] in (*ARM_WORDS, "set")
    )
    if of_arm and (empty := empty_before(document, key[:-1])):
        raise beside_empty(document, key[:-1], empty)
    check_key(dotted, document.place(key))


def choose_profile(document: Document, known: Mapping[str, Any], profile: str | None) -> str:
    """The profile that is asked for, or the usual one. ConfigError for one that is not `known`."""
    if profile is None:
        return DEFAULT_PROFILE if DEFAULT_PROFILE in known else next(iter(known), "")
    if profile not in known:
        hint = did_you_mean(profile, known) if known else "; the file has no profiles"
        place = document.place(("profiles",))
        raise ConfigError(f"no such profile: {profile}{hint}", place=place)
    return profile


@dataclass(frozen=True)
class Given:
    """A value together with its key in the file, for errors."""

    value: Any
    key: Key


def asked_of_slurm(parts: Iterable[tuple[Any, Key]]) -> Iterator[tuple[Key, object]]:
    """What parts of a file ask of Slurm, for all arms and for one, each with its key."""
    for part, prefix in parts:
        yield (*prefix, "slurm"), part.slurm
        for name, arm in (getattr(part, "arms", None) or {}).items():
            yield (*prefix, "arms", name, "slurm"), (arm or {}).get("slurm")


class FileParts:
    """A sweep or search file with one of its profiles laid over it."""

    def __init__(self, document: Document, file: Any, profile: str | None, word: str) -> None:
        """`file`: what `document` says, checked. `word`: what errors call a file of its kind."""
        self.document, self.schema, self.word = document, type(file), word
        self._profiles = file.profiles
        self.profile = choose_profile(document, self._profiles, profile)
        self.parts: list[tuple[Any, Key]] = [(file, ())]
        if self.profile:
            self.parts.append((self._profiles[self.profile], ("profiles", self.profile)))

    def get(self, field: str) -> Given | None:
        """The profile's value of a field, or else the file's."""
        for part, prefix in reversed(self.parts):
            value = getattr(part, field)
            if value is not None:
                return Given(value, (*prefix, field))
        return None

    def error(self, key: Key, message: str) -> ConfigError:
        """An error about a key of the file."""
        return error_at(self.document, key, message)

    def variant(self, overrides: Sequence[str]) -> str:
        """What distinguishes the names of this profile with these `KEY=VALUE` texts on top."""
        usual = choose_profile(self.document, self._profiles, None)
        variant = f"-{self.profile}" if self.profile != usual else ""
        if overrides:
            digest = hashlib.sha256(repr(sorted(overrides)).encode()).hexdigest()
            variant += f"-set-{digest[:6]}"
        return variant

    def flat(self, settings: Mapping[Any, Any], place: Key, prefix: str = "") -> Settings:
        """Settings, nested or dotted, by dotted key. ConfigError for a key that is none."""
        found: Settings = {}
        errors = ErrorList()
        for name, value in settings.items():
            dotted, here = f"{prefix}{name}", (*place, name)
            with errors.collected():
                if is_section(dotted) and isinstance(value, dict):
                    inner = self.flat(value, here, f"{dotted}.")
                else:
                    self.check_setting(dotted, here)
                    inner = {dotted: value}
                for key in inner.keys() & found.keys():
                    raise self.error(here, f"{key} is given twice; keep one")
                found |= inner
        errors.raise_all()
        return found

    def settings(self) -> dict[str, Given]:
        """`set` of the file and, on top, of the profile, by dotted key."""
        found: dict[str, Given] = {}
        errors = ErrorList()
        for part, prefix in self.parts:
            key = (*prefix, "set")
            with errors.collected():
                for name, value in self.flat(part.set or {}, key).items():
                    found[name] = Given(value, key)
        errors.raise_all()
        return found

    def layers(self, base: Given | None) -> Layers:
        """A base, then `set` of the file and of the profile."""
        layers = self._base_layers(base) if base else Layers()
        for name, given in self.settings().items():
            layers.set(name, given.value, self.place_under(given.key, name))
        return layers

    def _base_layers(self, base: Given) -> Layers:
        path = Path(self.document.file).parent / base.value
        try:
            return load_layers(path)
        except ConfigError as error:
            # What is wrong with the file as a whole is wrong where it is named.
            if error.place == Place(str(path)):
                raise self.error(base.key, str(error)) from None
            raise

    def check_setting(self, dotted: str, place: Key) -> None:
        """ConfigError unless `dotted` is a setting that runs may differ in."""
        check_setting(self.document, dotted, place, self.schema, self.word)

    def place_under(self, prefix: Key, dotted: str) -> Place:
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


class Chosen(FileParts):
    """A sweep file with one of its profiles laid over it."""

    def __init__(self, path: Path, profile: str | None) -> None:
        document, self.file = read_file(path)
        super().__init__(document, self.file, profile, "sweep")
