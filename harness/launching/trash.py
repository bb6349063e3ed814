"""Moves run folders of a sweep to its trash, from where they can be restored.

    runs/<sweep>/.trash/<date>-<time>/<run>

Each folder is moved by one rename, so a crash leaves it in one of the two locations. A stored run
(`harness.runs.store`) is moved if no other sweep uses it; otherwise only the link to it is moved,
as is any link that leads out of the store.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from harness.launching.launcher import STOP_PATIENCE_S
from harness.runs.folder import ask_to_stop, newest_checkpoint
from harness.runs.store import STORE, links
from mixgrpo.cli import say
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease
from mixgrpo.files.atomic import flush
from mixgrpo.files.records import RESULT
from mixgrpo.runs.folder import OWNER
from mixgrpo.runs.location import locate

TRASH = ".trash"
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Item:
    """A run folder that is to be moved."""

    folder: Path
    state: str
    """finished, unfinished, running, queued, or a link."""
    size: int
    """Bytes, of a link 0."""
    remark: str = ""
    stored: Path | None = None
    """The stored run to be moved, to which `folder` leads; None where `folder` itself is moved."""
    stays: bool = False
    """Whether another sweep uses it, so that it is not moved."""
    keeps_link: bool = False
    """Whether the run is computed again at the same location, for all sweeps that use it."""

    @property
    def is_live(self) -> bool:
        return self.state == "running"

    def __str__(self) -> str:
        size = f"{size_text(self.size)}, " if self.size else ""
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.folder}: {size}{self.state}{remark}"


def look_at(
    folder: Path,
    queued: Collection[str] = (),
    remark: str = "",
    again: bool = False,
    leading: Mapping[Path, list[Path]] | None = None,
) -> Item:
    """What would be moved for one run. `queued`: names of the folders whose jobs wait in Slurm.
    `again`: the run is computed again, for all sweeps that use it. `leading`: what `links` gives,
    where many runs are looked at."""
    stored, runs_dir = None, folder.parent.parent
    leading = links(runs_dir) if leading is None else leading
    if folder.is_symlink() or folder.is_file():
        stored = locate(folder).resolve()
        uses = [path.parent.name for path in leading.get(stored, []) if path != folder]
        if stored.parent != (runs_dir / STORE).resolve() or (uses and not again):
            users = f" (used by {' and '.join(sorted(set(uses)))})" if uses else ""
            target = os.path.relpath(stored, folder.parent)
            return Item(folder, f"a link to {target}{users}, which stays", 0, remark)
        if uses:
            remark = f"{', '.join(sorted(set(uses)))} uses it, too, and gets the new one"
    elif uses := [path.parent.name for path in leading.get(folder.resolve(), [])]:
        users = " and ".join(sorted(set(uses)))
        if not again:
            return Item(folder, f"used by {users}, stays", 0, remark, stays=True)
        remark = f"{users} uses it, too, and gets the new one"
    run = stored or folder
    done = newest_checkpoint(run)
    if lease.is_held(run / OWNER):
        state = "running"
    elif folder.name in queued:
        state = "queued"
    elif (run / RESULT).exists():
        state = "finished"
    else:
        state = f"unfinished, with a checkpoint of {done} iterations" if done else "unfinished"
    return Item(folder, state, size_of(run), remark, stored, keeps_link=again)


def confirmed(items: list[Item], option: str, yes: bool) -> bool:
    """Say what is to be moved, and ask unless `yes`. ConfigError without a terminal to ask on."""
    total = size_text(sum(item.size for item in items))
    say(f"{option} moves {len(items)} run(s), {total}, to {items[0].folder.parent / TRASH}:")
    for item in items:
        say(f"  {item}")
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            f"{option}: there is no terminal to ask on, so nothing was moved; add --yes to move "
            "these runs"
        )
    return typer.confirm("Move them?", default=False)


def move(
    items: list[Item],
    say: Callable[[str], None],
    cancel: Callable[[set[str]], set[str]],
) -> Path:
    """Move runs to a new folder of the trash, which is returned, and say how to restore them.

    Running ones are stopped first; queued ones are taken out of the queue by `cancel`. RunError for
    one that cannot be stopped; those that were moved before stay in the trash.
    """
    live = [item for item in items if item.is_live]
    ask_to_stop([item.folder for item in live])
    shared = cancel({item.folder.name for item in items if not item.is_live})
    if shared:
        raise RunError(
            f"{', '.join(sorted(shared))}: waits in one job with runs that stay; end all of them "
            "with --cancel first, or wait until that job is over"
        )
    sweep_folder = items[0].folder.parent
    trash = _new_folder(sweep_folder / TRASH)
    begin = time.monotonic()
    try:
        for item in items:
            patience = STOP_PATIENCE_S - (time.monotonic() - begin) if item.is_live else 1.0
            _move_one(item, trash / item.folder.name, patience)
            say(f"moved {item.folder} to {trash}")
    finally:
        flush(trash)
        flush(sweep_folder)
        if not any(trash.iterdir()):
            trash.rmdir()
        else:
            for line in how_to_restore(trash, items):
                say(line)
    return trash


def how_to_restore(trash: Path, items: Iterable[Item]) -> Iterable[str]:
    """The commands that restore the runs in a folder of the trash, and that free its space. A run
    that is computed again meanwhile is moved aside first."""
    there = shlex.quote(str(trash))
    again = [item for item in items if item.keeps_link and (trash / item.folder.name).exists()]
    if again:
        steps = [f"mkdir -p {there}-new"]
        for item in again:
            name, home = shlex.quote(item.folder.name), shlex.quote(str(item.stored or item.folder))
            aside = f"{{ [ ! -e {home} ] || mv {home} {there}-new/{name}; }}"
            steps += [aside, f"mv {there}/{name} {home}"]
        yield f"to put them back: {' && '.join(steps)}"
    else:
        yield f"to put them back: mv {there}/* {shlex.quote(str(trash.parents[1]))}/"
    yield f"to free the space: rm -r {there}"


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder. Hard links count once, symbolic links are not followed."""
    sizes = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                seen = os.lstat(f"{root}/{name}")
            except FileNotFoundError:  # replaced at this moment
                continue
            sizes[seen.st_dev, seen.st_ino] = seen.st_size
    return sum(sizes.values())


def size_text(count: float) -> str:
    """Bytes with a unit: 512 bytes, 3.1 MB."""
    unit = 0
    while count >= 999.5 and unit + 1 < len(_UNITS):
        count, unit = count / 1000, unit + 1
    return f"{count:.{int(unit > 0 and count < 10)}f} {_UNITS[unit]}"


def _new_folder(trash: Path) -> Path:
    trash.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = trash / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{trash}: has a thousand folders of this second; remove some")


def _move_one(item: Item, target: Path, patience_s: float) -> None:
    if item.stored is None and (item.folder.is_symlink() or item.folder.is_file()):
        item.folder.rename(target)
        return
    run = item.stored or item.folder
    # While the lease is held, no job begins in the run.
    held = lease.acquire(run / OWNER, patience_s)
    if held is None:
        raise RunError(
            f"{item.folder}: still runs and was not moved; it stops after its iteration: run the "
            "same command again then"
        )
    held.ends_process = False
    try:
        run.rename(target)
        if item.stored is not None and not item.keeps_link:
            item.folder.unlink()
    finally:
        held.release()
