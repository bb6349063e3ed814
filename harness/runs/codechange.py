"""Finished runs that were made before the user's code changed, and which of them are accepted.

A change in the code of the user's rewards or models makes other runs (`mixgrpo.settings.usercode`).
The runs of the old code stay where they are. With --accept-code-change a finished one is copied to
the folder of the run that differs from it only in that code, with a record of it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.study.spec import Run
from mixgrpo.files.records import (
    MOST_OF_A_RECORD,
    DamagedFileError,
    Record,
    Result,
    measured,
    parse,
    read_bytes,
    read_result,
)
from mixgrpo.runs.folder import claimed
from mixgrpo.settings.identity import settings_hash
from mixgrpo.settings.usercode import Modules, changes, read_record, user_code

FILE = "accepted.json"
"""In the folder of a run that was accepted: the record of which code made it."""

_FIX = "run the sweep again with --rerun and this run's name"


class AcceptedCode(Record):
    """The record that a run was made by other code than its hash says, and was accepted."""

    run: str
    """The run that was copied, as `study/folder`."""
    hash: str
    """Its hash."""
    code: dict[str, Modules]
    """The code that made it; {} where an earlier version did not record it."""
    changed: str
    """What differs from the code that the run's hash stands for, in words."""
    iterations: int | None = None
    """How many of its iterations that code made, where this one has continued it since."""

    @property
    def in_words(self) -> str:
        """What differs, and where."""
        part = f" (until iteration {self.iterations}; the code of now made the rest)"
        return self.changed + (part if self.iterations is not None else "")

    def continued(self, iterations: int) -> "AcceptedCode":
        """The record of a run that begins with the first `iterations` of this one."""
        first = iterations if self.iterations is None else min(iterations, self.iterations)
        return self.model_copy(update={"iterations": first})


def read_accepted(folder: Path, result: Result | None) -> AcceptedCode | None:
    """The record of an accepted run; None for a run of the code that its hash stands for.

    DamagedFileError where it is none, or is not the one that the run's `result` names.
    """
    file, said = folder / FILE, result.accepted if result else None
    try:
        text = read_bytes(file, MOST_OF_A_RECORD)
        if text is None:
            if said is not None:
                raise DamagedFileError(file, "is missing")
            return None
        if said not in (None, measured(text).sha256):
            raise DamagedFileError(file, "was changed after it was written")
        return parse(AcceptedCode, file, text)
    except DamagedFileError as damaged:
        raise DamagedFileError(damaged.file, damaged.why, _FIX) from None


def accepting(source: Path, run: Run) -> AcceptedCode:
    """The record for accepting the finished run in `source` as `run`. DamagedFileError where it is
    itself accepted, and its record damaged."""
    record, before = read_record(source), read_accepted(source, read_result(source))
    own, now = record.code if record else {}, user_code(run.config)
    made_by = before.code if before else own
    parts = [made_by, own] if before and before.iterations is not None else [made_by]
    return AcceptedCode(
        run=f"{source.parent.name}/{source.name}",
        hash=claimed(source) or "",
        code=made_by,
        changed=", ".join(dict.fromkeys(filter(None, (changes(part, now) for part in parts)))),
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
