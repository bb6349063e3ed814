"""Which file the folders of a study belong to. A copy of the file with the same `name:` is refused.

The path of the file is recorded with the runs (`runs/<name>/source.json`) and with the measurements
of the report (`made.json`), relative to these folders.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import MOST_OF_A_RECORD
from mixgrpo.files.regular import read_regular
from mixgrpo.settings.yamlfile import read_yaml

SOURCE, MADE = "source.json", "made.json"
_MADE_BY_SEARCHES = "confirm.yaml"
"""The file that every search writes beside its report: its name is not unique."""


def relative(file: Path, folder: Path) -> str:
    """The path of `file` as seen from `folder`."""
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def check(name: str, file: Path, runs_folder: Path, report_folder: Path) -> None:
    """ConfigError where one of a study's folders belongs to another file, which still exists and
    has the same name."""
    for folder, record in ((runs_folder, SOURCE), (report_folder, MADE)):
        other = _recorded(folder / record)
        if other is None or _is_same(other, file):
            continue
        others = name_in(other)
        # A report's folder may have a profile's name behind the study's.
        if others is not None and (folder.name == others or folder.name.startswith(f"{others}-")):
            raise clash(name, file, other, f"of {folder}")


def clash(name: str, file: Path, other: Path, what: str = "") -> ConfigError:
    """The error of two files with the same name."""
    return ConfigError(
        f"{read_yaml(file).place(('name',))}: name: {name} is taken by {_shown(other)}"
        f"{what and f', the file {what}'}; give one of the two files another name, or remove one"
    )


def note(name: str, file: Path, runs_folder: Path, say: Callable[[str], None]) -> None:
    """Record with a study's runs which file they belong to, and say if the file was moved."""
    other = _recorded(runs_folder / SOURCE)
    if other is not None and _is_same(other, file):
        return
    if other is not None and not other.exists():
        say(f"{name}: {_shown(other)} is gone; its runs belong to {_shown(file)} from now on")
    write_json(runs_folder / SOURCE, {"file": relative(file, runs_folder)})


def _recorded(record: Path) -> Path | None:
    """The file that a record names; None where it names none."""
    try:
        path = json.loads(read_regular(record, MOST_OF_A_RECORD))["file"]
        return Path(os.path.normpath(record.parent.resolve() / path))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_same(one: Path, other: Path) -> bool:
    if one.name == other.name == _MADE_BY_SEARCHES:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return one == other.resolve()


def name_in(file: Path) -> str | None:
    """The study's name in a file; None where there is no such file any more."""
    try:
        name = read_yaml(file).data.get("name")
    except ConfigError:
        return None
    return None if name is None else str(name)


def _shown(file: Path) -> str:
    """A path relative to the working directory, if it is below it."""
    try:
        return file.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return str(file)
