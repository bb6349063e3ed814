"""Imports models and rewards by name: the built-in ones, and others through entry points.

Another package adds one with an entry point in the group `mixgrpo.models` or `mixgrpo.rewards`
(docs/extending.md). Nothing is imported before it is used.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from mixgrpo.catalogue.modules import imports_noted, is_standard
from mixgrpo.compute.foreign import in_words, stays
from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError, RunError

_PATH = re.compile(r"[\w.]+:[\w.]+")


def names(group: str, built_in: dict[str, str]) -> list[str]:
    """Every name known in `group`, built-in ones first."""
    return [*built_in, *(p.name for p in entry_points(group=group) if p.name not in built_in)]


@stays()
def load(group: str, built_in: dict[str, str], name: str, path: str | None = None) -> Any:
    """The object that `name` stands for. `path`: its import path `package.module:attribute`, for a
    name that is not registered.

    ConfigError where the name is unknown or ambiguous, or its object cannot be imported.
    """
    point = _find(group, built_in, name, path)
    if name in built_in:
        return point.load()
    with _one_line_errors(f"{name}: {_in_words(point, path)} fails"), imports_noted(point.value):
        return point.load()


@stays()
def make(
    group: str,
    built_in: dict[str, str],
    name: str,
    wanted: str,
    *arguments: Any,
    path: str | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """Calls what `name` stands for (`load`) with these arguments and named options.

    ConfigError where it cannot be called like this, saying that it must be `wanted`; and where it
    raises something else than this package's errors. Errors of built-in objects are not changed.
    """
    named = options or {}
    maker = check(group, built_in, name, wanted, *arguments, path=path, options=named)
    if name in built_in:
        return maker(*arguments, **named)
    point = _find(group, built_in, name, path)
    given = ", ".join([*map(repr, arguments), *(f"{k}={v!r}" for k, v in named.items())])
    begin = f"{name}: {_in_words(point, path)}, called as ({given}), fails"
    with _one_line_errors(begin), imports_noted(point.value):
        return maker(*arguments, **named)


def external(
    group: str, built_in: dict[str, str], name: str, path: str | None
) -> EntryPoint | None:
    """The entry point that `load` would import for a name that is not built in, not imported.

    None for a built-in name, and for one that `load` refuses.
    """
    if name in built_in:
        return None
    if path is not None:
        return EntryPoint(name, path, group) if _PATH.fullmatch(path) else None
    points = {p.value: p for p in _points(group, tuple(sys.path)) if p.name == name}
    return next(iter(points.values())) if len(points) == 1 else None


@lru_cache(maxsize=8)
def _points(group: str, _path: tuple[str, ...]) -> EntryPoints:
    """The entry points of a group, looked up once for many runs."""
    return entry_points(group=group)


def check(
    group: str,
    built_in: dict[str, str],
    name: str,
    wanted: str,
    *arguments: Any,
    path: str | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """The object that `make` would call: imported, not called. ConfigError as for `make`."""
    maker = load(group, built_in, name, path)
    if name not in built_in and not _takes(maker, arguments, options or {}):
        point = _in_words(_find(group, built_in, name, path), path)
        raise ConfigError(f"{name}: {point} must be {wanted}")
    return maker


def _in_words(point: EntryPoint, path: str | None) -> str:
    return f"{path}" if path else f"its entry point {point.value}"


def _find(group: str, built_in: dict[str, str], name: str, path: str | None = None) -> EntryPoint:
    if path is not None:
        if name in built_in:
            raise ConfigError(f"{name}: is built in; give {path} another name")
        if not _PATH.fullmatch(path):
            raise ConfigError(f"{name}: {path} is not of the form package.module:Class")
        if is_standard(path):
            raise ConfigError(
                f"{name}: {path} is in Python's standard library, which has no such class; name "
                "a class of your code"
            )
        return EntryPoint(name, path, group)
    points = {p.value: p for p in entry_points(group=group, name=name)}
    if name in built_in and points:
        raise ConfigError(
            f"{name}: is built in, and an installed package has an entry point of the same name in "
            f"{group} ({', '.join(sorted(points))}); give that one another name"
        )
    if name in built_in:
        return EntryPoint(name, built_in[name], group)
    if len(points) > 1:
        raise ConfigError(
            f"{name}: stands for several entry points in {group} ({', '.join(sorted(points))}); "
            "give all but one another name"
        )
    if not points:
        known = ", ".join(names(group, built_in))
        raise ConfigError(
            f"{name}: not a name of {group}; known: {known}; other names come from installed "
            f"packages with an entry point in the group {group} (docs/extending.md)"
        )
    return next(iter(points.values()))


@contextmanager
def _one_line_errors(begin: str) -> Iterator[None]:
    """Turns what is raised inside into a ConfigError of one line; this package's errors, which are
    that already, pass."""
    try:
        yield
    except (ConfigError, RunError, Interrupted):
        raise
    except BaseException as error:  # sys.exit of a module that is a script, too
        raise ConfigError(f"{begin}: {in_words(error)}") from error


def _takes(maker: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether `maker` can be called with these, as far as its signature tells."""
    if not callable(maker):
        return False
    try:
        inspect.signature(maker).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:  # one of C's has no signature
        return True
    return True
