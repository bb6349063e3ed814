"""Code of users and of packages that a run calls: rewards, models, optimizers, trackers.

It may raise anything, also what would end the process, and may change settings that all of the
process shares.
"""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from mixgrpo.compute.signals import ENDING, Interrupted
from mixgrpo.errors import RepeatableError

ENDS_THE_PROCESS = "code that a run calls must raise an exception, not end the process"


def in_words(error: BaseException) -> str:
    """An exception in one line, such as `ValueError: no such word`.

    What is no Exception, such as the SystemExit of `sys.exit(0)`, says little: the line that raised
    it is added.
    """
    try:
        message = str(error)
    except Exception:  # of one whose __str__ fails
        message = ""
    text = " ".join(f"{type(error).__name__}: {message}".split()).removesuffix(":")
    if isinstance(error, Exception):
        return text
    # wandb replaces `sys.exit` by a function, which is not the caller.
    wrapper = getattr(sys.exit, "__code__", None)
    passed_on = (__file__, os.execl.__code__.co_filename)
    places = [
        f" (raised in {frame.f_code.co_filename}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code is not wrapper and frame.f_code.co_filename not in passed_on
    ]
    return f"{text}{places[-1] if places else ''}; {ENDS_THE_PROCESS}"


@contextmanager
def exits_are_errors() -> Iterator[None]:
    """RepeatableError where what runs inside raises what would end the process without a word, as
    `sys.exit(0)` does: in a model, an optimizer, a thread that is waited for. `os._exit` and
    `os.execv`, which no handler hears, are made to raise it too. `exit` of C ends the process with
    1. The standard streams are others inside (`_stand_ins`)."""
    try:
        with hard_exits_raise(), _owing(), streams_stay():
            yield
    except (Exception, Interrupted):
        raise
    except BaseException as error:
        raise RepeatableError(in_words(error)) from error


_guarded = threading.local()
_hard_exit = os._exit


_owed: dict[int, int] = {}
"""By its process, the code that a command ends with: 1 until it is known."""


def _exit(code: int) -> NoReturn:
    """Stands for `os._exit`."""
    # A child that was forked ends as ever.
    if getattr(_guarded, "process", None) == os.getpid():
        raise SystemExit(code)
    if code % 256 == 0 and (owed := _owed.get(os.getpid(), 0)):
        thread = threading.current_thread().name
        text = f"error: os._exit({code}) was called in {thread}; {ENDS_THE_PROCESS}\n"
        os.write(2, text.encode(errors="replace"))
        code = owed
    _hard_exit(code)


def _never_returns(name: str) -> Callable[..., NoReturn]:
    """Stands for `os.execv` or `os.execve`, which put another program in this one's place."""
    real = getattr(os, name)

    def execute(path: Any, *rest: Any) -> NoReturn:
        said = f"os.{name}({path!r})"
        if getattr(_guarded, "process", None) == os.getpid():
            raise SystemExit(said)
        if owed := _owed.get(os.getpid(), 0):
            os.write(2, f"error: {said} was called; {ENDS_THE_PROCESS}\n".encode(errors="replace"))
            _hard_exit(owed)
        real(path, *rest)
        raise AssertionError  # it does not return

    return execute


_REPLACED = {"_exit": _exit, **{name: _never_returns(name) for name in ("execv", "execve")}}


def _replace() -> None:
    for name, function in _REPLACED.items():
        setattr(os, name, function)


def owes(code: int) -> None:
    """From now on `os._exit(0)`, in whatever thread or handler, ends this process with `code`."""
    _replace()
    _owed[os.getpid()] = code


@contextmanager
def _owing() -> Iterator[None]:
    """`owes(1)`, unless this process owes a code already."""
    process = os.getpid()
    before = _owed.get(process)
    owes(before or 1)
    try:
        yield
    finally:
        if before is None:
            _owed.pop(process, None)
        else:
            _owed[process] = before


@contextmanager
def hard_exits_raise() -> Iterator[None]:
    """`os._exit` and `os.execv` raise SystemExit in this thread of this process: they would end a
    run with the code of success. Where `_exit` is called from C, nothing helps."""
    _replace()
    before = getattr(_guarded, "process", None)
    _guarded.process = os.getpid()
    try:
        yield
    finally:
        _guarded.process = before


def _hear_signals() -> None:
    """In a process that such code forks, as multiprocessing does, signals do what they always do:
    with a handler of this command a worker would outlive its pool's `terminate`."""
    if getattr(_guarded, "forks", False):
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_hear_signals)


@contextmanager
def forks_end() -> Iterator[None]:
    """A process that was forked inside ends by signals, and where it comes out of this: it would
    write what its parent writes."""
    process, before = os.getpid(), getattr(_guarded, "forks", False)
    _guarded.forks = True
    try:
        yield
    finally:
        _guarded.forks = before
        if os.getpid() != process:
            os.write(2, b"error: code that a run calls forked a process which came back; it ends\n")
            _hard_exit(1)


@contextmanager
def stays() -> Iterator[None]:
    """The working directory, also one that was removed, the mode of new files (umask) and what
    `logging.disable` silences are the same afterwards, whatever runs inside."""
    before = os.open(".", os.O_RDONLY)
    umask, silenced = os.umask(0o077), logging.root.manager.disable
    os.umask(umask)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)
        os.umask(umask)
        logging.disable(silenced)


def usable(stream: Any, number: int) -> Any:
    """`stream`, or another one on the standard descriptor `number` where it was closed, or its
    buffer detached."""
    with suppress(ValueError):
        if not getattr(stream, "closed", False):
            return stream
    return open(number, "w", errors="backslashreplace", closefd=False)


def _stand_in(stream: Any) -> Any:
    """A stream on the same descriptor, which is not closed with it; `stream` where it has none."""
    try:
        stream.flush()
        return open(
            stream.fileno(),
            "w",
            encoding=stream.encoding,
            errors="backslashreplace",
            buffering=1,
            closefd=False,
        )
    except (AttributeError, OSError, ValueError):
        return stream


_STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")


@contextmanager
def streams_stay(to_stderr: bool = False) -> Iterator[None]:
    """The standard streams are the same afterwards, and open, though what runs inside wraps,
    replaces or closes those that it sees, which are others on the same descriptors. `to_stderr`:
    all on that of stderr, for stdout has what a command says, such as JSON."""
    before = {name: getattr(sys, name) for name in _STREAMS}
    shown = dict.fromkeys(_STREAMS, sys.stderr) if to_stderr else before
    given = {id(stream): _stand_in(stream) for stream in shown.values()}
    for name, stream in shown.items():
        setattr(sys, name, given[id(stream)])
    try:
        yield
    finally:
        for stream in given.values():
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        for name, stream in before.items():
            setattr(sys, name, stream)


@contextmanager
def settings_restored() -> Iterator[None]:
    """Whatever runs inside, the settings by which this process computes, warns and hears signals
    are the same afterwards. Other threads may see the changed ones until then.

    Restored are what `_torch_settings` lists, the filters of warnings, the handlers of signals, the
    standard streams and what `stays` keeps. Not: generators of random numbers, of which nothing
    here uses the global ones; the environment.
    """
    settings = [(get(), get, set_) for get, set_ in _torch_settings()]
    filters, show = list(warnings.filters), warnings.showwarning
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if main}
    try:
        with hard_exits_raise(), forks_end(), stays(), streams_stay(to_stderr=True):
            yield
    finally:
        for before, get, set_ in settings:
            if get() != before:
                set_(before)
        if warnings.filters != filters:
            warnings.filters[:] = filters  # type: ignore[index]  # a list, whatever its stub says
            warnings._filters_mutated()  # type: ignore[attr-defined]  # as `catch_warnings` does
        warnings.showwarning = show
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _torch_settings() -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How settings of torch that change what is computed are read and set."""
    import torch

    cudnn = torch.backends.cudnn

    def autocast(kind: str) -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def set_autocast(kind: str, state: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, state[0])
        torch.set_autocast_dtype(kind, state[1])

    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        # None, as it is at first, and the CPU are the same; a device set costs time in every call.
        (
            torch.get_default_device,
            lambda d: torch.set_default_device(None if d.type == "cpu" else d),
        ),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (lambda: cudnn.enabled, lambda value: setattr(cudnn, "enabled", value)),
        (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
        (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
        (
            lambda: torch.backends.mkldnn.enabled,
            lambda value: setattr(torch.backends.mkldnn, "enabled", value),
        ),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (lambda: autocast("cpu"), lambda state: set_autocast("cpu", state)),
        (lambda: autocast("cuda"), lambda state: set_autocast("cuda", state)),
    ]
