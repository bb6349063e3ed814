"""Who owns a folder: a lease that ends with its process, on whatever machine that runs.

Two kinds of owner use it: a launcher owns a sweep's folder, a job owns its run's folder. There is
no server: a lease is a numbered file in a folder of its own, and the highest number owns.

* It is taken by creating the next number, which only one process can.
* Its owner holds a file lock on it (flock), which ends with the process, and touches it every now
  and then. On one machine the lock alone decides, at once. Where the file system has no locks, or
  does not carry them from one machine to another, the touches remain: an owner that has not touched
  its file for `PATIENCE_S`, by the clock of the one who watches, is taken to be dead. Only
  `is_held` compares the clocks of two machines.
* An owner that finds a higher number than its own, as one that was frozen for long does, ends its
  process before it writes anything else.
* An owner whose path does not lead to its lease any more owns what nobody finds: the folder was
  renamed, removed or replaced. It stops (`Lease.check`), and creates nothing in the old place:
  `acquire` makes the lease's own folder alone, never the one that it stands in.
* A lease that was given back has the modification time 0, which also a full disk can store.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixgrpo.errors import RunError

PATIENCE_S = float(os.environ.get("MIXGRPO_LEASE_SECONDS", "90"))
"""Longer than the caches of a network file system hide a touch (60 s)."""

TAKEN_OVER = 75
"""Exit code of a process whose lease another one took over (sysexits: temporary failure)."""

_PAUSE_S = 0.05
_LOOKS = 3
"""So many looks in a row must miss a file, for a network file system may hide one for a moment."""
_DIGITS = 6
_UNNAMED = ".new-"
_UNNAMED_S = 24 * 3600.0
_STALE = 10


def _machine() -> str:
    """What tells this kernel from another: within it, file locks are certain."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


MACHINE = _machine()


class FolderGoneError(RunError):
    """A folder was renamed, removed or replaced while this process owned it."""


@dataclass
class Lease:
    """A folder that this process owns until `release` or its end."""

    folder: Path
    number: int
    descriptor: int
    locked: bool
    ends_process: bool = True
    """Whether the process is ended where its folder is gone. An owner that calls `check` by itself
    all the time sets it to False."""
    _over: threading.Event = field(default_factory=threading.Event)
    _keeper: threading.Thread | None = None

    @property
    def path(self) -> Path:
        return self.folder / _name(self.number)

    def sign(self) -> None:
        """Say who the owner is: this process. `acquire` does; a forked process does so again."""
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": MACHINE,
            "locked": self.locked,
            "since": time.time(),
        }
        with contextlib.suppress(OSError):  # a full disk: the lease itself holds all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(owner).encode(), 0)

    def keep(self) -> None:
        """Touch the lease from now on, in a thread. `acquire` does; a forked process does again."""
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(self._over,), daemon=True)
        self._keeper.start()

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(PATIENCE_S / 9):
            if self.taken_over():
                print(
                    f"{self.folder.parent}: another process took over while this one gave no sign "
                    "of life; ending without writing anything",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(TAKEN_OVER)
            if self.ends_process and self.gone():
                print(f"error: {self._gone_error()}", file=sys.stderr, flush=True)
                os._exit(FolderGoneError.exit_code)
            with contextlib.suppress(OSError):  # a disk in trouble: the next touch may do
                os.utime(self.descriptor)

    def taken_over(self) -> bool:
        """Whether another process owns the folder now."""
        with contextlib.suppress(OSError):
            return _highest(self.folder) > self.number
        return False

    def gone(self) -> bool:
        """Whether the path leads to this lease no more, though nobody took over."""
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE_S)
            try:
                if self._is_in_place() or self.taken_over():
                    return False
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno != errno.ESTALE:  # a disk in trouble says nothing
                    return False
        return not self.taken_over()

    def _is_in_place(self) -> bool:
        """Whether the file under the lease's path is the one that this process holds. OSError where
        that cannot be seen."""
        there, own = self.path.stat(), os.fstat(self.descriptor)
        if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
            return True
        # A file system that was mounted anew has another device number, and the same owner.
        return there.st_ino == own.st_ino and self.path.read_bytes() == os.pread(
            self.descriptor, 4096, 0
        )

    def check(self) -> None:
        """FolderGoneError where the folder was renamed, removed or replaced."""
        if self.gone():
            raise self._gone_error()

    def _gone_error(self) -> FolderGoneError:
        return FolderGoneError(
            f"{self.folder.parent}: was renamed, removed or replaced while this process worked in "
            "it; nothing more is written there: put it back and run the same command again to "
            "continue from its newest checkpoint"
        )

    def now(self) -> float:
        """Seconds since the epoch by the clock of the folder's file system.

        All machines that see the folder share it, where their own clocks may be hours apart.
        """
        with contextlib.suppress(OSError):
            os.utime(self.descriptor)
            return os.fstat(self.descriptor).st_mtime
        return time.time()

    def release(self) -> None:
        """Give the lease back."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()  # or it might touch the file once more
        with contextlib.suppress(OSError):  # the end of the lock says it too, on this machine
            os.utime(self.descriptor, (0, 0))
        os.close(self.descriptor)


def acquire(folder: Path, patience_s: float = 1.0) -> Lease | None:
    """The lease in `folder`, which is made; None where an owner is alive after `patience_s`.

    Waits up to `PATIENCE_S` more where it takes that long to tell. FileNotFoundError where the
    folder that it stands in is not there.
    """
    folder.mkdir(exist_ok=True)
    watch, begin = Watch(), time.monotonic()
    while True:
        sign = _newest(folder)
        held = watch.judge(folder, sign)
        if held is False:
            # The number after the one that was judged: if another process was quicker, it is gone.
            lease = _take(folder, sign.number + 1 if sign else 1)
            if lease is not None:
                return lease
        elif held and time.monotonic() - begin > patience_s:
            return None
        time.sleep(_PAUSE_S)


def _take(folder: Path, number: int) -> Lease | None:
    """The lease of this number, unless another process was quicker.

    Why there is one owner at a time, whoever pauses wherever:

    * Only an owner removes numbers, and only lower ones than its own. So the highest number never
      falls, and a number is missing again only after a higher one was there.
    * Who creates a number and then sees no higher one is the first who ever created it: had it been
      there before, it would still be, or a higher one would. So a number has one owner at most.
      Who sees a higher one came late and does not own; its file is removed by the next owner.
    * A number is created only by a process that found the one before it the highest and free. That
      one's owner gave it back, or is dead, or sees that it was replaced when it wakes up: here, if
      it slept before its look, and in `Lease.keep` afterwards.
    """
    descriptor, name = tempfile.mkstemp(prefix=_UNNAMED, dir=folder)
    temporary = Path(name)
    try:
        # Locked and signed before it has its name: whoever sees it finds it held.
        lease = Lease(folder, number, descriptor, locked=_lock(descriptor, fcntl.LOCK_EX) is False)
        lease.sign()
        temporary.chmod(0o644)
        os.link(temporary, lease.path)
        first = _highest(folder) == number
    except (FileExistsError, FileNotFoundError):  # the latter: frozen for a day, and tidied away
        first = False
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if not first:
        os.close(descriptor)
        return None
    _tidy(lease)
    lease.keep()
    return lease


def _tidy(lease: Lease) -> None:
    """Remove earlier numbers, and what processes left that were killed while they took one."""
    now = os.fstat(lease.descriptor).st_mtime  # by the clock of the file system, like the others
    with contextlib.suppress(OSError), os.scandir(lease.folder) as entries:
        for entry in entries:
            if entry.name.isdigit():
                old = int(entry.name) < lease.number
            else:
                unnamed = entry.name.startswith(_UNNAMED)
                old = unnamed and now - entry.stat().st_mtime > _UNNAMED_S
            if old:
                Path(entry.path).unlink(missing_ok=True)


class Watch:
    """Judges whether leases are held, by what it has seen of them so far."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], float, bool]] = {}
        """Number and touch, since when by this process's clock, whether they were seen to move."""

    def holds(self, folder: Path) -> bool | None:
        """Whether the lease in `folder` is held; None where only waiting will tell.

        Writes nothing, creates nothing.
        """
        return self.judge(folder, _newest(folder))

    def judge(self, folder: Path, sign: "_Sign | None") -> bool | None:
        """`holds`, of what a look at the folder showed."""
        if sign is None or sign.released:
            return False
        if sign.locked:
            return True
        # A free lock says that the owner is dead if it had locked, and where this kernel sees it.
        # Its process id would say no more: it may be reused, or mean another in a container.
        owner = sign.owner
        if sign.locked is False and owner.get("locked") and owner.get("machine") == MACHINE:
            return False
        now, touch = time.monotonic(), (sign.number, sign.touched_ns)
        before = self._seen.get(folder)
        if before is None or before[0] != touch:
            moved = before is not None
            self._seen[folder] = (touch, now, moved)
            return True if moved else None
        if now - before[1] > PATIENCE_S:
            return False
        return True if before[2] else None


def is_held(folder: Path) -> bool:
    """Whether some process holds the lease in `folder`, as far as one look can tell.

    Where locks cannot tell, an owner counts as alive until its last touch is `_STALE` times
    `PATIENCE_S` old (15 minutes). Here, and only here, this machine's clock is held against that of
    the file system. If it is an hour ahead, a living owner counts as dead; if it is an hour behind,
    a dead one counts as alive for an hour longer. So the answer is for showing; who decides by it
    asks a `Watch`, again and again, or calls `acquire`. Writes nothing, creates nothing.
    """
    sign = _newest(folder)
    held = Watch().judge(folder, sign)
    if held is None and sign is not None:
        return time.time() - sign.touched_ns / 1e9 < _STALE * PATIENCE_S
    return bool(held)


def holder(folder: Path) -> str:
    """Who took the lease last, in words."""
    sign = _newest(folder)
    owner = sign.owner if sign else {}
    try:
        since = time.strftime("%H:%M:%S", time.localtime(owner["since"]))
        return f"process {owner['pid']} on {owner['host']} (since {since})"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "another process"


@dataclass(frozen=True)
class _Sign:
    """What one look at the newest lease of a folder shows."""

    number: int
    touched_ns: int
    locked: bool | None
    owner: dict[str, Any]

    @property
    def released(self) -> bool:
        return self.touched_ns == 0


def _newest(folder: Path) -> _Sign | None:
    while number := _highest(folder):
        try:
            # Opened, not only asked for its state: that is when a network file system looks anew.
            descriptor = os.open(folder / _name(number), os.O_RDONLY)
        except FileNotFoundError:
            continue  # taken over at this moment
        try:
            touched = os.fstat(descriptor).st_mtime_ns
            owner: dict[str, Any] = {}
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                owner = dict(json.loads(os.pread(descriptor, 4096, 0)))
            # A shared lock for the blink of an eye, on a file that nobody locks again.
            return _Sign(number, touched, _lock(descriptor, fcntl.LOCK_SH), owner)
        finally:
            os.close(descriptor)
    return None


def _lock(descriptor: int, kind: int) -> bool | None:
    """Lock a file, and say whether another holds it; None where the file system cannot tell."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return False


def _highest(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return max((int(e.name) for e in entries if e.name.isdigit()), default=0)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _name(number: int) -> str:
    return f"{number:0{_DIGITS}d}"
