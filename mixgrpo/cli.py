"""Runs a command line: errors as one line on stderr, and their exit codes.

2 for what the user wrote, 1 for what failed, 130 and 143 for SIGINT and SIGTERM. A defect
of the program keeps its traceback.
"""

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import typer

from mixgrpo.compute import signals
from mixgrpo.compute.foreign import exits_are_errors, owes, usable
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.text.escape import one_line, shortened, visible, without_passwords

TrustOption = Annotated[
    bool,
    typer.Option("--trust", help="Run code that files name which are not in the working folder."),
]


def run(command: Callable[..., Any], ranks: bool = False) -> None:
    """Run a typer command and end the process. `command` returns its exit code, or None for 0.

    `ranks`: the command may be one of several processes of a run, which all read the same; the
    first of them says what is wrong with it.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(guarded(command))
    run_app(app, ranks)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, in which ends of the process are errors: typer and click, which they would pass
    through, would take them for their own."""

    @functools.wraps(command)
    def called(*arguments: Any, **options: Any) -> Any:
        with exits_are_errors():
            return command(*arguments, **options)

    return called


def run_app(app: typer.Typer, ranks: bool = False) -> None:
    """`run`, of one or more commands of typer's."""
    owes(1)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(app, ranks)
    except SystemExit as end:
        owes(end.code if isinstance(end.code, int) else 1)
        raise


def _called(app: typer.Typer) -> Any:
    """What the command returns; Interrupted where a signal asked it to end."""
    heard: list[int] = []

    def interrupt(number: int) -> None:
        heard.append(number)
        signals.interrupt(number)

    try:
        with signals.handling(interrupt):
            return app(standalone_mode=False)
    except Exception:
        if heard:  # code in C makes an error of its own of what a handler raised
            raise signals.Interrupted(heard[0]) from None
        raise


def _run(app: typer.Typer, ranks: bool) -> None:
    try:
        code = _called(app)
    except ConfigError as error:
        if ranks and _follows():
            sys.exit(error.exit_code)
        _fail_all([str(one) for one in error.errors], error.exit_code)
    except RunError as error:
        fail(str(error), error.exit_code)
    except signals.Interrupted as interrupted:
        fail("interrupted", interrupted.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", signals.exit_code(signal.SIGINT))
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is left to say, also not at the last flush.
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        if not error.filename and error.errno in _NO_OUTPUT:  # a full disk, a terminal that is gone
            with contextlib.suppress(OSError):
                fail(f"the output cannot be written: {error.strerror}", 1)
            sys.stdout = None  # nothing is left to say, also not at the last flush
            sys.exit(1)
        # Disks and permissions; without a file's name it is a defect of the program.
        if not error.filename:
            raise
        if error.errno == errno.ENAMETOOLONG:
            fail(f"{shortened(str(error.filename))}: {error.strerror}; give a shorter name", 2)
        fail(f"{error.filename}: {error.strerror}", 1)
    except RuntimeError as error:
        # What `Path.resolve` makes of it before Python 3.13.
        cause = error.__context__
        if not (isinstance(cause, OSError) and cause.errno == errno.ELOOP):
            raise
        fail(f"{cause.filename}: a link that leads to itself; name another place", 2)
    except Exception as error:
        # Usage errors of click, which typer may carry inside itself: known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        fail(error.format_message().replace("Value error, ", ""), 2)
    sys.exit(code or 0)


_NO_OUTPUT = (errno.ENOSPC, errno.EIO, errno.EBADF)
"""What a standard output raises that takes nothing any more."""


def _follows() -> bool:
    """Whether this is one of several processes, and not the first
    (`mixgrpo.compute.ranks.join`)."""
    asked = os.environ
    several = "LOCAL_RANK" in asked and asked.get("WORLD_SIZE", "1") != "1"
    return several and asked.get("RANK", "0") != "0"


def fail(message: str, code: int) -> None:
    """Print `error: ...` and end the process with `code`."""
    _fail_all([message], code)


_MOST_ERRORS = 20


def _fail_all(messages: list[str], code: int) -> None:
    """Print a line `error: ...` for each, or for the first of very many, and end the process."""
    for message in messages[:_MOST_ERRORS]:
        say(f"error: {one_line(message)}", sys.stderr)
    if len(messages) > _MOST_ERRORS:
        print(f"error: and {len(messages) - _MOST_ERRORS} more errors", file=sys.stderr)
    sys.exit(code)


def say(text: object, to: TextIO | None = None) -> None:
    """Print a text of which users or runs wrote a part: nothing in it reaches the terminal as a
    control sequence, and no URL's password."""
    to = usable(sys.stdout, 1) if to is None else usable(to, 2)
    print(visible(without_passwords(str(text))), file=to, flush=True)


def warn(text: object) -> None:
    """`say`, on the standard error."""
    say(text, sys.stderr)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(without_passwords(super().format(record)))


def say_log(level: int) -> None:
    """From now on what is logged is a line on the standard error."""
    logging.basicConfig(level=level)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Plain("%(message)s"))


def say_warnings() -> None:
    """From now on every warning of this process is one line on the standard error."""
    warnings.showwarning = lambda message, *_: say(f"warning: {one_line(str(message))}", sys.stderr)
