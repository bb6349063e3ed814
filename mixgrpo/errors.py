"""The two kinds of error a user meets, and the exit code of each.

Anything else that escapes is a defect of the program and keeps its traceback.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mixgrpo.text.escape import shortened


def shown(value: object) -> str:
    """A user's value as an error shows it: its repr, in one short line."""
    try:
        text = repr(_with_lists(value))
    except (ValueError, RecursionError):  # a number of more than 4300 digits, a deep nesting
        return f"a very large {type(value).__name__}"
    return shortened(text)


def _with_lists(value: object) -> object:
    """Tuples, which validation works with, as the lists that the user wrote."""
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(one) for one in value] if isinstance(value, tuple | list) else value


class Place(NamedTuple):
    """Where a setting was written: `run.yaml:3`, or `--set window.size=3`."""

    file: str
    """A file's path, or the option of the command line."""
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class ConfigError(Exception):
    """What the user wrote cannot be used. Exit code 2.

    Either one sentence, or its parts: `str` joins them as `FILE:LINE: KEY: message; fix`. A file
    with several errors is one exception with all of them as its `errors` (`all_errors`).
    """

    exit_code = 2

    def __init__(
        self, message: str, *, place: Place | None = None, key: str = "", fix: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.place, self.key, self.fix = message, place, key, fix

    @property
    def file(self) -> str | None:
        return self.place.file if self.place else None

    @property
    def line(self) -> int | None:
        return self.place.line if self.place else None

    @property
    def errors(self) -> tuple["ConfigError", ...]:
        """Every error, each of one sentence."""
        return (self,)

    @property
    def without_place(self) -> str:
        """`KEY: message; fix`."""
        text = f"{shortened(self.key)}: {self.message}" if self.key else self.message
        return f"{text}; {self.fix}" if self.fix else text

    def __str__(self) -> str:
        return f"{self.place}: {self.without_place}" if self.place else self.without_place


class _Several(ConfigError):
    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        first = errors[0]
        super().__init__(first.message, place=first.place, key=first.key, fix=first.fix)
        self._errors = errors

    @property
    def errors(self) -> tuple[ConfigError, ...]:
        return self._errors

    def __str__(self) -> str:
        more = len(self._errors) - 1
        return f"{super().__str__()} (and {more} more error{'s' if more > 1 else ''})"


def all_errors(errors: Iterable[ConfigError]) -> ConfigError:
    """One exception for all of these, of which there is at least one: each once, in the order of
    the files and their lines."""
    each = list({str(one): one for error in errors for one in error.errors}.values())
    files = list(dict.fromkeys(one.file for one in each))
    each.sort(key=lambda one: (files.index(one.file), one.line or 0))
    return each[0] if len(each) == 1 else _Several(tuple(each))


class ErrorList:
    """Collects errors, so that a file's are all said at once.

    with errors.collected(): check(...)    # goes on after a ConfigError
    errors.raise_all()
    """

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.errors.append(error)

    def raise_all(self) -> None:
        """ConfigError where there was one."""
        if self.errors:
            raise all_errors(self.errors) from None


class UnidentifiedError(ConfigError):
    """A run cannot be named here: a file that is part of its identity is not at hand."""


class RunError(Exception):
    """A run failed for a reason outside what the user wrote (disk, corrupt data). Exit code 1."""

    exit_code = 1


class RepeatableError(RunError):
    """A failure that running again repeats: a reward that raises, a number that is not finite."""


class CorruptCheckpointError(RunError):
    """A checkpoint that was to be read is not what was written, and no other one is taken."""

    def __init__(self, what: str, instead: str) -> None:
        """`what` is wrong; which checkpoint can be asked for `instead`."""
        super().__init__(f"{what}; {instead}")
        self.what = what
