"""Finds models and rewards by name: the built-in ones, and others through entry points.

A package adds its own with an entry point in the group `mixgrpo.models` or `mixgrpo.rewards`.
Nothing is imported before it is asked for.
"""

import hashlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError


def names(group: str, built_in: dict[str, str]) -> list[str]:
    """Every name known in `group`, built-in ones first."""
    return [*built_in, *(p.name for p in entry_points(group=group) if p.name not in built_in)]


def load(group: str, built_in: dict[str, str], name: str) -> Any:
    """The object that `name` stands for. ConfigError where it is unknown or cannot be imported."""
    if name in built_in:
        return EntryPoint(name, built_in[name], group).load()
    found = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        known = ", ".join(names(group, built_in))
        raise ConfigError(f"{name}: not a name of {group}; known: {known}")
    try:
        return found.load()
    except Exception as error:
        raise ConfigError(f"{name}: its entry point {found.value} fails: {error}") from error


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
