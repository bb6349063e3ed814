"""Reads run configurations from YAML files with their bases, and from the command line.

`layers` lays them on top of each other and validates the result.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError, ErrorList, Place, shown
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.yamlfile import Document, dump_yaml, nearest_file, parse_yaml, read_yaml
from mixgrpo.text.escape import shortened


def load_layers(path: Path) -> Layers:
    """The settings of a run configuration file on top of those of its bases.

    ConfigError for a file that is missing, is invalid YAML, is a sweep file, or is its own base.
    """
    chain: list[Document] = []
    seen: set[Path] = set()
    place = Place(str(path))
    while True:
        try:
            resolved, missing = path.resolve(), not path.exists()
        except (OSError, ValueError) as error:  # too long, or with a NUL in it
            reason = getattr(error, "strerror", None) or error
            message = f"{shown(str(path))}: is not a path: {reason}"
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
    """Key, value and place of a `KEY=VALUE` of the command line. ConfigError for another form."""
    key, equals, value = text.partition("=")
    # What may hold a password is not repeated: the rest of an address, whatever is wrong with it.
    hidden = re.search("url|@|://", value, re.IGNORECASE)
    place = Place(f"{option} {shortened(f'{key}=...' if hidden else text)}")
    if not equals or not key.strip():
        raise ConfigError(f"expected KEY=VALUE, such as {example}", place=place)
    return key.strip(), parse_yaml(value, place), place


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The validated run configuration of a file, with overrides on top.

    Ask `mixgrpo.settings.trust` before running code that it names.
    """
    layers = load_layers(path)
    add_overrides(layers, overrides or [])
    return layers.validate()


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML, from which `load_config` makes an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


@contextmanager
def located_errors(layers: Layers) -> Iterator[None]:
    """Adds to a ConfigError whose first word is a setting the place where that was set."""
    try:
        yield
    except ConfigError as error:
        for one in (error, *error.errors):
            one.place = one.place or located_error(str(one), layers).place
        raise


def located_error(text: str, layers: Layers) -> ConfigError:
    """An error with this text, at the place of the setting that is its first word."""
    key = text.split()[0].rstrip(":")
    return ConfigError(text, place=layers.place(tuple(key.split("."))))
