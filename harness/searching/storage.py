"""Where the trials of a search are kept: a journal beside its runs, or any storage of Optuna's.

What fails in it is one line that names the storage, without a password.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "study.journal"
_DRIVERS = ("sqlalchemy", "redis", "grpc", "sqlite3", "psycopg", "psycopg2", "pymysql", "MySQLdb")
"""Packages whose errors are of a storage."""


class NoTrialsError(RunError):
    """The storage has no search of this name."""


def storage_file(folder: Path) -> Path:
    """The journal of a search in its folder of runs."""
    return folder / JOURNAL


def where(folder: Path, url: str | None) -> str:
    """The storage in words, without a password."""
    if url is None:
        return str(storage_file(folder))
    if not _is_url(url):
        return "(not a URL)"
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    # An @ that late ends a password with a question mark in it, or is part of one.
    return f"{scheme}://{'...' if '@' in query else place.rpartition('@')[2]}"


def _is_url(text: str) -> bool:
    return re.match(r"[\w.+-]+://", text) is not None


def check_url(url: str | None) -> None:
    """ConfigError for what is no URL; it is not repeated, for it may hold a password."""
    if url is not None and not _is_url(url):
        raise ConfigError(
            "--storage: is not a URL; write it such as sqlite:///trials.db or "
            "postgresql+psycopg://user@host/database"
        )


def open_storage(folder: Path, url: str | None, create: bool) -> "BaseStorage":
    """The storage at `url`, or the journal in `folder` where none is given.

    With `create` the search's lease is held, and what is missing is made. NoTrialsError where
    nothing is there and `create` is false, RunError where it cannot be opened, ConfigError where
    it is of a kind that is not known.
    """
    import optuna

    try:
        with quiet():
            if url is None:
                return _open_journal(storage_file(folder), create)
            if not create:
                _check_sqlite_file(url)
            return optuna.storages.get_storage(url)
    except RunError:
        raise
    except Exception as error:  # of SQLAlchemy, a driver, a server
        said = f"{_named(folder, url)}: cannot be opened: {_text(error)}"
        if url is None:
            raise RunError(f"{said}; is it writable, and is there room?") from None
        from sqlalchemy.exc import ArgumentError

        # A kind of database, or a driver, that is not known here.
        if isinstance(error, ArgumentError | ImportError | ValueError):
            fix = "name a database whose driver is installed, such as sqlite:///trials.db"
            raise ConfigError(f"{said}; {fix}") from None
        fix = "is the server up, the database made, and its driver installed?"
        raise RunError(f"{said}; {fix}") from None


@contextmanager
def reached(folder: Path, url: str | None) -> Iterator[None]:
    """Turns what fails in the storage into a RunError; without Optuna's warnings."""
    try:
        with quiet():
            yield
    except Exception as error:
        if not _of_storage(error):
            raise
        raise RunError(
            f"{_named(folder, url)}: {_text(error)}; nothing that ran is lost: fix it, and the "
            "same command continues"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log, and warnings such as that what is used here is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        yield


def _open_journal(file: Path, create: bool) -> "BaseStorage":
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if not create and not file.exists():
        raise NoTrialsError(f"{file}: is not there: the search has not begun")
    # Optuna's lock is a link to the path as it is given here: a relative one would lead nowhere.
    file = file.resolve()
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
        # One launcher at a time writes: a lock that is there now is a dead one's.
        for lock in file.parent.glob(f"{file.name}.lock*"):
            lock.unlink(missing_ok=True)
        _cut_last_line(file)
    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))


def _check_sqlite_file(url: str) -> None:
    """NoTrialsError where the file of a SQLite URL is not there: to open it would make it."""
    from sqlalchemy.engine import make_url

    if not url.startswith("sqlite"):
        return
    file = make_url(url).database
    if file and file != ":memory:" and not file.startswith("file:") and not Path(file).exists():
        raise NoTrialsError(f"{file}: is not there: the search has no trials yet")


def _cut_last_line(file: Path) -> None:
    """Remove a last line that a full disk or a kill cut short: the next would be glued to it."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _named(folder: Path, url: str | None) -> str:
    return where(folder, url) if url is None else f"--storage {where(folder, url)}"


def _of_storage(error: Exception) -> bool:
    import optuna

    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | optuna.exceptions.StorageInternalError) or (
        package in _DRIVERS
    )


def _text(error: BaseException) -> str:
    """The first line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error).__module__.startswith("optuna.") and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
