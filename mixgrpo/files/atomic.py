"""Writes a file whole or not at all: the one helper through which every small file goes.

A reader sees the old content or the new one, also when the writer is killed or the disk is full.
What is no regular file (a device, a pipe, `/dev/stdout`) is written through, never replaced.
"""

import contextlib
import errno
import json
import os
import re
import stat
import sys
import threading
from pathlib import Path
from typing import Any

_MOST_LINKS = 40
"""As the kernel has it: a longer chain of links is a loop."""


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` where `path` leads; links are followed.

    A regular file is replaced atomically and keeps its mode and owner; a new one gets those that
    the umask leaves. A device, a pipe or an open descriptor (/dev/stdout, /dev/fd/3) is written to.
    OSError, which names `path`, leaves the old content of a file as it was.
    """
    try:
        target, descriptor = followed(path)
        if descriptor is not None:
            _write_through(os.dup(descriptor), content)
            return
        old = _status(target)
        if old is None or stat.S_ISREG(old.st_mode):
            _replace(target, old, content)
        elif stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        else:
            # Without O_CREAT: the kernel refuses that for another user's pipe in a shared folder.
            _write_through(os.open(target, os.O_WRONLY | os.O_NOCTTY), content)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` atomically, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Replace `path` with `data` as indented JSON. ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def is_stream(path: Path) -> bool:
    """Whether `path` leads to what is written through: a device, a pipe, an open descriptor."""
    target, descriptor = followed(path)
    status = _status(target)
    return descriptor is not None or (
        status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
    )


def flush(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: Exception, path: Path) -> OSError | None:
    """The OSError (a full disk) that a library reports as mere text, `... (os error 28)`."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else None


def followed(path: Path) -> tuple[Path, int | None]:
    """What `path` leads to, and the number of this process's descriptor where it is one of those.

    The kernel shows an open descriptor as a link, too, but what it leads to may be a pipe without a
    name, or a file to which a shell appends.
    """
    own = Path("/proc") / str(os.getpid())
    for _ in range(_MOST_LINKS):
        folder = Path(os.path.realpath(path.parent))
        path = folder / path.name
        if folder.name == "fd" and folder.is_relative_to(own) and path.name.isdigit():
            return path, int(path.name)
        if not path.is_symlink():
            return path, None
        path = folder / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _status(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _write_through(descriptor: int, content: bytes) -> None:
    """Write to a descriptor and close it."""
    with os.fdopen(descriptor, "wb") as stream:
        for printed in (sys.stdout, sys.stderr):  # what was printed before comes before
            if printed is not None and not getattr(printed, "closed", False):
                printed.flush()
        stream.write(content)


def _replace(target: Path, old: os.stat_result | None, content: bytes) -> None:
    # The thread's id keeps two writers of one file from sharing a temporary file. A name has at
    # most 255 bytes.
    begin = os.fsdecode(os.fsencode(target.name)[:220])
    temporary = target.with_name(f".{begin}.{threading.get_native_id()}.tmp")
    try:
        with temporary.open("wb") as stream:
            if old is not None:
                with contextlib.suppress(OSError):  # not the owner
                    os.fchown(stream.fileno(), old.st_uid, old.st_gid)
                os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
