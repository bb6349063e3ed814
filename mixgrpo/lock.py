"""Who owns a folder: a file lock that ends with its process, whatever ends the process.

Two kinds of owner use it: a launcher owns a sweep's folder, a job owns its run's folder. The lock
is advisory (flock) and the file stays; only the lock on it counts.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

_PROBE_PAUSE_S = 0.05


@dataclass
class Lock:
    """A lock that this process holds until `release` or its end."""

    path: Path
    descriptor: int

    def sign(self) -> None:
        """Write into the file who holds the lock, for those who find it held: this process.

        `acquire` does; a forked process that takes the lock over does so again.
        """
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        with contextlib.suppress(OSError):  # a full disk: the lock itself holds all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        # Closing, not unlocking: a forked process that still holds the file keeps the lock.
        os.close(self.descriptor)


def acquire(path: Path, patience_s: float = 1.0) -> Lock | None:
    """The lock on `path`, or None where another process holds it for longer than `patience_s`.

    The patience outlasts the moment for which `is_held` takes the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - begin > patience_s:
                os.close(descriptor)
                return None
            time.sleep(_PROBE_PAUSE_S)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            held = Lock(path, descriptor)
            held.sign()
            return held


def is_held(path: Path) -> bool:
    """Whether some process holds the lock on `path`. Writes nothing, creates nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # A shared lock for the blink of an eye: readers do not hinder each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(path: Path) -> str:
    """Who signed the lock last, in words."""
    try:
        signed = json.loads(path.read_text())
        since = time.strftime("%H:%M:%S", time.localtime(signed["since"]))
        return f"process {signed['pid']} on {signed['host']} (since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
