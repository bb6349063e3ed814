"""What a sweep's probes ask of which finished run, and what has been measured."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runs.store import read_result, sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import MOST_OF_A_RECORD, DamagedFileError, loads
from mixgrpo.files.regular import open_regular, read_regular

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1
"""Raised when a measurement means something else than before."""


@dataclass(frozen=True)
class Task:
    """One probe of one finished run."""

    run: Run
    folder: Path
    name: str
    options: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "probes" / f"{self.name}.json"

    def identity(self) -> dict[str, Any]:
        """What the measurement depends on. `weights`: the digest of the averaged weights in the
        run's last checkpoint, None where there is no such checkpoint."""
        manifest = self.folder / "checkpoints" / f"{self.run.config.iterations:06d}/manifest.json"
        weights = None
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            weights = str(
                loads(read_regular(manifest, MOST_OF_A_RECORD))["files"]["average.safetensors"]
            )
        identity = {
            "format": FORMAT,
            "probe": self.name,
            "run": self.run.hash,
            "weights": weights,
            "options": self.options,
        }
        text = json.dumps(identity, sort_keys=True)
        return identity | {"digest": hashlib.sha256(text.encode()).hexdigest()}

    def read(self) -> list[dict[str, Any]] | None:
        """The rows that were measured; None where there are none of this run and these options.

        Without the run's last checkpoint they are of the weights that it had.
        """
        try:
            with open_regular(self.file) as stream:
                kept = loads(stream.read())
            wanted = self.identity()
            same = ("digest",) if wanted["weights"] else ("format", "probe", "run", "options")
            fits = all(kept[key] == wanted[key] for key in same)
            rows = list(kept["rows"]) if fits else None
            return rows if rows is None or all(isinstance(row, dict) for row in rows) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def write(self, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep rows. ValueError for NaN and Inf, OSError for a disk that does not take them."""
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, {**self.identity(), "seconds": seconds, "rows": list(rows)})


def tasks(sweep: Sweep, runs_dir: Path, damaged: list[str] | None = None) -> list[Task]:
    """Every probe of every finished run, arm by arm; what is wrong with a damaged one is added to
    `damaged`. RunError for a folder of another version."""

    def is_finished(run: Run) -> bool:
        try:
            return read_result(place / run.folder_name, run.config.evaluation.every) is not None
        except DamagedFileError as error:
            if damaged is not None:
                damaged.append(f"{run.name}: {error}")
            return False

    place = sweep_folder(sweep, runs_dir)
    order = {arm.name: index for index, arm in enumerate(sweep.arms)}
    runs = sorted(sweep.runs, key=lambda run: (order[run.arm], run.seed))
    return [
        Task(run, place / run.folder_name, name, options)
        for run in runs
        if sweep.probes and is_finished(run)
        for name, options in sweep.probes.items()
    ]


def read_probes(sweep: Sweep, runs_dir: Path) -> "pd.DataFrame | None":
    """All rows that were measured, with arm, seed and probe; arm by arm, then by seed. None where
    there are none."""
    import pandas as pd

    rows = [
        {"arm": task.run.arm, "seed": task.run.seed, "probe": task.name, **row}
        for task in tasks(sweep, runs_dir)
        for row in task.read() or ()
    ]
    return pd.DataFrame(rows) if rows else None
