"""Takes run folders out of a sweep, to a place from which they can be put back.

    runs/<sweep>/.trash/<date>-<time>/<run>

Each folder is moved by one rename, so that a crash leaves it in one of the two places. A stored
run is moved itself where no other sweep uses it (`harness.runs.store`), and otherwise the link to
it alone, as every link that leads out of the store.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable
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
    """What is moved where `folder` leads to a stored run; None where `folder` itself is."""
    keeps_link: bool = False
    """Whether the run is made anew where it was, for all that lead there."""

    @property
    def is_live(self) -> bool:
        return self.state == "running"

    def __str__(self) -> str:
        size = f"{size_text(self.size)}, " if self.size else ""
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.folder}: {size}{self.state}{remark}"


def look_at(
    folder: Path, queued: Collection[str] = (), remark: str = "", anew: bool = False
) -> Item:
    """What would be moved of one run. `queued`: names of the folders whose jobs wait in Slurm;
    `anew`: it is run again, for all sweeps that use it."""
    stored, runs_dir = None, folder.parent.parent
    if folder.is_symlink() or folder.is_file():
        stored = locate(folder).resolve()
        uses = [path.parent.name for path in links(runs_dir).get(stored, []) if path != folder]
        if stored.parent != (runs_dir / STORE).resolve() or (uses and not anew):
            why = f", which {' and '.join(sorted(set(uses)))} uses" if uses else ""
            words = f"a link to {os.path.relpath(stored, folder.parent)}{why}, which itself stays"
            return Item(folder, f"{words} where it is", 0, remark)
        if uses:
            remark = f"{', '.join(sorted(set(uses)))} uses it, too, and gets the new one"
    place = stored or folder
    done = newest_checkpoint(place)
    if lease.is_held(place / OWNER):
        state = "running"
    elif folder.name in queued:
        state = "queued"
    elif (place / RESULT).exists():
        state = "finished"
    else:
        state = f"unfinished, with a checkpoint of {done} iterations" if done else "unfinished"
    return Item(folder, state, size_of(place), remark, stored, anew)


def confirmed(items: list[Item], option: str, yes: bool) -> bool:
    """Say what is to be moved, and ask. ConfigError where nobody can be asked without `yes`."""
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
    """Move runs to a new folder of the trash, and say how to put them back: where they are made
    anew meanwhile, in place of the new ones.

    Running ones are stopped first, and queued ones are taken out of the queue by `cancel`. RunError
    for one that cannot be stopped; what was moved by then stays in the trash, the rest in place.
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
    place = _new_place(sweep_folder / TRASH)
    begin = time.monotonic()
    try:
        for item in items:
            patience = STOP_PATIENCE_S - (time.monotonic() - begin) if item.is_live else 1.0
            _move_one(item, place / item.folder.name, patience)
            say(f"moved {item.folder} to {place}")
    finally:
        flush(place)
        flush(sweep_folder)
        if not any(place.iterdir()):
            place.rmdir()
        else:
            for line in how_to_restore(place, items):
                say(line)
    return place


def how_to_restore(place: Path, items: Iterable[Item]) -> Iterable[str]:
    """The commands that put back what lies in a folder of the trash, and that free its space."""
    there = shlex.quote(str(place))
    anew = [item for item in items if item.keeps_link and (place / item.folder.name).exists()]
    if anew:
        steps = [f"mkdir {there}-new"]
        for item in anew:
            name, home = shlex.quote(item.folder.name), shlex.quote(str(item.stored or item.folder))
            steps += [f"mv {home} {there}-new/{name}", f"mv {there}/{name} {home}"]
        yield f"to put them back: {' && '.join(steps)}"
    else:
        yield f"to put them back: mv {there}/* {shlex.quote(str(place.parents[1]))}/"
    yield f"to free the space: rm -r {there}"


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, each once; links are not followed."""
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
    """Bytes as people say them: 512 bytes, 3.1 MB."""
    unit = 0
    while count >= 999.5 and unit + 1 < len(_UNITS):
        count, unit = count / 1000, unit + 1
    return f"{count:.{int(unit > 0 and count < 10)}f} {_UNITS[unit]}"


def _new_place(trash: Path) -> Path:
    trash.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        place = trash / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise RunError(f"{trash}: has a thousand folders of this second; remove some")


def _move_one(item: Item, target: Path, patience_s: float) -> None:
    if item.stored is None and (item.folder.is_symlink() or item.folder.is_file()):
        item.folder.rename(target)
        return
    run = item.stored or item.folder
    # Owning the run keeps a job from beginning in it while it is moved.
    owned = lease.acquire(run / OWNER, patience_s)
    if owned is None:
        raise RunError(
            f"{item.folder}: still runs and was not moved; it stops after its iteration: run the "
            "same command again then"
        )
    owned.ends_process = False
    try:
        run.rename(target)
        if item.stored is not None and not item.keeps_link:
            item.folder.unlink()
    finally:
        owned.release()
