"""Reads run configurations from YAML: bases, overrides, and errors that name file, line and key.

A configuration is built in layers (a base's base, its file, a profile, an arm, the command line).
Every value remembers the place it came from, so that an error can point there.
"""

import difflib
import re
import sys
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mixgrpo.config import MAPPINGS, RunConfig
from mixgrpo.errors import ConfigError
from mixgrpo.models import model_names
from mixgrpo.rewards import reward_names

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes for a number what YAML 1.2 does: 1e-4 is one, 4:00:00 is not."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)",
    "tag:yaml.org,2002:float": r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|(\d+\.?\d*|\.\d+)[eE][-+]?\d+"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^({_pattern})$"), list("-+0123456789."))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, plain data only. yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: makes plain data only


@dataclass(frozen=True)
class Document:
    """One YAML mapping with the line of each of its keys."""

    file: str
    data: dict[str, Any]
    lines: dict[Key, int]

    def place(self, key: Key = ()) -> str:
        """`file:line` of a key, or of the nearest enclosing one that is known."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.file}:{self.lines[key]}" if key else self.file


def read_yaml(path: Path) -> Document:
    """Read a YAML file that holds one mapping. ConfigError where that is not so."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not valid YAML: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    lines: dict[Key, int] = {}
    try:
        _record_lines(node, (), lines, str(path))
    except RecursionError:
        raise ConfigError(f"{path}: a value contains itself; write it out") from None
    return Document(str(path), data, lines)


def _record_lines(node: yaml.Node, key: Key, lines: dict[Key, int], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise ConfigError(f"{file}:{line}: a key must be a plain word")
            if name.value in seen:
                raise ConfigError(f"{file}:{line}: {name.value} is given twice; keep one")
            seen.add(name.value)
            lines[(*key, name.value)] = line
            _record_lines(value, (*key, name.value), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, index)] = item.start_mark.line + 1
            _record_lines(item, (*key, index), lines, file)


def _nearest_file(path: Path) -> str:
    siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


@dataclass
class Layers:
    """Settings on top of each other, each with the place that set it last."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def copy(self) -> "Layers":
        return Layers(_copy(self.data), dict(self.places))

    def add(self, settings: dict[str, Any], place: "str | Document", prefix: Key = ()) -> None:
        """Lay a mapping on top. `place` is a text, or the document that `prefix` points into."""
        self._merge(self.data, settings, (), RunConfig, place, prefix)

    def set(self, dotted: str, value: Any, place: str) -> None:
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
        place: "str | Document",
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
            self.places[here] = place if isinstance(place, str) else place.place((*prefix, *here))

    def place(self, key: Key) -> str:
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, "configuration")

    def validate(self, seed: int | None = None) -> RunConfig:
        """The run these settings describe. ConfigError names the place, the key and the mend."""
        data = self.data if seed is None else {**self.data, "seed": seed}
        model = data.get("model")
        if isinstance(model, dict) and isinstance(model.get("name"), str):
            # Before what the model's settings are judged by.
            self._check_name(("model", "name"), model["name"], _names(tuple(sys.path))[0])
        try:
            config = RunConfig.model_validate(as_tuples(data))
        except ValidationError as error:
            raise ConfigError(self._explain(error)) from None
        self._check_names(config)
        return config

    def _explain(self, error: ValidationError) -> str:
        first, *others = error.errors()
        # Errors about several keys at once have no key of their own: their text names the keys.
        key: Key = tuple(first["loc"])
        choices = [
            e["msg"] for e in others if e["loc"][:-1] == key[:-1] and e["input"] is first["input"]
        ]
        place = self.place(key) if key else _first_named_place(first["msg"], self)
        dotted = ".".join(str(part) for part in key)
        if first["type"] == "extra_forbidden":
            return f"{place}: {dotted}: unknown key{_nearest_key(dotted)}"
        if first["type"] in ("model_type", "dict_type"):
            return f"{place}: {dotted}: expected keys with values below it, not {first['input']!r}"
        if first["type"] == "tuple_type":
            return f"{place}: {dotted}: expected a list, such as [a, b], not {first['input']!r}"
        if first["type"] == "string_pattern_mismatch":
            return f"{place}: {'.'.join(map(str, key[:2]))}: {first['input']!r} is not a name"
        message = first["msg"].removeprefix("Value error, ")
        if choices:  # of which one would do: each choice has its own end of the key
            key = key[:-1]
            dotted = ".".join(str(part) for part in key)
            message = " or ".join(dict.fromkeys([message, *choices]))
        given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
        return f"{place}: {f'{dotted}: ' if dotted else ''}{message}{given}"

    def _check_names(self, config: RunConfig) -> None:
        _, rewards = _names(tuple(sys.path))
        for name in config.rewards.classes:
            if name in rewards:
                place = self.place(("rewards", "classes", name))
                raise ConfigError(
                    f"{place}: rewards.classes.{name}: is a reward's name already; give the class "
                    "another one"
                )
        rewards = [*rewards, *config.rewards.classes]
        for key, name, known in [
            *[(("rewards", "train"), n, rewards) for n in config.rewards.train],
            *[(("rewards", "held_out"), n, rewards) for n in config.rewards.held_out],
            *[(("rewards", "options"), n, rewards) for n in config.rewards.options],
        ]:
            self._check_name(key, name, known)

    def _check_name(self, key: Key, name: str, known: list[str]) -> None:
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{self.place(key)}: {'.'.join(map(str, key))}: no such name: {name}{hint} "
            f"(known: {', '.join(sorted(known))}; a package adds its own: docs/extending.md)"
        )


@lru_cache(maxsize=1)
def _names(_path: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The models and rewards there are, looked up once for many arms: `_path` is where packages
    that add their own are found."""
    return model_names(), reward_names()


def _first_named_place(message: str, layers: Layers) -> str:
    named = [w.strip(",;") for w in message.split() if "." in w]
    # A key that was set tells more than the section of one that was not.
    exact = [layers.places[key] for w in named if (key := tuple(w.split("."))) in layers.places]
    known = [*exact, *(layers.place(tuple(w.split("."))) for w in named)]
    return next((place for place in known if place != "configuration"), "configuration")


def _section(schema: type[BaseModel], name: str) -> type[BaseModel] | None:
    info = schema.model_fields.get(name)
    annotation = info.annotation if info else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


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


def check_key(dotted: str, place: str) -> None:
    """ConfigError unless `dotted` is a field of the run configuration."""
    keys = known_keys()
    if any(key.startswith(f"{dotted}.") for key in keys):
        inside = next(key for key in keys if key.startswith(f"{dotted}."))
        raise ConfigError(f"{place}: {dotted}: is a section; set a key in it, such as {inside}")
    mapping = next((key for key in MAPPINGS if dotted.startswith(f"{key}.")), None)
    if mapping is not None:
        raise ConfigError(
            f"{place}: {dotted}: set {mapping} as a whole, {mapping}={{...}}; it replaces the one "
            "below"
        )
    if dotted not in keys:
        raise ConfigError(f"{place}: {dotted}: unknown key{_nearest_key(dotted)}")


def _nearest_key(dotted: str) -> str:
    keys = known_keys()
    near = difflib.get_close_matches(dotted, keys, n=1, cutoff=0.5)
    if not near:  # the right name in the wrong section
        near = [k for k in keys if k.rsplit(".", 1)[-1] == dotted.rsplit(".", 1)[-1]]
    return f"; did you mean {near[0]}?" if near else ""


def load_layers(path: Path) -> Layers:
    """A run configuration file and the chain of its bases, the deepest first."""
    chain: list[Document] = []
    seen: set[Path] = set()
    place = str(path)
    while True:
        if path.resolve() in seen:
            raise ConfigError(f"{place}: base: {path} is its own base; break the circle")
        seen.add(path.resolve())
        if chain and not path.exists():
            raise ConfigError(f"{place}: base: {path}: no such file{_nearest_file(path)}")
        document = read_yaml(path)
        chain.append(document)
        if document.data.keys() & {"grid", "arms", "question"}:
            raise ConfigError(
                f"{document.file}: is a sweep file; run it with python -m harness.sweep"
            )
        base = document.data.pop("base", None)
        if base is None:
            break
        place = document.place(("base",))
        if not isinstance(base, str):
            raise ConfigError(f"{place}: base: expected the path of a file, not {base!r}")
        path = path.parent / base
    layers = Layers()
    for document in reversed(chain):
        layers.add(document.data, document)
    return layers


def add_overrides(layers: Layers, overrides: list[str]) -> None:
    """Lay `KEY=VALUE` texts of the command line on top; the value is read as YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as window.interval=25")
        try:
            parsed = parse_yaml(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"--set {text}: the value is not valid YAML") from None
        layers.set(key.strip(), parsed, f"--set {text}")


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The validated run configuration of a file, with overrides on top."""
    layers = load_layers(path)
    add_overrides(layers, overrides or [])
    return layers.validate()


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
