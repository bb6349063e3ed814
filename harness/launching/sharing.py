"""What a launcher computes once for several runs: who waits for whom, what is kept, what is copied.

Decides from the run folders alone, each time anew (`harness.launching.trunk`): a run whose source
does not come any more gets another one, or starts from nothing. What is copied, and how, is
`harness.launching.adopt`.
"""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.launching.adopt import UnfitError, adopt_finished, fits_whole
from harness.launching.dispatch import Start
from harness.launching.lengths import OtherLength, other_lengths
from harness.launching.trunk import (
    Family,
    Trunk,
    families,
    may_start,
    needed,
    points,
    superfluous,
    trunks,
)
from harness.runs.codechange import accepting, of_other_code
from harness.runs.folder import checkpoints_of, close_killed
from harness.runs.records import Kept
from harness.runs.store import LIVE, RunState, look, sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.files import lease, manifest
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import RESULT, DamagedFileError, read
from mixgrpo.runs.folder import CHECKPOINTS, OWNER, claimed

KEPT = "kept.json"
"""Lists in a run's folder the checkpoints that are kept for other runs alone."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Sharing:
    """The runs of a launcher as parts of each other."""

    whole: Sweep
    """All runs of the sweep file."""
    runs_dir: Path
    queued: bool = False
    """Whether jobs wait in a queue before they begin, while other runs go on."""
    accept_other_code: bool = False
    """Whether a finished run that differs in the user's own code alone is taken for the same."""
    _others: dict[str, RunState] = field(default_factory=dict)
    """Runs that the launcher does not follow, as they were when it began."""
    _begun: set[str] = field(default_factory=set)
    """Runs that have something of their own, as was seen once."""
    _lengths: list[OtherLength] | None = None
    """Runs of other lengths that lay in the folder at the first plan, for those that start."""
    _not_from: dict[str, OtherLength] = field(default_factory=dict)
    """By folder name of a run that starts from zero, one that it might have started from."""

    def __post_init__(self) -> None:
        self.families = families(self.whole.runs)
        names = (member.name for family in self.families for member in family)
        self._with_kept = {name for name in names if (self.folder / name / KEPT).exists()}

    @property
    def folder(self) -> Path:
        return sweep_folder(self.whole, self.runs_dir)

    def plan(
        self, states: Sequence[RunState], comes: Callable[[RunState], bool]
    ) -> dict[str, Trunk]:
        """From where each run starts that has nothing yet, by its folder's name."""
        followed = {state.run.folder_name: state for state in states}
        starting = {name: state.run for name, state in followed.items() if may_start(state)}
        found: dict[str, Trunk] = {}
        for family in self._with_other_lengths(starting.values()):
            own = {m.name: followed[m.name] for m in family if m.name in followed}
            if not any(may_start(state) for state in own.values()):
                continue
            others = {m.name: self._other(m.run) for m in family if m.name not in own}
            # Those are no sources but by what lies in their folders, and start from nothing here.
            others = {name: state for name, state in others.items() if not may_start(state)}
            found |= trunks(
                family,
                own | others,
                lambda s: s.run.folder_name in followed and comes(s),
                _promised,
                self.queued,
            )
        self._not_from = {
            other.wanted.folder_name: other
            for other in self._lengths or ()
            if other.wanted.folder_name in starting and other.wanted.folder_name not in found
        }
        return {name: self._settled(trunk, followed) for name, trunk in found.items()}

    def _with_other_lengths(self, starting: Iterable[Run]) -> list[Family]:
        """The families, and in them the runs of other lengths from which these runs can start."""
        if self._lengths is None:
            self._lengths = other_lengths(self.whole, self.runs_dir, starting)
        others = {o.run.folder_name: o.run for o in self._lengths if not o.why_not}
        return families([*self.whole.runs, *others.values()]) if others else self.families

    def is_other_length(self, name: str) -> bool:
        """Whether a folder's name is that of a run of another length."""
        return any(name == other.run.folder_name for other in self._lengths or ())

    def why_from_zero(self) -> list[str]:
        """Why runs start from zero though runs of another length are there, a line for each reason,
        as of the last plan."""
        by_reason: dict[str, list[OtherLength]] = {}
        for other in self._not_from.values():
            why = other.why_not or "too few of their iterations are the same"
            by_reason.setdefault(why, []).append(other)
        return [
            f"{others[0].wanted.name}"
            + (f" and {len(others) - 1} more runs start" if len(others) > 1 else " starts")
            + f" from zero, not from {others[0].run.folder_name} with its "
            f"{others[0].run.config.iterations} iterations: {why}"
            for why, others in by_reason.items()
        ]

    def _other(self, run: Run) -> RunState:
        name = run.folder_name
        if name not in self._others:
            there = (self.folder / name).is_dir()
            self._others[name] = (
                look(self.whole, run, self.runs_dir)
                if there
                else RunState(run, self.folder / name, "waiting")
            )
        return self._others[name]

    def _settled(self, trunk: Trunk, followed: dict[str, RunState]) -> Trunk:
        """Not ready yet while the source still judges what it has reached: the lines of that are
        worth waiting for."""
        state = followed.get(trunk.source)
        if state is None or state.state != "running" or state.iteration > trunk.iterations:
            return trunk
        judges = trunk.iterations % state.run.config.evaluation.every == 0
        judges = judges or trunk.iterations == state.total
        return replace(trunk, ready=trunk.ready and not judges)

    def start(self, run: Run, folder: Path, found: dict[str, Trunk]) -> Start:
        """The start of a run: where from, and with what it keeps for others. Notes the latter."""
        # What it promised before counts too: others may be waiting for it, or queued to take it.
        kept = self._keep(folder, points(found).get(run.folder_name, set()))
        if kept:
            output = run.config.output
            output = output.model_copy(update={"keep": tuple(sorted({*output.keep, *kept}))})
            run = replace(run, config=run.config.model_copy(update={"output": output}))
        trunk = found.get(run.folder_name)
        if trunk is None or not trunk.ready:
            return Start(run, folder)
        source = self.folder / trunk.source
        if self.queued and not (source / RESULT).exists():
            self._keep(source, {trunk.iterations})  # it may go on before this run begins
        return Start(run, folder, source, trunk.iterations)

    def _keep(self, folder: Path, asked: set[int]) -> set[int]:
        """Note what a run keeps for others from now on. All of that."""
        kept = _read_kept(folder)
        if not asked <= kept:
            write_json(folder / KEPT, sorted(kept | asked))
        if asked:
            self._with_kept.add(folder.name)
        return kept | asked

    def release(self, states: Iterable[RunState]) -> None:
        """Remove the checkpoints that were kept for others and that nobody will start from."""
        if not self._with_kept:
            return
        followed = {state.run.folder_name: state for state in states}
        for family in self.families:
            sources = [member for member in family if member.name in self._with_kept]
            if not sources:
                continue
            unstarted = self._unstarted(family, followed)
            for member in sources:
                state = followed.get(member.name) or self._other(member.run)
                over = state.state == "finished"
                kept = _read_kept(state.folder)
                free = {m for m in kept if not needed(unstarted, member, m)}
                self._remove(state, free, over)
                if over and free == kept:
                    (state.folder / KEPT).unlink(missing_ok=True)
                    self._with_kept.discard(member.name)

    def _unstarted(self, family: Family, followed: dict[str, RunState]) -> list[tuple[str, str]]:
        """Path and name of the members that have nothing of their own yet, sorted."""
        found = []
        for member in family:
            if member.name in self._begun:
                continue
            state = followed.get(member.name)
            # Where it never began there is nothing to look for.
            if (state is not None and state.state == "waiting") or not self._has_begun(member.name):
                found.append((member.path, member.name))
            else:
                self._begun.add(member.name)
        return sorted(found)

    def _has_begun(self, name: str) -> bool:
        folder = self.folder / name
        return (folder / RESULT).exists() or bool(checkpoints_of(folder))

    def _remove(self, state: RunState, free: set[int], over: bool) -> None:
        output = state.run.config.output
        every, newest = output.checkpoint_every, output.checkpoints_kept
        free -= set(output.keep)
        present = checkpoints_of(state.folder)
        for m in superfluous(present, free, every, newest, state.total, over):
            root = state.folder / CHECKPOINTS
            shutil.rmtree(manifest.place_of(root, m), ignore_errors=True)

    def copy_finished(
        self,
        states: Iterable[RunState],
        say: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take over what is finished under another name. OSError for a full disk.

        `should_stop` is asked before every copy.
        """
        starting = [state for state in states if may_start(state)]
        found = finished_elsewhere(starting, self.runs_dir)
        others = finished_by_other_code(starting, self.runs_dir) if self.accept_other_code else {}
        for state in starting:
            name = state.run.folder_name
            source = found.get(name) or others.get(name)
            if source is None:
                continue
            if should_stop():
                return
            state.folder.mkdir(exist_ok=True)
            owner = lease.acquire(state.folder / OWNER)
            if owner is None:
                continue
            try:
                close_killed(state.folder)  # the copy's files are no sign of its life
                accepted = None if name in found else accepting(source, state.run)
                adopt_finished(state.folder, state.run.config, source, accepted)
                why = (
                    f"accepted though it changed: {accepted.changed}"
                    if accepted
                    else "the same run and finished"
                )
                say(f"{state.run.name}: copied from {source}, {why}")
            except (UnfitError, OSError) as error:
                # Another one's launcher may remove the source meanwhile.
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    raise
                say(f"{state.run.name}: not copied: {error}")
            finally:
                owner.release()


def finished_elsewhere(states: Sequence[RunState], runs_dir: Path) -> dict[str, Path]:
    """The folders of finished runs with the same hash as these, by the folders' names of these."""
    by_hash = {state.run.hash: state for state in states}
    found: dict[str, Path] = {}
    if not by_hash or not runs_dir.is_dir():
        return found
    for folder in _run_folders(runs_dir):
        state = by_hash.get(folder.name.rpartition("-")[2])
        if state is None or state.run.folder_name in found:
            continue
        if folder == state.folder or not fits_whole(folder, state.run.config, state.run.hash):
            continue
        found[state.run.folder_name] = folder
    return found


def finished_by_other_code(states: Sequence[RunState], runs_dir: Path) -> dict[str, Path]:
    """The folders of finished runs that differ from these in the user's own code alone, by the
    folders' names of these; of several the one that was finished last."""
    by_name = {state.run.folder_name: state for state in states}
    found: dict[str, Path] = {}
    if not by_name or not runs_dir.is_dir():
        return found
    runs = [state.run for state in states]
    for folder, name in of_other_code(_run_folders(runs_dir), runs).items():
        identity = claimed(folder)
        if identity is None or not fits_whole(folder, by_name[name].run.config, identity):
            continue
        before = found.get(name)
        if before is None or _when_finished(folder) > _when_finished(before):
            found[name] = folder
    return found


def _when_finished(folder: Path) -> float:
    return (folder / RESULT).stat().st_mtime


def _run_folders(runs_dir: Path) -> Iterator[Path]:
    """Everything that lies in the sweeps' folders, in the order of its names."""
    for sweep in sorted(place for place in runs_dir.iterdir() if place.is_dir()):
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            yield from sorted(sweep.iterdir())


def will_come(state: RunState) -> bool:
    """Whether a launcher would bring this run further, as far as can be foreseen."""
    return state.state in (*LIVE, "waiting", "stopped", "lost")


def _promised(state: RunState) -> set[int]:
    """The checkpoints that a run under way was told to leave, and its last one."""
    return {*_read_kept(state.folder), *state.run.config.output.keep, state.total}


def _read_kept(folder: Path) -> set[int]:
    try:
        kept = read(Kept, folder / KEPT)
    except DamagedFileError:
        return set()
    return kept.root if kept else set()
