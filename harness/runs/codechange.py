"""Finished runs of other code than the sweep's own: which they are, and which the user accepts.

A reward or model of the user's own whose code was changed makes another run
(`mixgrpo.settings.usercode`). The runs of the old code stay where they are. With
--accept-code-change a finished one is copied into the folder of the run that differs from it in its
code alone, with a note that says so.
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
"""In the folder of a run that was taken over: which code made it."""


class AcceptedCode(BaseModel):
    """That a run was made by other code than its hash says, and that the user accepted it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    """The run that was copied, as `study/folder`."""
    hash: str
    """Its hash."""
    code: dict[str, Modules]
    """The code that made it; {} where an earlier version had not noted it."""
    changed: str
    """What differs from the code of the run's own hash, in words."""


def read_accepted(folder: Path) -> AcceptedCode | None:
    """What was accepted for a run; None for one that its own code made."""
    try:
        text = read_regular(folder / FILE, MOST_OF_A_RECORD)
        return AcceptedCode.model_validate_json(text)
    except (OSError, ValidationError):
        return None


def accepting(source: Path, run: Run) -> AcceptedCode:
    """What is noted where `run` takes over the finished run in `source`."""
    record, before = read_record(source), read_accepted(source)
    made_by = before.code if before else record.code if record else {}
    return AcceptedCode(
        run=f"{source.parent.name}/{source.name}",
        hash=claimed(source) or "",
        code=made_by,
        changed=changes(made_by, user_code(run.config)),
    )


def of_other_code(folders: Iterable[Path], runs: Sequence[Run]) -> dict[Path, str]:
    """Those of the folders that hold a run which differs from one of `runs` in its code alone, and
    the folder's name of that one."""
    found: dict[Path, str] = {}
    wanted: dict[str, Run] | None = None
    for folder in folders:
        if wanted is None:  # looked up where there is any
            wanted = {settings_hash(run.config): run for run in runs if user_code(run.config)}
        if not wanted:
            return {}
        # Earlier versions noted no code, and named their runs by the settings alone.
        record, named = read_record(folder), folder.name.rpartition("-")[2]
        run = wanted.get(record.settings if record else named)
        if run is not None and named != run.hash:
            found[folder] = run.folder_name
    return found
