"""Opens files that a user names: no pipe is waited for, no device is read, none takes all memory.

The process's own open files (`/dev/stdin`, `<(command)`) may be pipes: somebody writes to them.
"""

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path

NOT_REGULAR = "is a pipe, a socket or a device, not a regular file"

_OWN = re.compile(r"/dev/(stdin|fd/\d+)|/proc/self/fd/\d+")

_streams: dict[str, bytes] = {}
"""What was read of the process's own pipes, which can be read only once."""


def is_there(path: Path | str) -> bool:
    """Whether there is something of this name. Not where the name is too long for a file system,
    for which `Path.exists` raises OSError before Python 3.14; likewise the others."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path | str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path | str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def is_own_stream(path: Path) -> bool:
    """Whether this names one of the process's own open files, and that is no regular one."""
    return bool(_OWN.fullmatch(str(path))) and not path.is_file()


def open_regular(path: Path | str) -> BufferedReader:
    """A regular file, links followed, to be read. OSError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """What a regular file, or one of the process's own open files, holds. OSError for anything
    else, and with EFBIG for more than `most` bytes."""
    name = str(path)
    if name in _streams:
        return _streams[name]
    own = is_own_stream(path)
    with path.open("rb") if own else open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > most else stream.read(most + 1)
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes", name)
    if own:
        _streams[name] = content
    return content
