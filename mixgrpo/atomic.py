"""Writes a file whole or not at all: the one helper through which every small file goes.

A reader sees the old content or the new one, also when the writer is killed or the disk is full.
"""

import json
import os
import re
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content` atomically. OSError leaves the old content as it was."""
    # The process id keeps two writers of one file from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` atomically, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Replace `path` with `data` as indented JSON. ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


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
