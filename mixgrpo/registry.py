"""Finds models and rewards by name: the built-in ones, and others through entry points.

A package adds its own with an entry point in the group `mixgrpo.models` or `mixgrpo.rewards`
(docs/extending.md). Nothing is imported before it is asked for.
"""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError, RunError


def names(group: str, built_in: dict[str, str]) -> list[str]:
    """Every name known in `group`, built-in ones first."""
    return [*built_in, *(p.name for p in entry_points(group=group) if p.name not in built_in)]


def load(group: str, built_in: dict[str, str], name: str) -> Any:
    """The object that `name` stands for. ConfigError where it is unknown, stands for several
    things, or cannot be imported."""
    point = _find(group, built_in, name)
    if name in built_in:
        return point.load()
    with _blamed(f"{name}: its entry point {point.value} fails"):
        return point.load()


def make(group: str, built_in: dict[str, str], name: str, wanted: str, *arguments: Any) -> Any:
    """What the entry point `name` makes when it is called with `arguments`.

    ConfigError where it cannot be called so, saying what is `wanted` instead, and where it raises
    anything but this package's own errors, which stay as they are. What a built-in one raises
    stays, too.
    """
    maker = load(group, built_in, name)
    if name in built_in:
        return maker(*arguments)
    point = _find(group, built_in, name)
    if not _takes(maker, arguments):
        raise ConfigError(f"{name}: its entry point {point.value} must be {wanted}")
    given = ", ".join(map(repr, arguments))
    with _blamed(f"{name}: its entry point {point.value}, called as ({given}), fails"):
        return maker(*arguments)


def _find(group: str, built_in: dict[str, str], name: str) -> EntryPoint:
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
    except (ConfigError, RunError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise ConfigError(f"{begin}: {text}") from error


def _takes(maker: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether `maker` can be called with `arguments`, as far as its signature tells."""
    if not callable(maker):
        return False
    try:
        inspect.signature(maker).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # one of C's has no signature
        return True
    return True


def contents(file: Path) -> str:
    """The sha256 of a file, or "" where there is none; computed once while it stays the same."""
    try:
        stat = file.stat()
        return _sha256(file, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return ""


@cache
def _sha256(file: Path, mtime_ns: int, size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
