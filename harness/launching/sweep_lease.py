"""One launcher at a time works on a sweep: its lease, and how a second command waits for it."""

import time
from collections.abc import Callable
from pathlib import Path

from harness.launching.screen import Progress
from harness.runs.state import RunState, look_at_all, sweep_folder
from harness.slurm.scheduler import JobState
from harness.study.spec import Sweep
from mixgrpo.compute import signals
from mixgrpo.files import lease

LAUNCHER = "launcher"
"""The folder in a sweep's folder with the lease of its launcher."""
_PAUSE_S = 0.25


def take_lease(sweep: Sweep, runs_dir: Path, begin: bool = True) -> lease.Lease | None:
    """The sweep's lease, or None where another launcher holds it.

    With `begin` the sweep's folder is made; without, FileNotFoundError where it is not there.
    """
    folder = sweep_folder(sweep, runs_dir)
    if begin:
        folder.mkdir(parents=True, exist_ok=True)
    held = lease.acquire(folder / LAUNCHER)
    if held is not None:
        held.ends_process = False  # the launcher checks itself, and says what its jobs do
    return held


def lease_holder(sweep: Sweep, runs_dir: Path) -> str:
    """The process and machine that hold the sweep's lease, in words."""
    return lease.holder(sweep_folder(sweep, runs_dir) / LAUNCHER)


def wait_for_lease(
    now: Callable[[], Sweep],
    runs_dir: Path,
    progress: Progress,
    job_states: Callable[[], dict[str, JobState]],
) -> lease.Lease:
    """Follow the launcher that holds the sweep's lease until it ends, then take the lease.

    `now`: the sweep with the runs to show, which may become more.

    Interrupted after a signal. FolderGoneError where the sweep's folder was replaced meanwhile.
    """

    def look() -> list[RunState]:
        return look_at_all(now(), runs_dir, job_states())

    sweep = now()
    folder = sweep_folder(sweep, runs_dir)
    followed = _identity(folder)
    noted: list[int] = []
    progress.warnings(look())
    with signals.handling(noted.append, signals.ENDING):
        while True:
            same = followed is not None and _identity(folder) == followed
            try:
                held = take_lease(sweep, runs_dir, begin=False) if same else None
            except FileNotFoundError:  # renamed between the two
                same, held = False, None
            if not same:
                raise lease.FolderGoneError(
                    f"{folder}: was renamed, removed or replaced while this command followed it; "
                    "nothing was started: put it back and run the same command again to continue, "
                    "or run it without the folder to start again"
                )
            if held is not None:
                break
            if noted:
                raise signals.Interrupted(noted[0])
            progress.update(look, None)
            time.sleep(_PAUSE_S)
    progress.warnings(look())
    return held


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None where it does not exist."""
    try:
        seen = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return seen.st_dev, seen.st_ino
