"""What identifies the source of user code: digests of its modules and of what they import.

Nothing is imported. Comments, blank lines, line endings and the location of files do not count.
"""

import ast
import hashlib
import io
import os
import sys
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.util import resolve_name
from pathlib import Path

from mixgrpo.catalogue.modules import PROJECT, is_installed, is_standard, locate
from mixgrpo.errors import UnidentifiedError


def digests(name: str) -> dict[str, str] | None:
    """The digest of each module that the module `name` depends on, by dotted name.

    These are the module itself; if it lies in a package, all files of that package; and, unless it
    is installed, the modules that it imports, directly or not, from outside the standard library
    and the installed packages. {} for a module of Python or of this project, None where there is no
    such module. UnidentifiedError where a file cannot be read.

    The result is cached as long as no file and folder that was read has changed: thousands of runs
    ask for it.
    """
    key = name, tuple(sys.path), Path.cwd()
    stamps, result = _cached.get(key, ({}, None))
    if not stamps or any(_stamp(path) != stamp for path, stamp in stamps.items()):
        stamps = {path: _stamp(path) for path in (Path(entry).absolute() for entry in sys.path)}
        result = _digests(name, stamps)
        _cached[key] = stamps, result
    return None if result is None else dict(result)


_Stamps = dict[Path, tuple[int, int] | None]
"""Files and folders that were read, each with its `_stamp` from before."""

_cached: dict[tuple[str, tuple[str, ...], Path], tuple[_Stamps, dict[str, str] | None]] = {}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time of the last change in ns, and size; None where there is nothing at `path`."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _digests(name: str, stamps: _Stamps) -> dict[str, str] | None:
    """`digests` without the cache; adds to `stamps` every file and folder that it reads."""
    top = name.partition(".")[0]
    location = locate(name)
    if location is None:
        return {} if is_standard(name) else None
    if top in PROJECT or is_standard(top):
        return {}
    installed = is_installed(top)
    sources: dict[str, tuple[str, tuple[str, ...]]] = {}
    """Digest and imports of each module."""
    waiting = [name]
    while waiting:
        module = waiting.pop()
        root = module.partition(".")[0]
        if module in sources or root in PROJECT:
            continue
        if root != top and (is_installed(root) or is_standard(root)):
            continue
        parent = module.rpartition(".")[0]
        waiting += [parent] if parent else []  # also of a module that does not exist yet
        where = locate(module)
        if where is None:
            continue
        for path in (*where.folders, *([where.file, where.file.parent] if where.file else ())):
            stamps.setdefault(path, _stamp(path))
        digest, imports = _read(where.file, module, bool(where.folders)) if where.file else ("", ())
        sources[module] = digest, imports
        waiting += [] if installed else imports
    result = {module: digest for module, (digest, _) in sources.items() if digest}
    package = name if location.folders else name.rpartition(".")[0]
    for module, file in _in_package(package, stamps):
        if module not in result:
            stamps[file] = _stamp(file)
            result[module] = _read(file, module, file.stem == "__init__")[0]
    return result


def _in_package(package: str, stamps: _Stamps) -> Iterator[tuple[str, Path]]:
    """Name and file of every module in a package and in those below it; none for a folder without
    __init__.py, which may hold anything. Adds the folders to `stamps`."""
    location = locate(package) if package else None
    if location is None or location.file is None:
        return
    for folder in location.folders:
        for parent, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith((".", "__pycache__"))]
            stamps |= {path: _stamp(path) for path in (Path(parent, name) for name in inner)}
            for name in names:
                file, suffix = Path(parent, name), next(filter(name.endswith, _SUFFIXES), None)
                if suffix is None or name.startswith(".") or not file.is_file():
                    continue
                parts = [*file.relative_to(folder).parts[:-1], name.removesuffix(suffix)]
                yield ".".join([package, *(p for p in parts if p != "__init__")]), file


_SUFFIXES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES)


def _read(file: Path, module: str, is_package: bool) -> tuple[str, tuple[str, ...]]:
    """A digest of a file, and the names of modules that it may import."""
    package = module if is_package else module.rpartition(".")[0]
    # A module in an archive is not a file: all of the archive counts.
    whole = next((path for path in (file, *file.parents) if path.is_file()), file)
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
            with warnings.catch_warnings():  # the import warns of the same
                warnings.simplefilter("ignore")
                imports = tuple(_imports(ast.parse(source), package))
            if file == whole:
                content = _without_comments(content)
        except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
            pass  # not valid Python: every byte counts
    return hashlib.sha256(content).hexdigest()[:16], imports


def _in_archive(archive: Path, file: Path) -> bytes:
    """A file of a zip archive. ValueError where it cannot be read."""
    try:
        with zipfile.ZipFile(archive) as members:
            return members.read(file.relative_to(archive).as_posix())
    except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ValueError(str(error)) from error


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names that a source may import, anywhere in it; some may not be modules."""
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
                literal = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
                name, base = str(literal.get("name", "")), str(literal.get("package", package))
                if not name:  # it is computed
                    continue
                with suppress(ImportError):  # raised for more dots than there are packages
                    yield resolve_name(name, base) if name.startswith(".") else name


def _without_comments(source: bytes) -> bytes:
    """The lines of a source that hold code, without comments and with uniform line endings.

    Made from positions in the text, not from tokens or trees: these differ between versions of
    Python, and the run must keep its hash.
    """
    tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    encoding = tokens[0].string
    text = source.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    if "\r" in text:  # readers disagree whether it ends a line
        return source
    lines = text.split("\n")
    for token in reversed(tokens):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column].rstrip()
    empty = {token.start[0] - 1 for token in tokens if token.type == tokenize.NL}
    kept = [line for k, line in enumerate(lines) if not (k in empty and not line.strip())]
    return "\n".join(kept).rstrip("\n").encode("utf-8", "surrogatepass")
