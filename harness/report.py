"""Writes the report of a sweep: tables, figures, the measurements themselves, and one page.

    python -m harness.report sweeps/tau.yaml
    python -m harness.report --all

Everything is made from the run folders, or, where there are none, from the measurements that an
earlier report kept. The same measurements give the same bytes, and where nothing has changed since
they were written, nothing is done. Nothing is trained here.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.analysis.kept import has_frames
from harness.reporting.write import PAGE, FullerReport, Written, write
from harness.runs import source
from harness.runs.state import run_folder, sweep_folder
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from harness.study.sweepfile import is_run_configuration
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say, warn
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.records import RESULT
from mixgrpo.settings.yamlfile import read_yaml

SWEEPS = Path("sweeps")
SEARCHES = SWEEPS / "search"


def _has_results(sweep: Sweep, runs_dir: Path, reports_dir: Path) -> bool:
    if any(
        (run_folder(sweep_folder(sweep, runs_dir), run) / RESULT).exists() for run in sweep.runs
    ):
        return True
    return has_frames(reports_dir / sweep.report_name)


def _sweep_files() -> list[Path]:
    files = sorted(SWEEPS.glob("*.yaml"))
    if not files:
        raise ConfigError(f"--all: no sweep files in {SWEEPS}/; run it where that folder is")
    return files


def _of_one_name(files: list[Path], failed: list[ConfigError | RunError]) -> set[Path]:
    """The files of studies that share their name, and so their folders, with another one; an error
    for each is added to `failed`."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        name = source.name_in(file)
        if name is not None:
            by_name.setdefault(name.casefold(), []).append(file)  # some file systems ignore case
    shared = [of_name for of_name in by_name.values() if len(of_name) > 1]
    for first, *others in shared:
        for other in others:
            with _noting(failed, other):
                raise source.clash(str(source.name_in(other)), other, first)
    return {file for of_name in shared for file in of_name}


@contextlib.contextmanager
def _noting(failed: list[ConfigError | RunError], what: Path) -> Iterator[None]:
    """What goes wrong with a file is added to `failed` and ends nothing."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output (`| head`) has gone
        raise
    except Exception as error:
        if not isinstance(error, ConfigError | RunError):  # a defect: where it lies is kept
            traceback.print_exc()
            error = RunError(f"{what}: {type(error).__name__}: {error}")
        if failed:  # the first one ends the command
            warn(f"error: {error}")
        failed.append(error)


def _write_or_skip(sweep: Sweep, runs: Path, reports: Path) -> bool:
    """Whether there is a report now."""
    if not _has_results(sweep, runs, reports):
        say(f"{sweep.file}: no results yet")
        return False
    folder = reports / sweep.report_name
    try:
        written = write(sweep, runs, folder)
        _say(sweep, written)
    except FullerReport as error:
        say(error)  # what is kept is the report
        say(folder / PAGE)
        return True
    if written.left_out:
        raise RunError(f"{sweep.file}: {_count(written)}")
    return True


def _write_or_skip_search(file: Path, runs: Path, reports: Path) -> bool:
    """Likewise of a search."""
    from harness.searching.file import load_search
    from harness.searching.records import has_results
    from harness.searching.report import write_report as write_search

    search = load_search(file)
    if not has_results(search, runs, reports):
        say(f"{file}: no results yet")
        return False
    say(write_search(search, runs, reports, None))
    return True


def _say(sweep: Sweep, written: Written) -> None:
    if written.committed:
        kept = written.page.parent
        say(f"{sweep.file}: no run folders; using the measurements kept in {kept}")
    say(written.page)


def _count(written: Written) -> str:
    number = len(written.left_out)
    return f"{number} damaged file{'' if number == 1 else 's'}, named above; the rest is reported"


def main(
    file: Annotated[Path | None, typer.Argument(help="Sweep file (YAML).")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every sweep and search of sweeps/ that has results.")
    ] = False,
    profile: cli.ProfileOption = None,
    runs: cli.RunsOption = Path("runs"),
    reports: cli.ReportsOption = Path("reports"),
    set_: cli.SetOption = None,
    until_decided: cli.UntilDecidedOption = False,
) -> int:
    """Write a sweep's report from its run folders, or from the measurements kept with it."""
    if (file is None) != every:
        raise ConfigError("give either a sweep file or --all")
    if file is not None:
        sweep = load_sweep(file, profile, set_ or [], until_decided=until_decided)
        written = write(sweep, runs, reports / sweep.report_name)
        _say(sweep, written)
        return 1 if written.left_out else 0
    from harness.searching import confirm

    failed: list[ConfigError | RunError] = []
    reported = 0
    sweeps = []
    searches = sorted(SEARCHES.glob("*.yaml"))
    shared = _of_one_name([*_sweep_files(), *searches], failed)
    for path in [path for path in _sweep_files() if path not in shared]:
        with _noting(failed, path):
            try:
                sweeps.append(load_sweep(path, profile, set_ or []))
            except ConfigError:
                if not (path.exists() and is_run_configuration(read_yaml(path))):
                    raise
                say(f"{path}: is a run configuration, not a sweep file; left out")
    for sweep in sweeps:
        with _noting(failed, sweep.file):
            reported += _write_or_skip(sweep, runs, reports)
    for path in [path for path in searches if path not in shared]:
        with _noting(failed, path):
            reported += _write_or_skip_search(path, runs, reports)
    for path in sorted(reports.glob(f"*/{confirm.FILE}")):  # what fresh seeds say of the searches
        with _noting(failed, path):
            reported += _write_or_skip(load_sweep(path), runs, reports)
    if not reported and not failed:
        raise ConfigError("--all: no sweep has results; run `python -m harness.sweep FILE` first")
    if not profile and not set_:  # what the studies' own reports show
        from harness.overall.page import write_overall

        with _noting(failed, reports):
            say(write_overall(sweeps, runs, reports))
    if failed:
        raise failed[0]
    return 0


if __name__ == "__main__":
    run_command(main)
