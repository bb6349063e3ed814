"""Finds modules as Python would, without importing any, and says what identifies their source.

Nothing here imports torch, so that thousands of runs are named in a moment.
"""

import ast
import hashlib
import importlib
import io
import os
import site
import sys
import sysconfig
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ModuleSpec,
    PathFinder,
    all_suffixes,
)
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

from mixgrpo.errors import UnidentifiedError

_BUILT_IN = frozenset({"mixgrpo", "harness"})


class _Found(NamedTuple):
    file: Path | None
    """None for a folder without __init__.py, which is a package too."""
    folders: tuple[Path, ...]
    """Where the modules in a package lie; () where it is no package."""


def digests(name: str) -> dict[str, str] | None:
    """The digests of a module's source and of what it takes from beside it, by module; {} for one
    of Python's or of this project's, None where there is no such module.

    These are the module itself; if it lies in a package, all files of that; and, of what is not
    installed, the modules that are imported from outside the standard library and the installed
    packages. Comments, blank lines, ends of lines and the place of the files do not count.

    Remembered while no file and no folder that was looked into changes: thousands of runs ask.
    """
    key = name, tuple(sys.path), Path.cwd()
    seen, found = _remembered.get(key, ({}, None))
    if not seen or any(_stamp(place) != stamp for place, stamp in seen.items()):
        seen = {place: _stamp(place) for place in (Path(entry).absolute() for entry in sys.path)}
        found = _digests(name, seen)
        _remembered[key] = seen, found
    return None if found is None else dict(found)


_Seen = dict[Path, tuple[int, int] | None]
"""Files and folders, each with its `_stamp` from before it was read."""

_remembered: dict[tuple[str, tuple[str, ...], Path], tuple[_Seen, dict[str, str] | None]] = {}


def _stamp(place: Path) -> tuple[int, int] | None:
    """What tells that a file or a folder's list of names was changed; None where there is none."""
    try:
        stat = place.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _digests(name: str, seen: _Seen) -> dict[str, str] | None:
    """`digests`, read anew; adds to `seen` what it looks into."""
    top = name.partition(".")[0]
    named = _find(name)
    if named is None:
        return {} if is_standard(name) else None
    if top in _BUILT_IN or is_standard(top):
        return {}
    installed = is_installed(top)
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        root = module.partition(".")[0]
        if module in found or root in _BUILT_IN:
            continue
        if root != top and (is_installed(root) or is_standard(root)):
            continue
        parent = module.rpartition(".")[0]
        waiting += [parent] if parent else []  # also of one that is not there yet
        place = _find(module)
        if place is None:
            continue
        for looked in (*place.folders, *([place.file, place.file.parent] if place.file else ())):
            seen.setdefault(looked, _stamp(looked))
        digest, imports = _read(place.file, module, bool(place.folders)) if place.file else ("", ())
        found[module] = digest, imports
        waiting += [] if installed else imports
    result = {module: digest for module, (digest, _) in found.items() if digest}
    package = name if named.folders else name.rpartition(".")[0]
    for module, file in _in_package(package, seen):
        if module not in result:
            seen[file] = _stamp(file)
            result[module] = _read(file, module, file.stem == "__init__")[0]
    return result


def _in_package(package: str, seen: _Seen) -> Iterator[tuple[str, Path]]:
    """Name and file of every module in a package and in those below it; none of a folder without
    __init__.py, which may hold anything. Adds the folders to `seen`."""
    place = _find(package) if package else None
    if place is None or place.file is None:
        return
    for folder in place.folders:
        for where, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith((".", "__pycache__"))]
            seen |= {place: _stamp(place) for place in (Path(where, name) for name in inner)}
            for name in names:
                file, suffix = Path(where, name), next(filter(name.endswith, _SOURCES), None)
                if suffix is None or name.startswith(".") or not file.is_file():
                    continue
                parts = [*file.relative_to(folder).parts[:-1], name.removesuffix(suffix)]
                yield ".".join([package, *(p for p in parts if p != "__init__")]), file


_SOURCES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES)


def file_of(module: str) -> Path | None:
    """The file of a module, all links followed; None where there is none."""
    place = _find(module)
    return place.file.resolve() if place and place.file else None


def is_standard(module: str) -> bool:
    """Whether a module is of Python's standard library, by where it lies: one's own `code.py`
    is not."""
    top = module.partition(":")[0].partition(".")[0]
    place = _find(top)
    if place is None:
        return top in sys.stdlib_module_names
    return not is_installed(top) and _lies_in(place, _standard())


def is_installed(module: str) -> bool:
    """Whether a module lies among the installed packages."""
    place = _find(module.partition(".")[0])
    return place is not None and _lies_in(place, _installed())


@cache
def _lies_in(place: "_Found", folders: tuple[Path, ...]) -> bool:
    files = [place.file] if place.file else place.folders
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


def _find(module: str) -> _Found | None:
    """Where a module lies, by its name with dots; None for none, and for one without a file."""
    top, *inner = module.split(".")
    path = tuple(folder for folder in sys.path if folder not in _added)
    found = _find_top(top, path, Path.cwd())
    if found is None or (found.file is not None and not found.file.exists()):
        # Files may be younger than what the finders remember of their folders.
        _find_top.cache_clear()
        importlib.invalidate_caches()
        found = _find_top(top, path, Path.cwd())
    for part in inner:
        if found is None:
            return None
        found = _find_in(found.folders, part)
    return found


@cache
def _find_top(name: str, path: tuple[str, ...], _cwd: Path) -> _Found | None:
    now, sys.path = sys.path, list(path)
    try:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
    finally:
        sys.path = now
    return _of_spec(spec) if spec is not None else None


def _of_spec(spec: ModuleSpec) -> _Found | None:
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = tuple(map(Path, spec.submodule_search_locations or ()))
    return _Found(file, folders) if file or folders else None


def _find_in(folders: tuple[Path, ...], name: str) -> _Found | None:
    bare = []
    for folder in folders:
        inner = folder / name
        if not folder.is_dir():  # in an archive
            spec = PathFinder.find_spec(name, [str(folder)])
            if spec is not None:
                return _of_spec(spec)
        for suffix in all_suffixes():
            if (file := inner / f"__init__{suffix}").is_file():
                return _Found(file, (inner,))
        for suffix in all_suffixes():
            if (file := folder / f"{name}{suffix}").is_file():
                return _Found(file, ())
        bare += [inner] if inner.is_dir() else []
    return _Found(None, tuple(bare)) if bare else None


# ---- What was imported ------------------------------------------------------------------------

_noted: dict[str, set[str]] = {}
_added: set[str] = set()
"""What code of the user's own has put on sys.path: nothing is identified by what is found there,
since whoever names the run does not run that code."""


@contextmanager
def imports_noted(value: str) -> Iterator[None]:
    """Remember which modules are first imported inside, where the code that `value` names runs."""
    before, path = set(sys.modules), set(sys.path)
    try:
        yield
    finally:
        _added.update(set(sys.path) - path)
        _noted.setdefault(value, set()).update(sys.modules.keys() - before)


def imported(value: str) -> dict[str, Path]:
    """Modules that the code which `value` names has imported so far, with their files: those that
    are not Python's, nor installed, nor of this project."""
    found = {}
    for name in sorted(_noted.get(value, ())):
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and top not in (*_BUILT_IN, "__main__", "__mp_main__"):
            # torch.ops and the like have a `__file__` that is no path: their package's counts too.
            files = (file, getattr(sys.modules.get(top), "__file__", None) or file)
            places = [_Found(Path(one), ()) for one in files]
            known = (_installed(), _standard())
            if not any(_lies_in(place, roots) for place in places for roots in known):
                found[name] = Path(file)
    return found


# ---- Reading source -----------------------------------------------------------------------------


def _read(file: Path, module: str, is_package: bool) -> tuple[str, tuple[str, ...]]:
    """A digest of a file, and the names of modules that it may import."""
    package = module if is_package else module.rpartition(".")[0]
    # What is imported from an archive has no file of its own: all of the archive counts.
    whole = next((place for place in (file, *file.parents) if place.is_file()), file)
    try:
        stat = whole.stat()
        return _read_once(file, whole, stat.st_mtime_ns, stat.st_size, package)
    except OSError as error:
        raise UnidentifiedError(f"{whole}: cannot be read: {error.strerror}") from None


@cache
def _read_once(
    file: Path, whole: Path, _mtime_ns: int, _size: int, package: str
) -> tuple[str, tuple[str, ...]]:
    content = whole.read_bytes()
    imports: tuple[str, ...] = ()
    if file.suffix in SOURCE_SUFFIXES:
        try:
            source = content if file == whole else _in_archive(whole, file)
            with warnings.catch_warnings():  # of what Python finds odd in it, its import warns
                warnings.simplefilter("ignore")
                imports = tuple(_imports(ast.parse(source), package))
            if file == whole:
                content = _without_comments(content)
        except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
            pass  # no Python: every byte counts
    return hashlib.sha256(content).hexdigest()[:16], imports


def _in_archive(archive: Path, file: Path) -> bytes:
    """A file of a zip archive. ValueError where it is not to be had."""
    try:
        with zipfile.ZipFile(archive) as members:
            return members.read(file.relative_to(archive).as_posix())
    except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ValueError(str(error)) from error


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of modules that a source may import, wherever in it; each may be none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module:
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):  # import_module("helper")
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                given = dict(zip(("name", "package"), node.args, strict=False))
                given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                said = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
                name, base = str(said.get("name", "")), str(said.get("package", package))
                if not name:  # it is computed
                    continue
                with suppress(ImportError):  # of more dots than there are packages
                    yield resolve_name(name, base) if name.startswith(".") else name


def _without_comments(source: bytes) -> bytes:
    """The lines of a source that hold code, without comments, ends of lines alike.

    By places in the text, not by tokens or trees: those are cut otherwise by other versions of
    Python, and the run must keep its name.
    """
    tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    encoding = tokens[0].string
    text = source.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    if "\r" in text:  # some take it for the end of a line, some do not
        return source
    lines = text.split("\n")
    for token in reversed(tokens):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
    empty = {token.start[0] - 1 for token in tokens if token.type == tokenize.NL}
    kept = [line for k, line in enumerate(lines) if not (k in empty and not line.strip())]
    return "\n".join(kept).rstrip("\n").encode("utf-8", "surrogatepass")
