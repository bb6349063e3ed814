"""The folder in which a run of a sweep is computed: found in the store, or made there.

What a launcher does before it starts a run: see whether the run is stored already, whichever sweep
asked for it; make its folder; find a run of another length from whose checkpoint it can go on.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from harness.launching.adopt import UnfitError, adopt_accepted
from harness.launching.dispatch import Start
from harness.launching.lengths import Beginning, beginnings
from harness.runs.codechange import accepting
from harness.runs.folder import checkpoints_of
from harness.runs.state import sweep_folder
from harness.runs.store import STORE, find_of_other_code, find_stored, link, links, stored_folder
from harness.study.spec import Run, Sweep
from mixgrpo.files.records import RESULT
from mixgrpo.runs.location import locate


class HasRuns(Protocol):
    """What says which runs there are."""

    @property
    def sweep(self) -> Sweep:
        """The runs there are now."""
        ...


class Folders:
    """The folders of the runs of one sweep."""

    def __init__(
        self,
        work: HasRuns,
        runs_dir: Path,
        say: Callable[[str], None],
        share: bool,
        accept_code_change: bool,
    ) -> None:
        """Without `share` every run is computed from its beginning, in the sweep's own folder. With
        `accept_code_change` a finished run that differs in the user's own code alone is taken for
        the same."""
        self.work, self.runs_dir, self.say = work, runs_dir, say
        self.share, self.accept_code_change = share, accept_code_change
        self._looked_for: set[str] = set()
        """Folder names of the runs that were looked for in the store and in other sweeps."""
        self._beginnings: dict[str, Beginning] | None = None
        """From which runs of other lengths runs start, by folder name; None before any start."""

    def take_stored(self, waiting: list[Run]) -> bool:
        """Link the runs that are there already, whichever sweep asked for them. Whether any was.

        Each run is looked for once.
        """
        if not self.share:
            return False
        new = {r.folder_name: r for r in waiting if r.folder_name not in self._looked_for}
        self._looked_for |= set(new)
        found = find_stored(new.values(), self.runs_dir)
        uses = links(self.runs_dir) if found else {}
        for name, folder in found.items():
            paths = uses.get(folder.resolve(), [folder])
            self._link(new[name], folder)
            self.say(f"{new[name].name}: the same run as {paths[0]}, which it shares")
        if self.accept_code_change:
            left = [run for name, run in new.items() if name not in found]
            for name, source in find_of_other_code(left, self.runs_dir).items():
                found |= {name: source} if self._accept(new[name], source) else {}
        return bool(found)

    def _accept(self, run: Run, source: Path) -> bool:
        """Take over a finished run of other code. Whether that went well."""
        accepted, folder = accepting(source, run), stored_folder(run, self.runs_dir)
        try:
            adopt_accepted(folder, run.config, source, accepted)
        except UnfitError as error:
            self.say(f"{run.name}: not copied: {error}")
            return False
        self._link(run, folder)
        self.say(
            f"{run.name}: copied from {source}, accepted though it changed: {accepted.changed}"
        )
        return True

    def _link(self, run: Run, folder: Path) -> Path:
        """Make a run's name in the sweep lead to a folder. The path to use it by."""
        path = self._folder() / run.folder_name
        link(path, folder.resolve())
        return locate(path)

    def make(self, run: Run) -> Path:
        """The folder of a run that is to be started, made where it is not there."""
        path = self._folder() / run.folder_name
        folder = locate(path)
        if folder.is_dir():
            return folder
        if folder != path or path.is_symlink():  # what it led to was moved to the trash (--rerun)
            folder.resolve().mkdir(parents=True, exist_ok=True)
            return folder
        if not self.share:
            path.mkdir()
            return path
        stored = stored_folder(run, self.runs_dir)
        stored.mkdir(parents=True, exist_ok=True)
        return self._link(run, stored)

    def start(self, run: Run, folder: Path) -> Start:
        """From where a run starts: a run of another length, where that has the same beginning."""
        store = self.runs_dir.resolve() / STORE if self.share else None
        start = Start(run, folder, self.work.sweep.name, store)
        if not self.share or checkpoints_of(folder):
            return start
        if self._beginnings is None:
            sweep = self.work.sweep
            new = (other for other in sweep.runs if self._is_new(other))
            self._beginnings, why_from_zero = beginnings(sweep, self.runs_dir, new)
            for text in why_from_zero:
                self.say(text)
        found = self._beginnings.get(start.name)
        if found is None:
            return start
        self.say(f"{run.name}: {found.text}")
        source = found.source.parent.resolve() / found.source.name
        return replace(start, source=source, source_iterations=found.iterations)

    def _is_new(self, run: Run) -> bool:
        """Whether a run has nothing of its own that it would continue from."""
        folder = locate(self._folder() / run.folder_name)
        return not ((folder / RESULT).exists() or checkpoints_of(folder))

    def _folder(self) -> Path:
        return sweep_folder(self.work.sweep, self.runs_dir).resolve()
