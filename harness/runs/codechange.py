"""Finished runs that were made before the user's code changed, and which of them are accepted.

A change in the code of the user's rewards or models makes other runs (`mixgrpo.settings.usercode`).
The runs of the old code stay where they are. With --accept-code-change a finished one is copied to
the folder of the run that differs from it only in that code, with a record of it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.study.spec import Run
from mixgrpo.files.records import MOST_OF_A_RECORD
from mixgrpo.files.regular import read_regular
from mixgrpo.runs.folder import claimed
from mixgrpo.settings.identity import settings_hash
from mixgrpo.settings.usercode import Modules, changes, read_record, user_code

FILE = "accepted.json"
"""In the folder of a run that was accepted: the record of which code made it."""


class AcceptedCode(BaseModel):
    """The record that a run was made by other code than its hash says, and was accepted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    """The run that was copied, as `study/folder`."""
    hash: str
    """Its hash."""
    code: dict[str, Modules]
    """The code that made it; {} where an earlier version did not record it."""
    changed: str
    """What differs from the code that the run's hash stands for, in words."""


def read_accepted(folder: Path) -> AcceptedCode | None:
    """The record of an accepted run; None for a run of the code that its hash stands for."""
    try:
        text = read_regular(folder / FILE, MOST_OF_A_RECORD)
        return AcceptedCode.model_validate_json(text)
    except (OSError, ValidationError):
        return None


def accepting(source: Path, run: Run) -> AcceptedCode:
    """The record for accepting the finished run in `source` as `run`."""
    record, before = read_record(source), read_accepted(source)
    made_by = before.code if before else record.code if record else {}
    return AcceptedCode(
        run=f"{source.parent.name}/{source.name}",
        hash=claimed(source) or "",
        code=made_by,
        changed=changes(made_by, user_code(run.config)),
    )


def of_other_code(folders: Iterable[Path], runs: Sequence[Run]) -> dict[Path, str]:
    """The folders whose run differs from one of `runs` only in the user's code, each with the
    folder's name of that one."""
    matches: dict[Path, str] = {}
    wanted: dict[str, Run] | None = None
    for folder in folders:
        if wanted is None:  # made only if there is a folder
            wanted = {settings_hash(run.config): run for run in runs if user_code(run.config)}
        if not wanted:
            return {}
        # Earlier versions recorded no code, and named runs by the settings alone.
        record, hash_in_name = read_record(folder), folder.name.rpartition("-")[2]
        run = wanted.get(record.settings if record else hash_in_name)
        if run is not None and hash_in_name != run.hash:
            matches[folder] = run.folder_name
    return matches
