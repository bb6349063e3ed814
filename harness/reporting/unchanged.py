"""Whether a report would be the same as the one that exists, so that nothing need be computed.

Beside the run folders (`runs/<sweep>/.cache/`) stands what the last report was made of: a digest of
the sweep, of every run's files (by size and time of change) or state, of the pictures, of the code
and of the libraries that draw, and the files that came of it. Where it cannot be read or written,
the report is made.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.analysis.samples import read_samples
from harness.runs.codechange import FILE as ACCEPTED
from harness.runs.state import look, run_folder, sweep_folder
from harness.study.spec import Sweep
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import EVALUATIONS, METRICS, ORIGIN, RESULT, SCORES

FOLDER = ".cache"
LIBRARIES = ("matplotlib", "numpy", "pandas", "pyarrow", "scipy", "jinja2", "pillow")
MEASURED = (RESULT, METRICS, EVALUATIONS, "env.json", ORIGIN, ACCEPTED)


def digest(sweep: Sweep, runs_dir: Path, shown: str) -> str:
    """Changes when anything does that a report is made of. `shown`: the sweep file's name in it."""
    hashed = hashlib.sha256()
    for part in _parts(sweep, runs_dir):
        hashed.update(repr(part).encode())
    hashed.update(shown.encode())
    return hashed.hexdigest()


def _parts(sweep: Sweep, runs_dir: Path) -> Iterator[Any]:
    """What a report is made of, piece by piece."""
    yield from code()
    # A run's hash leaves out what changes no result: the arms' configurations have it all.
    yield replace(sweep, runs=sweep.runs[: len(sweep.arms)])
    folder = sweep_folder(sweep, runs_dir)
    probes = [f"probes/{name}.json" for name in sweep.probes]
    finished = set()
    for run in sweep.runs:
        of_run = run_folder(folder, run)
        stamps = [stamp(of_run / name) for name in (*MEASURED, *probes)]
        if stamps[0] is None:
            yield run.folder_name, look(sweep, run, runs_dir).state
        else:
            finished.add((run.arm, run.seed))
            scores = sorted((folder / run.folder_name / SCORES).glob("*.parquet"))
            yield run.folder_name, stamps, [(file.name, stamp(file)) for file in scores]
    yield read_samples(sweep, finished, runs_dir)


def code() -> Iterator[Any]:
    """What makes a report: this project's code and templates, and the libraries' versions."""
    for package in ("harness", "mixgrpo"):
        folder = Path(__file__).parents[2] / package
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.html")]):
            yield file.read_bytes()
    yield [importlib.metadata.version(name) for name in LIBRARIES]


def is_unchanged(sweep: Sweep, runs_dir: Path, folder: Path, made_of: str) -> bool:
    """Whether the report in `folder` was made of this, and lies there as it was written."""
    return holds(_record(sweep, runs_dir, folder), folder, made_of)


def holds(record: Path, folder: Path, made_of: str) -> bool:
    """Whether the files in `folder` were made of this according to `record`, and are unchanged."""
    try:
        kept = json.loads(record.read_text())
        return bool(kept["made_of"] == made_of and kept["files"]) and all(
            stamp(folder / name) == kept_stamp for name, kept_stamp in kept["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remember(
    sweep: Sweep, runs_dir: Path, folder: Path, made_of: str, files: Iterable[str]
) -> None:
    """Keep what the report was made of; nothing on a disk that is full or read-only."""
    keep(_record(sweep, runs_dir, folder), folder, made_of, files)


def keep(record: Path, folder: Path, made_of: str, files: Iterable[str]) -> None:
    """Write what the files in `folder` were made of; nothing where it cannot be written."""
    with contextlib.suppress(OSError):
        record.parent.mkdir(exist_ok=True)
        stamps = {name: stamp(folder / name) for name in files}
        write_json(record, {"made_of": made_of, "files": stamps})


def stamp(file: Path) -> list[int] | None:
    """Size and time of change (ns), one of which changes when a file does; None where no file
    can be read."""
    try:
        stat = file.stat()
    except OSError:  # a loop of links, too
        return None
    return [stat.st_size, stat.st_mtime_ns]


def record(beside: Path, name: str, folder: Path) -> Path:
    """The file that says what the report `name` in `folder` was made of."""
    suffix = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return beside / FOLDER / f"{name}-{suffix}.json"


def _record(sweep: Sweep, runs_dir: Path, folder: Path) -> Path:
    return record(sweep_folder(sweep, runs_dir), f"report-{sweep.report_name}", folder)
