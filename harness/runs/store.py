"""The store: every run is stored once, by content, and the sweeps that ask for it link to it.

    runs/.store/<digest>/                  the run
    runs/<sweep>/<arm>-seed<k>-<hash>      a relative link to it, from each of the sweeps

The digest is taken over everything that changes a result (`mixgrpo.settings.identity`) and over
what else the folder holds. A run that five sweeps ask for is computed once, with one lease. Runs
that earlier versions stored in a sweep's folder are used where they are.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from harness.runs.codechange import of_other_code
from harness.runs.folder import checkpoints_of
from harness.runs.result import read_result
from harness.study.spec import Run
from mixgrpo.errors import RunError
from mixgrpo.files.atomic import flush, write_json
from mixgrpo.files.records import RESULT, DamagedFileError
from mixgrpo.runs.folder import CONFIG, claimed
from mixgrpo.runs.location import locate
from mixgrpo.settings.config import HealthConfig, RunConfig
from mixgrpo.settings.identity import config_digest

STORE = ".store"
"""The folder under `--runs` that holds the runs."""
_DIGITS = 16
_NAME = f"[0-9a-f]{{{_DIGITS}}}"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NAME_IN_SWEEP = "-seed[0-9]+-[0-9a-f]{8}$"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_EXPORT = "weights"


def stored_folder(run: Run, runs_dir: Path) -> Path:
    """The folder of a run in the store, whether it exists or not.

    Settings that change only what the folder holds (`health`, `output`) are part of its name, too.
    """
    output = run.config.output
    contents = [run.config.health.model_dump(), output.samples, output.export, sorted(output.keep)]
    text = json.dumps([config_digest(run.config), contents], sort_keys=True)
    return runs_dir / STORE / hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def link(path: Path, folder: Path) -> None:
    """Make `path` a link to the run in `folder`, or a JSON file that names it where the disk has no
    links. An existing link is replaced atomically, a folder never.

    OSError where neither can be made.
    """
    target = os.path.relpath(folder, path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_json(path, {"stored": target})
        return
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    flush(path.parent)


def find_stored(runs: Iterable[Run], runs_dir: Path) -> dict[str, Path]:
    """The folders outside their sweep that hold these runs already, finished or begun; by the names
    of the runs' folders."""
    stored: dict[str, Path] = {}
    left: dict[str, list[Run]] = {}
    for run in runs:
        folder = stored_folder(run, runs_dir)
        if folder.is_dir() and claimed(folder) in (None, run.hash):
            stored[run.folder_name] = folder
        else:
            left.setdefault(run.hash, []).append(run)
    if left:
        for folder in sweep_entries(runs_dir):
            if folder.is_symlink():
                continue
            for run in left.get(folder.name.rpartition("-")[2], ()):
                if run.folder_name not in stored and _is_finished(folder, run):
                    stored[run.folder_name] = folder
    return stored


def find_of_other_code(runs: Sequence[Run], runs_dir: Path) -> dict[str, Path]:
    """The folders of finished runs that differ from these only in the user's own code, by the names
    of these runs' folders; of several the one that was finished last."""
    by_name = {run.folder_name: run for run in runs}
    newest: dict[str, Path] = {}
    folders = (locate(path) for path in sweep_entries(runs_dir)) if by_name else ()
    for folder, name in of_other_code(folders, runs).items():
        identity = claimed(folder)
        run = by_name[name]
        if identity is None or not _is_finished(folder, replace(run, hash=identity)):
            continue
        before = newest.get(name)
        if before is None or _when_finished(folder) > _when_finished(before):
            newest[name] = folder
    return newest


def _when_finished(folder: Path) -> float:
    return (folder / RESULT).stat().st_mtime


def sweep_entries(runs_dir: Path) -> Iterator[Path]:
    """The entries of runs in the sweeps' folders, links or folders, in the order of their names."""
    if not runs_dir.is_dir():
        return
    for sweep in sorted(p for p in runs_dir.iterdir() if p.is_dir() and p.name != STORE):
        with suppress(FileNotFoundError):  # a sweep was removed meanwhile
            yield from sorted(p for p in sweep.iterdir() if re.search(_NAME_IN_SWEEP, p.name))


def links(runs_dir: Path) -> dict[Path, list[Path]]:
    """The links to each run, in any sweep; by the run's real path."""
    by_run: dict[Path, list[Path]] = {}
    for path in sweep_entries(runs_dir):
        if path.is_symlink() or path.is_file():
            with suppress(DamagedFileError, OSError):
                by_run.setdefault(locate(path).resolve(), []).append(path)
    return by_run


def unused(runs_dir: Path) -> list[Path]:
    """The stored runs to which no sweep links any more."""
    store = runs_dir / STORE
    if not store.is_dir():
        return []
    used = links(runs_dir)
    stored = (path for path in sorted(store.iterdir()) if re.fullmatch(_NAME, path.name))
    return [path for path in stored if path.resolve() not in used]


def _is_finished(folder: Path, run: Run) -> bool:
    """Whether `folder` holds this run, finished, with everything that its settings ask for."""
    try:
        return read_result(folder, run) is not None and what_lacks(folder, run.config) is None
    except RunError:
        return False


def what_lacks(folder: Path, config: RunConfig) -> str | None:
    """What a finished run of the same hash lacks of what `config` asks for; None for nothing."""
    try:
        settings: Any = yaml.load((folder / CONFIG).read_text(), _LOADER)
        health = HealthConfig.model_validate(settings["health"])
        samples = settings["output"]["samples"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return "its settings cannot be read"
    if health != config.health:
        return "was measured with other settings of health"
    if samples != config.output.samples:
        return "has another number of pictures (output.samples)"
    if config.output.export and not (folder / _EXPORT).is_dir():
        return "has no exported weights (output.export)"
    if missing := sorted(set(config.output.keep) - set(checkpoints_of(folder))):
        return f"has no checkpoint {missing[0]} (output.keep)"
    return None
