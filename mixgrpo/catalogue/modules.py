"""Locates modules as Python would, without importing any, and notes which modules are imported.

Nothing here imports torch, so that thousands of runs are named in a moment.
"""

import importlib
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from pathlib import Path
from typing import NamedTuple

PROJECT = frozenset({"mixgrpo", "harness"})
"""The packages of this project."""


class Location(NamedTuple):
    """Where a module or a package lies."""

    file: Path | None
    """None for a folder without __init__.py, which is a package too."""
    folders: tuple[Path, ...]
    """Where the modules in a package lie; () where it is no package."""


def file_of(module: str) -> Path | None:
    """The file of a module, all links followed; None where there is none."""
    location = locate(module)
    return location.file.resolve() if location and location.file else None


def is_standard(module: str) -> bool:
    """Whether a module is of Python's standard library, by its location: a user's `code.py` is
    not."""
    top = module.partition(":")[0].partition(".")[0]
    location = locate(top)
    if location is None:
        return top in sys.stdlib_module_names
    return not is_installed(top) and _lies_in(location, _standard())


def is_installed(module: str) -> bool:
    """Whether a module lies among the installed packages."""
    location = locate(module.partition(".")[0])
    return location is not None and _lies_in(location, _installed())


@cache
def _lies_in(location: Location, folders: tuple[Path, ...]) -> bool:
    files = [location.file] if location.file else location.folders
    return any(file.resolve().is_relative_to(folder) for file in files for folder in folders)


@cache
def _installed() -> tuple[Path, ...]:
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    names += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(name).resolve() for name in names)


@cache
def _standard() -> tuple[Path, ...]:
    names = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return tuple(Path(name).resolve() for name in names)


def locate(module: str) -> Location | None:
    """The location of a module, by its dotted name; None for one that does not exist or has no
    file."""
    top, *inner = module.split(".")
    path = tuple(folder for folder in sys.path if folder not in _added)
    location = _locate_top(top, path, Path.cwd())
    if location is None or (location.file is not None and not location.file.exists()):
        # Python's finders may remember a folder's files from before this one was written.
        _locate_top.cache_clear()
        importlib.invalidate_caches()
        location = _locate_top(top, path, Path.cwd())
    for part in inner:
        if location is None:
            return None
        location = _locate_in(location.folders, part)
    return location


@cache
def _locate_top(name: str, path: tuple[str, ...], _cwd: Path) -> Location | None:
    now, sys.path = sys.path, list(path)
    try:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
    finally:
        sys.path = now
    return _spec_location(spec) if spec is not None else None


def _spec_location(spec: ModuleSpec) -> Location | None:
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = tuple(map(Path, spec.submodule_search_locations or ()))
    return Location(file, folders) if file or folders else None


def _locate_in(folders: tuple[Path, ...], name: str) -> Location | None:
    """The location of the module `name` in a package that lies in `folders`."""
    without_init = []
    for folder in folders:
        inner = folder / name
        if not folder.is_dir():  # in an archive
            spec = PathFinder.find_spec(name, [str(folder)])
            if spec is not None:
                return _spec_location(spec)
        for suffix in all_suffixes():
            if (file := inner / f"__init__{suffix}").is_file():
                return Location(file, (inner,))
        for suffix in all_suffixes():
            if (file := folder / f"{name}{suffix}").is_file():
                return Location(file, ())
        without_init += [inner] if inner.is_dir() else []
    return Location(None, tuple(without_init)) if without_init else None


# ---- What was imported ------------------------------------------------------------------------

_noted: dict[str, set[str]] = {}
"""Names of the modules that were first imported by the code that each import path names."""
_added: set[str] = set()
"""Folders that user code has put on sys.path. No module is located there: the command that names a
run does not execute that code, and must come to the same name."""


@contextmanager
def imports_noted(value: str) -> Iterator[None]:
    """Notes which modules are first imported within this context, in which the code that the import
    path `value` names is executed."""
    before, path = set(sys.modules), set(sys.path)
    try:
        yield
    finally:
        _added.update(set(sys.path) - path)
        _noted.setdefault(value, set()).update(sys.modules.keys() - before)


def imported(value: str) -> dict[str, Path]:
    """The modules noted so far for the import path `value`, with their files, without those of
    Python, of installed packages and of this project."""
    files = {}
    for name in sorted(_noted.get(value, ())):
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and top not in (*PROJECT, "__main__", "__mp_main__"):
            # The `__file__` of torch.ops and others is not a path: look at their package's, too.
            either = (file, getattr(sys.modules.get(top), "__file__", None) or file)
            known = (*_installed(), *_standard())
            if not any(_lies_in(Location(Path(one), ()), known) for one in either):
                files[name] = Path(file)
    return files
