"""Loads studies: from their sweep files, or from folders of runs alone."""

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from harness.analysis.kept import has_frames, read_kept
from harness.analysis.results import collect
from harness.frames.found import find_runs
from harness.frames.pool import Source, pool
from harness.frames.study import Study
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError

AnyPath = str | PathLike[str]


def load(
    *files: AnyPath,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    runs_dir: AnyPath = "runs",
    reports_dir: AnyPath = "reports",
) -> Study:
    """The measurements of one study or several, by their sweep files.

        study = harness.load("sweeps/tau.yaml", "sweeps/window.yaml")

    The runs are read from `runs_dir`. Where no run of a study has finished there, the measurements
    kept with its report in `reports_dir` are taken; they have no scores of single images. A run
    that several studies ask for is in the frames once. `profile` and `overrides` (`KEY=VALUE`) are
    `--profile` and `--set` of the commands. Reading changes nothing.

    Damaged runs are left out with a warning that names them. Raises ConfigError for a file that is
    missing or wrong, and for kept measurements of another configuration; RunError for runs of
    another version.
    """
    if not files:
        raise ConfigError('load: name a sweep file, such as harness.load("sweeps/tau.yaml")')
    sources = []
    for file in files:
        sweep = load_sweep(Path(file), profile, overrides)
        sources.append(_source(sweep, Path(runs_dir), Path(reports_dir)))
    return pool(sources)


def _source(sweep: Sweep, runs_dir: Path, reports_dir: Path) -> Source:
    """A study's measurements: of its runs, or where none has finished those of its report."""
    results, report = collect(sweep, runs_dir), reports_dir / sweep.report_name
    if len(results.finished) or results.left_out:
        return Source(sweep, results, runs_dir)
    if has_frames(report):
        kept, _ = read_kept(sweep, report)
        return Source(sweep, kept, None)
    warnings.warn(
        f"{sweep.file}: no finished run in {runs_dir / sweep.name} and no measurements in "
        f"{report}; `runs` has the states of its runs",
        stacklevel=3,
    )
    return Source(sweep, results, runs_dir)


def load_runs(*folders: AnyPath) -> Study:
    """The measurements of folders of runs, without a sweep file.

        study = harness.load_runs("runs/tau")

    A folder holds the runs of a sweep or search, or is itself a run's. Runs that differ in their
    seed alone are one arm; its name is that in the names of the folders. No arm is the reference
    unless `compare` is told so.

    What is damaged is left out with a warning that names it. Raises ConfigError for a folder that
    holds no runs, RunError for runs of another version.
    """
    if not folders:
        raise ConfigError('load_runs: name a folder of runs, such as harness.load_runs("runs/tau")')
    sources = []
    for folder in folders:
        found = find_runs(Path(folder))
        results = collect(found.sweep, found.runs_dir)
        results.left_out[:0] = found.left_out
        sources.append(Source(found.sweep, results, found.runs_dir, found.code))
    return pool(sources)
