"""Settings in layers: each value with the place that set it, and errors that point there.

A configuration is built up from a base's base, its file, a profile, an arm and the command line.
"""

import difflib
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mixgrpo.catalogue.models import model_names
from mixgrpo.catalogue.rewards import reward_names
from mixgrpo.errors import ConfigError, ErrorList, Place, all_errors, shown
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.consistency import Conflict
from mixgrpo.settings.keys import check_key, known_keys, section_of, unknown_key
from mixgrpo.settings.yamlfile import Document, Key

NOWHERE = Place("configuration")
"""The place of a setting that no file sets, such as a default that does not fit."""


@dataclass
class Layers:
    """The settings of all layers so far, each with the place that set it last."""

    data: dict[str, Any] = field(default_factory=dict)
    """Nested settings by section and name."""
    places: dict[Key, Place] = field(default_factory=dict)
    """Where each setting, section, and entry of a mapping or list was set."""

    def copy(self) -> "Layers":
        return Layers(_copied(self.data), dict(self.places))

    def add(self, settings: dict[str, Any], place: Place | Document, prefix: Key = ()) -> None:
        """Lay a mapping on top. `place`: where all of it was set, or the document that has it below
        the key `prefix`."""
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
            section = section_of(schema, name)
            if section is not None and isinstance(value, dict):
                inner = into.get(name)
                if not isinstance(inner, dict):
                    inner = into[name] = {}
                self._merge(inner, value, here, section, place, prefix)
            else:
                into[name] = value
                self._record_entries(value, here, place, prefix)
            self.places[here] = place if isinstance(place, Place) else place.place((*prefix, *here))

    def _record_entries(self, value: Any, key: Key, place: Place | Document, prefix: Key) -> None:
        """Record the places of the entries of a setting that is a mapping or a list."""
        is_list = isinstance(value, list | tuple)
        names = value if isinstance(value, dict) else range(len(value)) if is_list else ()
        for name in names:
            here = (*key, name)
            self.places[here] = place if isinstance(place, Place) else place.place((*prefix, *here))
            self._record_entries(value[name], here, place, prefix)

    def place(self, key: Key) -> Place:
        """Where `key`, or else the nearest section around it, was set."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, NOWHERE)

    def validate(self, seed: int | None = None) -> RunConfig:
        """The run that these settings describe, with `seed` instead of theirs where it is given.

        ConfigError with every error that can be detected at once, each with place, key and fix.
        """
        data = self.data if seed is None else {**self.data, "seed": seed}
        errors = ErrorList()
        model = data.get("model")
        if isinstance(model, dict) and isinstance(model.get("name"), str):
            # First, since the checks of the model's other settings depend on its name.
            with errors.collected():
                self._check_name(("model", "name"), model["name"], _names(tuple(sys.path))[0])
        self._check_names(data.get("rewards"), errors)
        faulty = {key.partition(".")[0] for key in data if "." in key and key in known_keys()}
        faulty |= {"model" for one in errors.errors if one.key == "model.name"}
        config = self._parse(as_tuples(data), errors, frozenset(faulty))
        errors.raise_all()
        assert config is not None
        return config

    def _parse(
        self, data: dict[str, Any], errors: ErrorList, faulty: frozenset[str]
    ) -> RunConfig | None:
        """The configuration; its errors are added to `errors`.

        After an error it is parsed again without the faulty sections and unknown keys, so that
        errors elsewhere are reported too; conflicts that involve a faulty section are not, since
        they may follow from its errors. None where the remaining settings do not fit together.
        """
        try:
            return RunConfig.model_validate(data)
        except ValidationError as error:
            details = error.errors()
        errors.errors += self._explain(details, data, faulty)
        unknown = [d["loc"] for d in details if d["type"] == "extra_forbidden"]
        bad = {str(d["loc"][0]) for d in details if d["loc"] and d["loc"] not in unknown}
        if not bad and not unknown:
            return None
        rest = {key: value for key, value in _without(data, unknown).items() if key not in bad}
        return self._parse(rest, errors, faulty | bad)

    def _explain(
        self, details: list[ErrorDetails], data: dict[str, Any], faulty: Collection[str] = ()
    ) -> list[ConfigError]:
        """pydantic's errors as ours; without conflicts that involve a section in `faulty`."""
        explained = []
        while details:
            first, *details = details
            key: Key = tuple(first["loc"])
            # For a value that may have several types, pydantic reports one error per type, with the
            # type appended to the key.
            choices = []
            if key and _value_at(data, key[:-1]) is first["input"]:
                choices = [d for d in details if d["loc"][:-1] == key[:-1]]
            if choices:
                details = [d for d in details if d["loc"][: len(key) - 1] != key[:-1]]
                explained.append(self._error(key[:-1], _expectation(first, choices)))
            elif first["type"] == "value_error":
                error = first["ctx"]["error"]
                for one in error.conflicts if isinstance(error, Conflict) else [error]:
                    sections = {k.partition(".")[0] for k in getattr(one, "keys", ())}
                    if sections.isdisjoint(faulty):
                        explained.append(self._conflict(key, one))
            else:
                explained.append(self._simple(key, first))
        return explained

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
            return unknown_key(".".join(map(str, key)), self.place(key))
        if kind in ("model_type", "dict_type"):
            return self._error(key, f"expected keys with values below it, not {given}")
        if kind == "tuple_type":
            return self._error(key, f"expected a list, such as [a, b], not {given}")
        if kind == "string_pattern_mismatch":
            return self._error(key[:2], f"{given} is not a name")
        if key and key[-1] == "[key]":
            return self._error(key[:-1], f"{given} is not a name; a name is a text")
        return self._error(key, _expectation(error, []))

    def _conflict(self, key: Key, error: Exception) -> ConfigError:
        """A conflict, at the place of the first of its keys that was set."""
        if key or not isinstance(error, Conflict):
            return self._error(key, str(error))
        keys = [tuple(dotted.split(".")) for dotted in error.keys]
        # The place of a key is preferred to that of a section around another key.
        places = [self.places[one] for one in keys if one in self.places]
        places += [place for one in keys if (place := self.place(one)) != NOWHERE]
        return ConfigError(str(error), place=places[0] if places else NOWHERE)

    def _error(self, key: Key, message: str) -> ConfigError:
        return ConfigError(message, place=self.place(key), key=".".join(map(str, key)))

    def _check_names(self, given: Any, errors: ErrorList) -> None:
        """Add errors for names of rewards, whatever else is wrong with the section `rewards`."""
        given = given if isinstance(given, dict) else {}
        _, rewards = _names(tuple(sys.path))
        classes = given.get("classes")
        for name in classes if isinstance(classes, dict) else ():
            if name in rewards:
                key = ("rewards", "classes", name)
                message = "is a reward's name already; give the class another one"
                errors.errors.append(self._error(key, message))
        rewards = [*rewards, *(classes if isinstance(classes, dict) else ())]
        for setting in ("train", "held_out", "options"):
            names = given.get(setting)
            for name in names if isinstance(names, dict | list | tuple) else ():
                with errors.collected():
                    if isinstance(name, str) and re.match(r"[A-Za-z0-9][\w.-]*$", name):
                        self._check_name(("rewards", setting), name, rewards)

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


def _expectation(error: ErrorDetails, choices: list[ErrorDetails]) -> str:
    """What pydantic expected instead, with the other types that are allowed."""
    texts = [d["msg"].replace("Input should be", "expected") for d in (error, *choices)]
    return f"{' or '.join(dict.fromkeys(texts))}, not {shown(error['input'])}"


_MISSING = object()


def _value_at(data: Any, key: Key) -> Any:
    """The value of a nested key; _MISSING where there is none."""
    for part in key:
        try:
            data = data[part]
        except (LookupError, TypeError):
            return _MISSING
    return data


def _without(data: dict[str, Any], keys: list[Key]) -> dict[str, Any]:
    """A copy of nested settings without these keys."""
    copied: dict[str, Any] = _copied(data)
    for *outer, last in keys:
        inner: Any = copied
        for part in outer:
            inner = inner[part]
        del inner[last]
    return copied


@lru_cache(maxsize=1)
def _names(_path: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The names of all models and rewards, looked up once for many arms. `_path`: sys.path, where
    packages with further ones are installed."""
    return model_names(), reward_names()


def _copied(value: Any) -> Any:
    """Nested settings with new dicts, whose values are the same objects."""
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def as_tuples(value: Any) -> Any:
    """Nested settings with tuples for lists: strict validation takes no list for a tuple."""
    if isinstance(value, dict):
        return {k: as_tuples(v) for k, v in value.items()}
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value


def check_value(dotted: str, value: Any, place: Place) -> None:
    """ConfigError where a setting cannot have this value, whatever the other settings are."""
    layers = Layers()
    layers.set(dotted, value, place)
    parts = tuple(dotted.split("."))
    try:
        RunConfig.model_validate(as_tuples(layers.data))
    except ValidationError as error:
        details = [d for d in error.errors() if d["loc"][: len(parts)] == parts]
        if details:
            raise all_errors(layers._explain(details, as_tuples(layers.data))) from None
