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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import cli, page, source, unchanged
from harness.measurements import FRAMES, Measurements, gather, kept_finished, to_files
from harness.source import relative
from harness.spec import Arm, Sweep, load_sweep
from harness.store import sweep_folder
from harness.sweepfile import is_run_configuration
from mixgrpo.atomic import write_bytes
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say, warn
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.words import duration
from mixgrpo.yamlfile import read_yaml

if TYPE_CHECKING:
    from harness.analysis import Analysis
    from harness.figures import Picture
    from harness.views import View

SWEEPS = Path("sweeps")
SEARCHES = SWEEPS / "search"
PAGE = "index.html"


class FullerReport(RunError):
    """The report that is there has more finished runs than the one that would replace it."""


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    page: Path
    committed: bool = False
    """Whether it was made from the measurements kept with the report."""
    left_out: tuple[str, ...] = ()
    """What is damaged and not in it: run, file, what is wrong, what to do."""


def write_report(sweep: Sweep, runs_dir: Path, reports_dir: Path) -> Path:
    """Write reports/<sweep>/ and return the path of its page.

    Files are replaced one by one, each atomically, the page last. ConfigError where there is
    nothing to report, RunError where a place cannot be read or written, FullerReport where a part
    would replace more. What is damaged is left out (`write` says what).
    """
    return write(sweep, runs_dir, reports_dir / sweep.report_name).page


def write(sweep: Sweep, runs_dir: Path, folder: Path) -> Written:
    """Write the report in `folder`; what is damaged is said on the standard error."""
    from harness.figures import check_drawn

    source.check(sweep.name, sweep.file, sweep_folder(sweep, runs_dir), folder)
    made_of = unchanged.digest(sweep, runs_dir, page.shown(sweep.file))
    if unchanged.is_unchanged(sweep, runs_dir, folder, made_of):
        return Written(folder / PAGE)
    measurements = gather(sweep, runs_dir, folder)
    files: dict[str, bytes] = {}
    pictures: list[Picture] = []
    for part, drawn in _files(sweep, measurements, folder):
        for name, content in part.items():
            _replace(folder / name, content)
        files |= part
        pictures += drawn
    if not measurements.committed:
        _remove_stale(folder, set(files))
    left_out = tuple(measurements.results.left_out)
    for text in left_out:
        warn(f"error: {text}")
    check_drawn(folder / PAGE, pictures)
    if not measurements.committed and not left_out:  # it is said every time
        unchanged.remember(sweep, runs_dir, folder, made_of, files)
    return Written(folder / PAGE, measurements.committed, left_out)


def _files(
    sweep: Sweep, measurements: Measurements, folder: Path
) -> "Iterator[tuple[dict[str, bytes], list[Picture]]]":
    """Everything that is written, by path inside the report's folder, and its pictures: first
    measurements and tables, then the figures, the page last."""
    from harness import tables
    from harness.analysis import analyse
    from harness.figures import draw
    from harness.views import DEFAULT, answer, make_views
    from harness.views import files as view_files

    _check_replaces_less(sweep, measurements, folder)
    analysis = analyse(sweep, measurements.results)
    names = (*DEFAULT, *sweep.views)
    views = make_views(analysis, measurements.results, measurements.probes, names)
    told = answer(views, sweep.answered_by)
    files = {}
    if not measurements.committed:
        files = to_files(sweep, measurements, relative(sweep.file, folder))
    files |= {
        "table.md": (tables.to_markdown(analysis, told) + view_files.markdown(views)).encode(),
        "table.csv": tables.to_csv(analysis).encode(),
        "table.tex": (tables.to_latex(analysis) + view_files.latex(views)).encode(),
    }
    yield files, []
    pictures = draw(analysis, measurements.results, measurements.samples)
    drawn = {view.name: [picture() for picture in view.pictures] for view in views}
    every = [*pictures, *(picture for of_view in drawn.values() for picture in of_view)]
    yield {name: content for one in every for name, content in one.files.items()}, every
    page_ = _page(analysis, pictures, views, drawn, told, measurements)
    yield {PAGE: page_.encode()}, []


def _check_replaces_less(sweep: Sweep, measurements: Measurements, folder: Path) -> None:
    """FullerReport where a part of the sweep would replace the report of a larger part."""
    finished = int((measurements.results.runs["state"] == "finished").sum())
    # A damaged run is no smaller part of the sweep: the report says that it is missing.
    kept = kept_finished(folder) - len(measurements.results.left_out)
    if finished < min(kept, len(sweep.runs)):
        raise FullerReport(
            f"{folder} has {kept} finished runs and is kept; now {finished} of {len(sweep.runs)} "
            "are finished (--reports DIR reports them elsewhere)"
        )


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is either the old one or the new one, whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def _remove_stale(folder: Path, written: set[str]) -> None:
    """Remove pictures of an earlier report that this one does not have."""
    for part, pattern in (("figures", "*.p[nd][gf]"), ("samples", "*/*.png")):
        for path in (folder / part).glob(pattern):
            if path.relative_to(folder).as_posix() not in written:
                with contextlib.suppress(OSError):
                    path.unlink()


def _page(
    analysis: "Analysis",
    pictures: "list[Picture]",
    views: "list[View]",
    drawn: "dict[str, list[Picture]]",
    told: str,
    measurements: Measurements,
) -> str:
    """The page: one file, pictures inside, autoescaped. `drawn`: the views' pictures by view;
    `told`: the answer, where a view gives it."""
    from harness import findings
    from harness.tables import tables

    sweep = analysis.sweep
    arguments = page.arguments(sweep.file, sweep.profile, sweep.overrides)
    return page.render(
        "report.html",
        name=sweep.name,
        profile=sweep.profile,
        question=sweep.question,
        # The file's remark is about the file's settings.
        notes="" if sweep.overrides else sweep.notes,
        in_short=findings.in_short(analysis, told),
        others=[finding.text for finding in findings.other_rewards(analysis)],
        missing=findings.missing(analysis),
        pictures=pictures,
        views=views,
        drawn=drawn,
        tables=tables(analysis),
        statistics=findings.statistics_notes(analysis),
        made=_made(analysis, measurements),
        command_sweep=f"python -m harness.sweep {arguments}",
        command_report=f"python -m harness.report {arguments}",
    )


def _made(analysis: "Analysis", measurements: Measurements) -> list[tuple[str, str]]:
    sweep, runs = analysis.sweep, measurements.results.runs
    finished = runs[runs["state"] == "finished"]
    seconds = float(finished["seconds_total"].sum())
    if "shared_seconds" in finished:  # another run has taken them
        seconds -= float(finished["shared_seconds"].sum())
    time = f"{seconds / 3600:.2f} hours" if seconds >= 360 else duration(seconds)
    made: list[tuple[str, Any]] = [
        ("Sweep file", page.shown(sweep.file)),
        ("Profile", sweep.profile),
        ("Settings on top", ", ".join(sweep.overrides)),
        ("Model", _distinct(run.config.model.name for run in sweep.runs)),
        *_rewards(analysis),
        ("Arms", ", ".join(map(_arm, sweep.arms))),
        ("Seeds", ", ".join(map(str, sweep.seeds))),
        ("Iterations", _distinct(int(run.config.iterations) for run in sweep.runs)),
        ("Runs", f"{len(finished)} finished, {time} of training in all"),
        *(("Machine", text) for text in measurements.results.env),
    ]
    return [(term, str(text)) for term, text in made if text != ""]


def _rewards(analysis: "Analysis") -> list[tuple[str, Any]]:
    """What is trained on and what is only measured; arm by arm where they differ."""
    sets = dict.fromkeys(result.trained for result in analysis.arms)
    if len(sets) == 1:
        return [
            ("Trained on", ", ".join(analysis.trained)),
            ("Held out", ", ".join(analysis.held_out)),
        ]
    return [
        (f"Trained on in {result.arm.label}", ", ".join(result.trained)) for result in analysis.arms
    ] + [("Held out in all arms", ", ".join(analysis.held_out))]


def _arm(arm: Arm) -> str:
    if arm.base is None:
        return arm.label
    path = Path(arm.base)
    return f"{arm.label} ({path.name if path.is_absolute() else path.as_posix()})"


def _distinct(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _has_results(sweep: Sweep, runs_dir: Path, reports_dir: Path) -> bool:
    runs = runs_dir / sweep.name
    if any((runs / run.folder_name / "result.json").exists() for run in sweep.runs):
        return True
    return all((reports_dir / sweep.report_name / f"{name}.parquet").exists() for name in FRAMES)


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
) -> int:
    """Write a sweep's report from its run folders, or from the measurements kept with it."""
    if (file is None) != every:
        raise ConfigError("give either a sweep file or --all")
    if file is not None:
        sweep = load_sweep(file, profile, set_ or [])
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
        from harness.overall_page import write_overall

        with _noting(failed, reports):
            say(write_overall(sweeps, runs, reports))
    if failed:
        raise failed[0]
    return 0


if __name__ == "__main__":
    run_command(main)
