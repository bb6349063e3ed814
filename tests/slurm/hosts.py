"""Node names in /etc/hosts: one marked line per cluster, taken away with it."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Callable
from pathlib import Path

HOSTS = Path("/etc/hosts")
MARK = "# throw-away Slurm in "


def add_line(root: Path, names: list[str]) -> None:
    """Make the names resolve to this machine for as long as the cluster under `root` lives.

    The machine's own name is among them: Slurm binds to its address, and that must be loopback.
    Lines of clusters whose folder is gone are dropped on the way.
    """

    def change(lines: list[str]) -> list[str]:
        kept = [line for line in lines if MARK not in line or _folder(line).is_dir()]
        return [f"127.0.0.1 {' '.join([*names, socket.gethostname()])} {MARK}{root}", *kept]

    _rewrite(change)


def remove_line(root: Path) -> None:
    """Remove exactly the line of the cluster under `root`."""
    _rewrite(lambda lines: [line for line in lines if not line.endswith(f"{MARK}{root}")])


def _folder(line: str) -> Path:
    return Path(line.partition(MARK)[2])


def _rewrite(change: Callable[[list[str]], list[str]]) -> None:
    # In place and not by renaming: in a container the file is often a mount.
    with HOSTS.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        after = "".join(f"{line}\n" for line in change(before.splitlines()))
        if after != before:
            file.seek(0)
            file.write(after)
            file.truncate()
