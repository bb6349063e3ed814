"""Where a run lies: in the folder of its name, or where that name leads.

A sweep's runs are links to one store (`harness.runs.store`). On a disk without symbolic links a
small file stands in for the link, and is followed here.
"""

import os
from pathlib import Path

from mixgrpo.files.records import DamagedFileError, Record, read

FIX = "remove it, and the sweep's command makes it again; the run itself is unharmed"


class StoredRun(Record):
    """The file that stands in for a link."""

    stored: str
    """Path of the run's folder, relative to the file's own."""


def locate(path: Path) -> Path:
    """The folder of the run at `path`: `path` itself, or what the file there names.

    DamagedFileError for a file that names none.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (follows links; called for thousands of runs)
        return path
    try:
        named = read(StoredRun, path)
    except DamagedFileError as damaged:
        raise DamagedFileError(damaged.file, damaged.why, FIX) from None
    if named is None:
        return path
    if not named.stored or "\0" in named.stored or Path(named.stored).is_absolute():
        raise DamagedFileError(path, "does not name a folder by a relative path", FIX)
    return path.parent / named.stored
