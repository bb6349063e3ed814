"""The run folders of a sweep that its file does not list any more: reported, or pruned."""

from collections.abc import Callable
from pathlib import Path

from harness.launching.lengths import other_lengths
from harness.launching.trash import Item, look_at
from harness.runs.codechange import of_other_code
from harness.runs.state import sweep_folder, unlisted_runs
from harness.runs.store import links
from harness.study.load import known_folders
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError, UnidentifiedError


def find_unlisted(sweep: Sweep, runs_dir: Path) -> list[Path]:
    """The run folders that no profile of the file asks for.

    UnidentifiedError where a profile needs files that are not on this machine.
    """
    listed = known_folders(sweep.file, sweep) | {run.folder_name for run in sweep.runs}
    return unlisted_runs(listed, sweep_folder(sweep, runs_dir))


def unlisted_items(sweep: Sweep, runs_dir: Path, queued: set[str]) -> list[Item]:
    """The same, as --prune moves them. ConfigError where they are not known on this machine.

    `queued`: names of the folders whose jobs wait in Slurm.
    """
    try:
        folders = find_unlisted(sweep, runs_dir)
    except UnidentifiedError as error:
        raise ConfigError(
            f"--prune: which folders belong to all profiles of {sweep.file} is not known here "
            f"({error}); nothing was moved"
        ) from error
    remarks = _remarks(sweep, runs_dir)
    leading = links(runs_dir) if folders else {}
    return [
        look_at(folder, queued, remarks.get(folder.name, ""), leading=leading) for folder in folders
    ]


def say_unlisted(sweep: Sweep, runs_dir: Path, say: Callable[[str], None]) -> None:
    """Name the run folders that no profile of the file asks for, if that is known here."""
    try:
        folders = find_unlisted(sweep, runs_dir)
    except UnidentifiedError:
        return
    other_code = of_other_code(folders, sweep.runs)
    if other_code:
        say(
            f"{len(other_code)} run(s) have the same settings, but were made before your own code "
            "(of a reward, model or optimizer) changed; they stay. --prune moves them to the "
            "trash; if the change alters no result, --accept-code-change takes finished ones:"
        )
        for folder in other_code:
            say(f"  {folder}")
    others = [folder for folder in folders if folder not in other_code]
    if others:
        say(
            f"{len(others)} run(s) are no longer in {sweep.file}, or were made with other --set "
            "values; they stay (--prune moves them to the trash):"
        )
        remarks = _remarks(sweep, runs_dir)
        for folder in others:
            say(f"  {folder}" + (f": {remarks[folder.name]}" if folder.name in remarks else ""))


def _remarks(sweep: Sweep, runs_dir: Path) -> dict[str, str]:
    """By folder name, what a run is that differs from one of the file only in its length."""
    others = other_lengths(sweep, runs_dir, sweep.runs)
    return {other.run.folder_name: other.remark for other in others}
