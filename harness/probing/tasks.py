"""The measurements that a sweep's probes make on finished runs, and what has been measured."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from harness.runs.result import read_result
from harness.runs.state import run_folder, sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.errors import UnidentifiedError
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import MOST_OF_A_RECORD, DamagedFileError, Record, loads, read
from mixgrpo.files.regular import read_regular
from mixgrpo.settings.probes import check_rows
from mixgrpo.settings.usercode import user_code

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1
"""Increased when the meaning of a measurement changes."""


class Kept(Record):
    """probes/<name>.json."""

    format: int
    probe: str
    run: str
    options: dict[str, JsonValue]
    digest: str
    rows: list[dict[str, JsonValue]]
    sha256: str | None = None
    """Of the rows; earlier versions kept none."""


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
        """All that the measurement depends on. `weights`: the digest of the averaged weights in the
        run's last checkpoint; None where that checkpoint does not exist."""
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
        if (code := self._code_of_rewards()) != {}:
            identity["code"] = code
        text = json.dumps(identity, sort_keys=True)
        return identity | {"digest": hashlib.sha256(text.encode()).hexdigest()}

    def _code_of_rewards(self) -> dict[str, Any] | None:
        """What scores beside the run's own rewards, of which the run's hash says nothing: classes,
        options and digests of the user's code. None where that code is not there."""
        rewards = self.run.config.rewards
        own = {*rewards.train, *rewards.held_out}
        others = [name for name in self.options.get("rewards", ()) if name not in own]
        with_others = rewards.model_copy(update={"held_out": (*rewards.held_out, *others)})
        config = self.run.config.model_copy(update={"rewards": with_others})
        try:
            code = user_code(config) if others else {}
        except UnidentifiedError:
            return None
        return {
            what: [modules, rewards.classes.get(name), rewards.options.get(name)]
            for what, modules in code.items()
            if (name := what.partition(" ")[2]) in others
        }

    def read(self) -> list[dict[str, Any]] | None:
        """The measured rows; None where there are none for this run and these options.

        Without the run's last checkpoint, measured rows are accepted whatever their weights, and so
        they are without the code of a reward. DamagedFileError where they are not what was
        measured.
        """
        kept, wanted = read(Kept, self.file), self.identity()
        known = wanted["weights"] and wanted.get("code", "none needed")
        same = ("digest",) if known else ("format", "probe", "run", "options")
        if kept is None or any(getattr(kept, key) != wanted[key] for key in same):
            return None
        if kept.sha256 not in (None, _sha256(kept.rows)):
            raise DamagedFileError(self.file, "was changed after it was measured")
        try:
            check_rows(self.name, kept.rows, self.options, self.run.config)
        except ValueError as error:
            raise DamagedFileError(self.file, str(error)) from None
        return list(kept.rows)

    @property
    def is_missing(self) -> bool:
        """Whether it must be measured, for the first time or because the file is damaged."""
        try:
            return self.read() is None
        except DamagedFileError:
            return True

    def write(self, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Save rows. ValueError for NaN and Inf, OSError for a full disk."""
        self.file.parent.mkdir(exist_ok=True)
        measured = {"seconds": seconds, "rows": list(rows), "sha256": _sha256(rows)}
        write_json(self.file, self.identity() | measured)


def _sha256(rows: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def tasks(sweep: Sweep, runs_dir: Path, damaged: list[str] | None = None) -> list[Task]:
    """Every probe of every finished run, arm by arm; errors of damaged runs are added to `damaged`.
    RunError for a folder of another version."""

    def is_finished(run: Run) -> bool:
        try:
            return read_result(run_folder(folder, run), run) is not None
        except DamagedFileError as error:
            if damaged is not None:
                damaged.append(f"{run.name}: {error}")
            return False

    folder = sweep_folder(sweep, runs_dir)
    order = {arm.name: index for index, arm in enumerate(sweep.arms)}
    runs = sorted(sweep.runs, key=lambda run: (order[run.arm], run.seed))
    return [
        Task(run, run_folder(folder, run), name, options)
        for run in runs
        if sweep.probes and is_finished(run)
        for name, options in sweep.probes.items()
    ]


def read_probes(
    sweep: Sweep, runs_dir: Path, damaged: list[str] | None = None
) -> "pd.DataFrame | None":
    """All measured rows, with arm, seed and probe, ordered by arm and seed. None where there are
    none. What is wrong with a damaged file, whose rows are left out, is added to `damaged`."""
    import pandas as pd

    rows = []
    for task in tasks(sweep, runs_dir):
        of_task = {"arm": task.run.arm, "seed": task.run.seed, "probe": task.name}
        try:
            rows += [of_task | row for row in task.read() or ()]
        except DamagedFileError as error:
            if damaged is not None:
                damaged.append(f"{task.run.name}: {error}; harness.probe measures it again")
    return pd.DataFrame(rows) if rows else None
