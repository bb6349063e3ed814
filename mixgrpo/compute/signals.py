"""How commands hear SIGINT (Ctrl-C) and SIGTERM, whatever was set when they were started.

A shell script starts what it puts into the background with SIGINT ignored, and Python then installs
no handler. So every command installs one itself: by default one that raises `Interrupted`
(`mixgrpo.cli.run`), or one that only notes the signal, where work is to be finished first.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the command to end.

    No KeyboardInterrupt: that may be raised by code of users, and typer handles it itself.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


def exit_code(number: int) -> int:
    """130 for SIGINT, 143 for SIGTERM, as a shell has them."""
    return 128 + number


def ended_by_signal(code: int) -> bool:
    """Whether an exit code is that of a signal."""
    return code > 128


@contextmanager
def handling(handler: Callable[[int], None], numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """These signals call `handler` with their number and do nothing else.

    SIGHUP stays ignored where it was (nohup): its starter wants the command to outlive a terminal.
    Outside the main thread nothing is changed: no other may.
    """

    def called(number: int, _: FrameType | None) -> None:
        handler(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, called)
            for number in numbers
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
        }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def deadly() -> Iterator[None]:
    """SIGINT and SIGTERM end this process at once: where it waits in C, no handler is called."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def interrupt(number: int) -> NoReturn:
    """A handler that ends what runs by an exception."""
    raise Interrupted(number)


@contextmanager
def noted() -> Iterator[list[int]]:
    """The numbers of the signals that have come, for work that ends where it is ready to."""
    numbers: list[int] = []
    with handling(numbers.append):
        yield numbers


def pause(seconds: float, numbers: Sequence[int]) -> None:
    """Wait so long, or until a signal is noted in `numbers`."""
    end = time.monotonic() + seconds
    while not numbers and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))  # a handler that returns does not end a sleep


def end_at_once() -> None:
    """Let the signals end this process until a command handles them: while it is imported, which
    takes seconds, nothing has begun."""

    def end(number: int, _: FrameType | None) -> None:
        os.write(2, b"error: interrupted\n")
        os._exit(exit_code(number))

    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, end)
