"""Whether a report would come out as it already lies there, so that nothing need be computed.

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

from harness.analysis.lines import FOLDER, stamp
from harness.analysis.measurements import read_samples
from harness.runs.store import look, sweep_folder
from harness.study.spec import Sweep
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import SCORES

LIBRARIES = ("matplotlib", "numpy", "pandas", "pyarrow", "scipy", "jinja2", "pillow")
MEASURED = ("result.json", "metrics.jsonl", "eval.jsonl", "env.json")


def digest(sweep: Sweep, runs_dir: Path, shown: str) -> str:
    """Changes when anything does that a report is made of. `shown`: the sweep file's name in it."""
    found = hashlib.sha256()
    for part in _parts(sweep, runs_dir):
        found.update(repr(part).encode())
    found.update(shown.encode())
    return found.hexdigest()


def _parts(sweep: Sweep, runs_dir: Path) -> Iterator[Any]:
    """What a report is made of, in pieces whose texts tell them apart."""
    yield from code()
    # A run's hash leaves out what changes no result: the arms' configurations have it all.
    yield replace(sweep, runs=sweep.runs[: len(sweep.arms)])
    place = sweep_folder(sweep, runs_dir)
    probes = [f"probes/{name}.json" for name in sweep.probes]
    finished = set()
    for run in sweep.runs:
        stamps = [stamp(place / run.folder_name / name) for name in (*MEASURED, *probes)]
        if stamps[0] is None:
            yield run.folder_name, look(sweep, run, runs_dir).state
        else:
            finished.add((run.arm, run.seed))
            scores = sorted((place / run.folder_name / SCORES).glob("*.parquet"))
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
    """Whether `record` (of `keep`) says so of this, and the files lie there as they were."""
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
    """Keep what the report was made of; nothing where the disk does not let it."""
    keep(_record(sweep, runs_dir, folder), folder, made_of, files)


def keep(record: Path, folder: Path, made_of: str, files: Iterable[str]) -> None:
    """Write what the files in `folder` were made of; nothing where it cannot be written."""
    with contextlib.suppress(OSError):
        record.parent.mkdir(exist_ok=True)
        stamps = {name: stamp(folder / name) for name in files}
        write_json(record, {"made_of": made_of, "files": stamps})


def _record(sweep: Sweep, runs_dir: Path, folder: Path) -> Path:
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return sweep_folder(sweep, runs_dir) / FOLDER / f"report-{sweep.report_name}-{place}.json"
