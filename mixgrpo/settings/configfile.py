"""Reads run configurations from YAML: bases, overrides, and errors that name file, line and key.

A configuration is built in layers (a base's base, its file, a profile, an arm, the command line).
Every value remembers the place it came from, so that an error can point there.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mixgrpo.catalogue.models import model_names
from mixgrpo.catalogue.rewards import reward_names
from mixgrpo.errors import (
    ConfigError,
    ErrorList,
    Place,
    all_errors,
    shown,
)
from mixgrpo.settings.config import MAPPINGS, Conflict, RunConfig
from mixgrpo.settings.yamlfile import Document, Key, dump_yaml, nearest_file, parse_yaml, read_yaml
from mixgrpo.text.escape import shortened
from mixgrpo.text.suggest import nearest_setting, plain, slurm_wish

if TYPE_CHECKING:
    pass


NOWHERE = Place("configuration")
"""Of what no file says, such as a default that does not fit."""


@dataclass
class Layers:
    """Settings on top of each other, each with the place that set it last."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)

    def copy(self) -> "Layers":
        return Layers(_copy(self.data), dict(self.places))

    def add(self, settings: dict[str, Any], place: Place | Document, prefix: Key = ()) -> None:
        """Lay a mapping on top. `place` is one, or the document that `prefix` points into."""
        self._merge(self.data, settings, (), RunConfig, place, prefix)

    def set(self, dotted: str, value: Any, place: Place) -> None:
        """Lay one setting on top, such as `window.interval`. ConfigError for an unknown key."""
        check_key(dotted, place)
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        self.add(nested, place)

    def _merge(
        self,
        into: dict[str, Any],
        settings: dict[str, Any],
        key: Key,
        schema: type[BaseModel],
        place: Place | Document,
        prefix: Key,
    ) -> None:
        for name, value in settings.items():
            here = (*key, name)
            section = _section(schema, name)
            if section is not None and isinstance(value, dict):
                inner = into.get(name)
                if not isinstance(inner, dict):
                    inner = into[name] = {}
                self._merge(inner, value, here, section, place, prefix)
            else:
                into[name] = value
                self._record_inner(value, here, place, prefix)
            self.places[here] = place if isinstance(place, Place) else place.place((*prefix, *here))

    def _record_inner(self, value: Any, key: Key, place: Place | Document, prefix: Key) -> None:
        """The places of what a setting's own mapping or list has."""
        inner = value if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
        for name in inner:
            here = (*key, name)
            self.places[here] = place if isinstance(place, Place) else place.place((*prefix, *here))
            self._record_inner(value[name], here, place, prefix)

    def place(self, key: Key) -> Place:
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, NOWHERE)

    def validate(self, seed: int | None = None) -> RunConfig:
        """The run these settings describe. ConfigError, with every error that can be seen at once:
        place, key and what to do."""
        data = self.data if seed is None else {**self.data, "seed": seed}
        errors = ErrorList()
        model = data.get("model")
        if isinstance(model, dict) and isinstance(model.get("name"), str):
            # Before what the model's settings are judged by.
            with errors.collected():
                self._check_name(("model", "name"), model["name"], _names(tuple(sys.path))[0])
        self._check_names(data.get("rewards"), errors)
        wrong = {key.partition(".")[0] for key in data if "." in key and key in known_keys()}
        wrong |= {"model" for one in errors.errors if one.key == "model.name"}
        config = self._parse(as_tuples(data), errors, frozenset(wrong))
        errors.raise_all()
        assert config is not None
        return config

    def _parse(
        self, data: dict[str, Any], errors: ErrorList, wrong: frozenset[str]
    ) -> RunConfig | None:
        """The configuration, by default where `wrong` sections were or a key is none; None where
        what is left does not fit together. The errors are added, but none that a wrong section may
        make."""
        try:
            return RunConfig.model_validate(data)
        except ValidationError as error:
            details = error.errors()
        errors.errors += self._explain(details, data, wrong)
        unknown = [d["loc"] for d in details if d["type"] == "extra_forbidden"]
        bad = {str(d["loc"][0]) for d in details if d["loc"] and d["loc"] not in unknown}
        if not bad and not unknown:
            return None
        left = {key: value for key, value in _without(data, unknown).items() if key not in bad}
        return self._parse(left, errors, wrong | bad)

    def _explain(
        self, details: list[ErrorDetails], data: dict[str, Any], wrong: Collection[str] = ()
    ) -> list[ConfigError]:
        found = []
        while details:
            first, *details = details
            key: Key = tuple(first["loc"])
            # Each choice among several types of one value has its own end of the key.
            choices = []
            if key and _value_at(data, key[:-1]) is first["input"]:
                choices = [d for d in details if d["loc"][:-1] == key[:-1]]
            if choices:
                details = [d for d in details if d["loc"][: len(key) - 1] != key[:-1]]
                found.append(self._error(key[:-1], _said(first, choices)))
            elif first["type"] == "value_error":
                error = first["ctx"]["error"]
                conflicts = error.conflicts if isinstance(error, Conflict) else [error]
                sections = [
                    {k.partition(".")[0] for k in getattr(c, "keys", ())} for c in conflicts
                ]
                fit = zip(conflicts, sections, strict=True)
                found += [self._conflict(key, one) for one, of in fit if not of & {*wrong}]
            else:
                found.append(self._simple(key, first))
        return found

    def _simple(self, key: Key, error: ErrorDetails) -> ConfigError:
        kind, given = error["type"], shown(error["input"])
        if kind == "extra_forbidden" and key[0] in known_keys():
            section, _, last = str(key[0]).rpartition(".")
            return ConfigError(
                "a run configuration has no dotted keys",
                place=self.place(key),
                key=str(key[0]),
                fix=f"write `{section}: {{{last}: ...}}`, with all keys of {section} together",
            )
        if kind == "extra_forbidden":
            return _unknown_key(".".join(map(str, key)), self.place(key))
        if kind in ("model_type", "dict_type"):
            return self._error(key, f"expected keys with values below it, not {given}")
        if kind == "tuple_type":
            return self._error(key, f"expected a list, such as [a, b], not {given}")
        if kind == "string_pattern_mismatch":
            return self._error(key[:2], f"{given} is not a name")
        if key and key[-1] == "[key]":
            return self._error(key[:-1], f"{given} is not a name; a name is a text")
        return self._error(key, _said(error, []))

    def _conflict(self, key: Key, error: Exception) -> ConfigError:
        """What does not fit together, at the place of the first of its keys that was set."""
        if key or not isinstance(error, Conflict):
            return self._error(key, str(error))
        keys = [tuple(dotted.split(".")) for dotted in error.keys]
        # A key that was set tells more than the section of one that was not.
        known = [self.places[one] for one in keys if one in self.places]
        known += [place for one in keys if (place := self.place(one)) != NOWHERE]
        return ConfigError(str(error), place=known[0] if known else NOWHERE)

    def _error(self, key: Key, message: str) -> ConfigError:
        return ConfigError(message, place=self.place(key), key=".".join(map(str, key)))

    def _check_names(self, given: Any, errors: ErrorList) -> None:
        """Of rewards, whatever else is wrong with them."""
        given = given if isinstance(given, dict) else {}
        _, rewards = _names(tuple(sys.path))
        classes = given.get("classes")
        for name in classes if isinstance(classes, dict) else ():
            if name in rewards:
                key = ("rewards", "classes", name)
                said = "is a reward's name already; give the class another one"
                errors.errors.append(self._error(key, said))
        rewards = [*rewards, *(classes if isinstance(classes, dict) else ())]
        for field_ in ("train", "held_out", "options"):
            names = given.get(field_)
            for name in names if isinstance(names, dict | list | tuple) else ():
                with errors.collected():
                    if isinstance(name, str) and re.match(r"[A-Za-z0-9][\w.-]*$", name):
                        self._check_name(("rewards", field_), name, rewards)

    def _check_name(self, key: Key, name: str, known: list[str]) -> None:
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise self._error(
            key,
            f"no such name: {name}{hint} (known: {', '.join(sorted(known))}; a package adds its "
            "own: docs/extending.md)",
        )


def _said(error: ErrorDetails, choices: list[ErrorDetails]) -> str:
    """pydantic's sentence, with those of other choices that would do."""
    texts = [d["msg"].replace("Input should be", "expected") for d in (error, *choices)]
    return f"{' or '.join(dict.fromkeys(texts))}, not {shown(error['input'])}"


def _value_at(data: Any, key: Key) -> Any:
    for part in key:
        try:
            data = data[part]
        except (LookupError, TypeError):
            return _value_at  # like nothing else
    return data


def _without(data: dict[str, Any], keys: list[Key]) -> dict[str, Any]:
    """A copy of nested settings without these."""
    copied: dict[str, Any] = _copy(data)
    for *outer, last in keys:
        inner: Any = copied
        for part in outer:
            inner = inner[part]
        del inner[last]
    return copied


@lru_cache(maxsize=1)
def _names(_path: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The models and rewards there are, looked up once for many arms: `_path` is where packages
    that add their own are found."""
    return model_names(), reward_names()


def _section(schema: type[BaseModel], name: str) -> type[BaseModel] | None:
    info = schema.model_fields.get(name)
    annotation = info.annotation if info else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def as_tuples(value: Any) -> Any:
    """Lists as tuples, which is what strict validation takes for them."""
    if isinstance(value, dict):
        return {k: as_tuples(v) for k, v in value.items()}
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of a run configuration, sections left out."""
    found: list[str] = []

    def walk(schema: type[BaseModel], prefix: str) -> None:
        for name in schema.model_fields:
            section = _section(schema, name)
            if section is None:
                found.append(prefix + name)
            else:
                walk(section, f"{prefix}{name}.")

    walk(RunConfig, "")
    return tuple(found)


@cache
def _sections() -> frozenset[str]:
    return frozenset(key.rpartition(".")[0] for key in known_keys()) - {""}


def is_section(dotted: str) -> bool:
    """Whether a dotted key has keys below it."""
    return dotted in _sections()


def check_value(dotted: str, value: Any, place: Place) -> None:
    """ConfigError where a setting cannot have this value, whatever others have."""
    layers = Layers()
    layers.set(dotted, value, place)
    parts = tuple(dotted.split("."))
    try:
        RunConfig.model_validate(as_tuples(layers.data))
    except ValidationError as error:
        own = [d for d in error.errors() if d["loc"][: len(parts)] == parts]
        if own:
            raise all_errors(layers._explain(own, as_tuples(layers.data))) from None


def check_key(dotted: str, place: Place) -> None:
    """ConfigError unless `dotted` is a field of the run configuration."""
    if is_section(dotted):
        inside = next(key for key in known_keys() if key.startswith(f"{dotted}."))
        raise ConfigError(
            f"is a section; set a key in it, such as {inside}", place=place, key=dotted
        )
    mapping = next((key for key in MAPPINGS if dotted.startswith(f"{key}.")), None)
    if mapping is not None:
        raise ConfigError(
            f"set {mapping} as a whole, {mapping}={{...}}; it replaces the one below",
            place=place,
            key=dotted,
        )
    if dotted not in known_keys():
        raise _unknown_key(dotted, place)


def _unknown_key(dotted: str, place: Place) -> ConfigError:
    keys = known_keys()
    outer, _, last = dotted.rpartition(".")
    sections = _sections()
    if outer in ("", "slurm") and (wish := slurm_wish(dotted, keys)):
        fix = f"did you mean {wish}? Write it below `slurm:` of a sweep"
    elif outer and last in sections | {key for key in keys if "." not in key}:
        fix = f"{last} stands at the margin, not below {outer}; indent it less"
    elif plain(dotted) in sections:
        fix = f"did you mean {plain(dotted)}?"
    else:
        near = nearest_setting(dotted, keys)
        section = difflib.get_close_matches(dotted, sections, n=1, cutoff=0.75)
        fix = f"did you mean {near or section[0]}?" if near or section else ""
        if near and not outer and "." in near and near.endswith(f".{last}"):
            fix += f" It stands below {near.rpartition('.')[0]}, indented"
    return ConfigError("unknown key", place=place, key=dotted, fix=fix)


def load_layers(path: Path) -> Layers:
    """A run configuration file and the chain of its bases, the deepest first."""
    chain: list[Document] = []
    seen: set[Path] = set()
    place = Place(str(path))
    while True:
        try:
            resolved, missing = path.resolve(), not path.exists()
        except (OSError, ValueError) as error:  # too long, or with a NUL in it
            message = f"{shown(str(path))}: is no path: {getattr(error, 'strerror', None) or error}"
            raise ConfigError(message, place=place if chain else None) from None
        if resolved in seen:
            raise ConfigError(f"{path} is its own base; break the circle", place=place, key="base")
        seen.add(resolved)
        if chain and missing:
            message = f"{path}: no such file{nearest_file(path)}"
            raise ConfigError(message, place=place, key="base")
        document = read_yaml(path)
        chain.append(document)
        if document.data.keys() & {"grid", "arms", "question"}:
            dash = "./" * document.file.startswith("-")
            raise ConfigError(
                "is a sweep file; run it with "
                f"{shlex.join(['python', '-m', 'harness.sweep', dash + document.file])}",
                place=document.place(),
            )
        base = document.data.pop("base", None)
        if base is None:
            break
        place = document.place(("base",))
        if not isinstance(base, str):
            message = f"expected the path of a file, not {shown(base)}"
            raise ConfigError(message, place=place, key="base")
        path = path.parent / base
    layers = Layers()
    for document in reversed(chain):
        layers.add(document.data, document)
    return layers


def add_overrides(layers: Layers, overrides: list[str]) -> None:
    """Lay `KEY=VALUE` texts of the command line on top; the value is read as YAML."""
    errors = ErrorList()
    for text in overrides:
        with errors.collected():
            key, value, place = read_override(text)
            layers.set(key, value, place)
    errors.raise_all()


def read_override(
    text: str, option: str = "--set", example: str = "window.interval=25"
) -> tuple[str, Any, Place]:
    """Key, value and place of a `KEY=VALUE` of the command line. ConfigError where it is none."""
    key, equals, value = text.partition("=")
    # What may hold a password is not repeated: the rest of an address, whatever is wrong with it.
    hidden = re.search("url|@|://", value, re.IGNORECASE)
    place = Place(f"{option} {shortened(f'{key}=...' if hidden else text)}")
    if not equals or not key.strip():
        raise ConfigError(f"expected KEY=VALUE, such as {example}", place=place)
    return key.strip(), parse_yaml(value, place), place


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The validated run configuration of a file, with overrides on top. Who runs what it names
    asks `mixgrpo.settings.trust` before."""
    layers = load_layers(path)
    add_overrides(layers, overrides or [])
    return layers.validate()


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML that `load_config` reads back to the same."""
    return dump_yaml(config.model_dump(mode="json"))


@contextmanager
def placed(layers: Layers) -> Iterator[None]:
    """Gives a ConfigError that begins with its setting the place of that."""
    try:
        yield
    except ConfigError as error:
        for one in (error, *error.errors):
            one.place = one.place or located(str(one), layers).place
        raise


def located(text: str, layers: Layers) -> ConfigError:
    """The error of this text, with the place of the setting that its first word names."""
    key = text.split()[0].rstrip(":")
    return ConfigError(text, place=layers.place(tuple(key.split("."))))
