"""Processes by their recorded id, and all that belongs to one node of a throw-away Slurm."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def start_time(pid: int) -> str | None:
    """When a process started, in ticks since boot; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def record(file: Path, pid: int) -> None:
    """Write down a process so that no later one with the same id is taken for it."""
    file.write_text(f"{pid} {start_time(pid)}\n")


def recorded(file: Path) -> int | None:
    """The recorded process, where it still runs."""
    try:
        pid, started = file.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if start_time(int(pid)) == started else None


def kill(pids: set[int]) -> None:
    """SIGKILL, and return when they are gone (a zombie is gone)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(start_time(pid) for pid in pids):
        time.sleep(0.01)


def kill_node(log: Path, marks: set[bytes]) -> None:
    """SIGKILL a node's daemon, its steps, and every process of a job on it.

    The daemon and its steps are those that hold its log open. The processes of jobs are their
    descendants and those with all `marks` (entries `NAME=value`) in their environment.
    """
    daemons = {pid for pid in _all() if _holds(pid, log)}
    family = _descendants(daemons)
    # The steps first: they would report the death of their tasks to the controller.
    kill(daemons)
    while family:
        kill(family - {os.getpid()})
        family = {pid for pid in _all() if _holds(pid, log) or marks <= _environment(pid)}
        family |= _descendants(family)
        family.discard(os.getpid())


def _all() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _holds(pid: int, file: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(fd.readlink() == file for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _environment(pid: int) -> set[bytes]:
    with contextlib.suppress(OSError):
        if start_time(pid):
            return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return set()


def _descendants(pids: set[int]) -> set[int]:
    children: dict[int, set[int]] = {}
    for pid in _all():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(pid)
    found: set[int] = set()
    new = set(pids)
    while new:
        new = {child for pid in new for child in children.get(pid, ())} - found
        found |= new
    return found
