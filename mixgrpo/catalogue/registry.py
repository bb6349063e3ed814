"""Finds models and rewards by name: the built-in ones, and others through entry points.

A package adds its own with an entry point in the group `mixgrpo.models` or `mixgrpo.rewards`
(docs/extending.md). Nothing is imported before it is asked for.
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
    """The object that `name` stands for; `path`, as `package.module:attribute`, says where it is.

    ConfigError where it is unknown, stands for several things, or cannot be imported.
    """
    point = _find(group, built_in, name, path)
    if name in built_in:
        return point.load()
    with _blamed(f"{name}: {_called(point, path)} fails"), imports_noted(point.value):
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
    """What `name` stands for, as `load` finds it, makes of these arguments and named options.

    ConfigError where it cannot be called so, saying what is `wanted` instead, and where it raises
    anything but this package's own errors, which stay as they are. What a built-in one raises
    stays, too.
    """
    named = options or {}
    maker = check(group, built_in, name, wanted, *arguments, path=path, options=named)
    if name in built_in:
        return maker(*arguments, **named)
    point = _find(group, built_in, name, path)
    given = ", ".join([*map(repr, arguments), *(f"{k}={v!r}" for k, v in named.items())])
    begin = f"{name}: {_called(point, path)}, called as ({given}), fails"
    with _blamed(begin), imports_noted(point.value):
        return maker(*arguments, **named)


def others(group: str, built_in: dict[str, str], name: str, path: str | None) -> EntryPoint | None:
    """What `load` would import for a name that is not built in, without importing it.

    None for a built-in one, and for what `load` refuses.
    """
    if name in built_in:
        return None
    if path is not None:
        return EntryPoint(name, path, group) if _PATH.fullmatch(path) else None
    found = {p.value: p for p in _points(group, tuple(sys.path)) if p.name == name}
    return next(iter(found.values())) if len(found) == 1 else None


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
    """What `make` would call, which is imported and not called. ConfigError as there."""
    maker = load(group, built_in, name, path)
    if name not in built_in and not _takes(maker, arguments, options or {}):
        point = _called(_find(group, built_in, name, path), path)
        raise ConfigError(f"{name}: {point} must be {wanted}")
    return maker


def _called(point: EntryPoint, path: str | None) -> str:
    return f"{path}" if path else f"its entry point {point.value}"


def _find(group: str, built_in: dict[str, str], name: str, path: str | None = None) -> EntryPoint:
    if path is not None:
        if name in built_in:
            raise ConfigError(f"{name}: is built in; give {path} another name")
        if not _PATH.fullmatch(path):
            raise ConfigError(f"{name}: {path} is not of the form package.module:Class")
        if is_standard(path):
            raise ConfigError(
                f"{name}: {path} is of Python's standard library, where no such class is; name "
                "a class of your own"
            )
        return EntryPoint(name, path, group)
    others = {p.value: p for p in entry_points(group=group, name=name)}
    if name in built_in and others:
        raise ConfigError(
            f"{name}: is built in, and an installed package has an entry point of the same name in "
            f"{group} ({', '.join(sorted(others))}); give that one another name"
        )
    if name in built_in:
        return EntryPoint(name, built_in[name], group)
    if len(others) > 1:
        raise ConfigError(
            f"{name}: stands for several entry points in {group} ({', '.join(sorted(others))}); "
            "give all but one another name"
        )
    if not others:
        known = ", ".join(names(group, built_in))
        raise ConfigError(
            f"{name}: not a name of {group}; known: {known}; other names come from installed "
            f"packages with an entry point in the group {group} (docs/extending.md)"
        )
    return next(iter(others.values()))


@contextmanager
def _blamed(begin: str) -> Iterator[None]:
    """Make one line of what is raised inside; errors for the user are that already."""
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
