"""The folders in which the runs of a sweep are computed.

Before a launcher starts a run, it checks whether the run is stored already, whichever sweep asked
for it, makes its folder, and looks for a run of another length whose checkpoint it can start from.
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
from mixgrpo.files.records import RESULT, DamagedFileError
from mixgrpo.runs.location import locate


class HasRuns(Protocol):
    """Something that knows which runs there are."""

    @property
    def sweep(self) -> Sweep:
        """The runs at the moment; a search adds some later."""
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
        """Without `share` every run is computed from its beginning, in the sweep's folder. With
        `accept_code_change` a finished run that differs only in the user's own code is accepted as
        the same."""
        self.work, self.runs_dir, self.say = work, runs_dir, say
        self.share, self.accept_code_change = share, accept_code_change
        self._looked_up: set[str] = set()
        """Folder names of the runs that were looked up in the store and in other sweeps."""
        self._beginnings: dict[str, Beginning] | None = None
        """The checkpoints that runs start from, by folder name; None before the first start."""

    def take_stored(self, waiting: list[Run]) -> bool:
        """Link the runs that exist already, whichever sweep asked for them. Whether any did.

        Each run is looked up once.
        """
        if not self.share:
            return False
        new = {r.folder_name: r for r in waiting if r.folder_name not in self._looked_up}
        self._looked_up |= set(new)
        stored = find_stored(new.values(), self.runs_dir)
        uses = links(self.runs_dir) if stored else {}
        for name, folder in stored.items():
            paths = uses.get(folder.resolve(), [folder])
            self._link(new[name], folder)
            self.say(f"{new[name].name}: the same run as {paths[0]}, which it shares")
        if self.accept_code_change:
            left = [run for name, run in new.items() if name not in stored]
            for name, source in find_of_other_code(left, self.runs_dir).items():
                if self._accept(new[name], source):
                    stored[name] = source
        return bool(stored)

    def _accept(self, run: Run, source: Path) -> bool:
        """Copy a finished run of other code. Whether that succeeded."""
        folder = stored_folder(run, self.runs_dir)
        try:
            accepted = accepting(source, run)
            adopt_accepted(folder, run.config, source, accepted)
        except (UnfitError, DamagedFileError) as error:
            self.say(f"{run.name}: not copied: {error}")
            return False
        self._link(run, folder)
        self.say(
            f"{run.name}: copied from {source}, accepted though it changed: {accepted.changed}"
        )
        return True

    def _link(self, run: Run, folder: Path) -> Path:
        """Link a run's name in the sweep to a folder, and return the path to use."""
        path = self._folder() / run.folder_name
        link(path, folder.resolve())
        return locate(path)

    def make(self, run: Run) -> Path:
        """The folder of a run that is to be started, made if it does not exist."""
        path = self._folder() / run.folder_name
        folder = locate(path)
        if folder.is_dir():
            return folder
        if folder != path or path.is_symlink():  # its target was moved to the trash (--rerun)
            folder.resolve().mkdir(parents=True, exist_ok=True)
            return folder
        if not self.share:
            path.mkdir()
            return path
        stored = stored_folder(run, self.runs_dir)
        stored.mkdir(parents=True, exist_ok=True)
        return self._link(run, stored)

    def start(self, run: Run, folder: Path) -> Start:
        """What the executor needs to start a run, and a run of another length to start it from."""
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
        beginning = self._beginnings.get(start.name)
        if beginning is None:
            return start
        self.say(f"{run.name}: {beginning.text}")
        source = beginning.source.parent.resolve() / beginning.source.name
        return replace(start, source=source, source_iterations=beginning.iterations)

    def _is_new(self, run: Run) -> bool:
        """Whether a run has neither a result nor a checkpoint."""
        folder = locate(self._folder() / run.folder_name)
        return not ((folder / RESULT).exists() or checkpoints_of(folder))

    def _folder(self) -> Path:
        return sweep_folder(self.work.sweep, self.runs_dir).resolve()
