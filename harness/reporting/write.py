"""Writes the report of a sweep into its folder: tables, figures, the measurements, one page.

A line of pure functions: measurements -> `analyse` -> `content` -> tables, figures and the page.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.kept import Measurements, kept_finished, to_files
from harness.analysis.measurements import gather
from harness.analysis.results import begun
from harness.reporting import page, unchanged
from harness.runs import source
from harness.runs.source import relative
from harness.runs.state import sweep_folder
from harness.study.spec import Sweep
from mixgrpo.cli import warn
from mixgrpo.errors import RunError

if TYPE_CHECKING:
    from harness.reporting.figures import Picture

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
    nothing to report, RunError where a file cannot be read or written, FullerReport where a
    part of the sweep would replace the report of a larger one. What is damaged is left out.
    """
    return write(sweep, runs_dir, reports_dir / sweep.report_name).page


def write(sweep: Sweep, runs_dir: Path, folder: Path) -> Written:
    """Write the report in `folder`; what is damaged is named on standard error."""
    from harness.reporting.figures import check_drawn

    source.check(sweep.name, sweep.file, sweep_folder(sweep, runs_dir), folder)
    made_of = unchanged.digest(sweep, runs_dir, page.shown(sweep.file))
    if unchanged.is_unchanged(sweep, runs_dir, folder, made_of):
        return Written(folder / PAGE)
    measurements = gather(sweep, runs_dir, folder)
    files, pictures = page.write_parts(folder, _parts(sweep, measurements, folder))
    if not measurements.committed:
        _remove_stale(folder, files)
    left_out = tuple(measurements.results.left_out)
    for text in left_out:
        warn(f"error: {text}")
    check_drawn(folder / PAGE, pictures)
    if not measurements.committed and not left_out:  # damage is reported every time
        unchanged.remember(sweep, runs_dir, folder, made_of, files)
    return Written(folder / PAGE, measurements.committed, left_out)


def _parts(
    sweep: Sweep, measurements: Measurements, folder: Path
) -> "Iterator[tuple[dict[str, bytes], list[Picture]]]":
    """Everything that is written, by path inside the report's folder, and its pictures: first
    measurements and tables, then the figures, the page last."""
    from harness.analysis.analyse import analyse
    from harness.reporting.content import content, made_of, to_html, to_latex, to_markdown
    from harness.reporting.csvfile import to_csv
    from harness.reporting.figures import draw
    from harness.reporting.views.view import make_views
    from harness.study.views import DEFAULT

    _check_replaces_less(sweep, measurements, folder)
    results = begun(sweep, measurements.results)
    measurements = replace(measurements, results=results)
    analysis = analyse(sweep, results)
    views = make_views(analysis, results, measurements.probes, (*DEFAULT, *sweep.views))
    report = content(analysis, views)
    files = {}
    if not measurements.committed:
        files = to_files(sweep, measurements, relative(sweep.file, folder))
    yield (
        files
        | {
            "table.md": to_markdown(report).encode(),
            "table.csv": to_csv(analysis).encode(),
            "table.tex": to_latex(report).encode(),
        },
        [],
    )
    pictures = draw(analysis, results, measurements.samples)
    of_views = {view.name: [picture() for picture in view.pictures] for view in views}
    every = [*pictures, *(picture for of_view in of_views.values() for picture in of_view)]
    yield {name: file for one in every for name, file in one.files.items()}, every
    html = to_html(report, made_of(analysis, results), pictures, of_views)
    yield {PAGE: html.encode()}, []


def _check_replaces_less(sweep: Sweep, measurements: Measurements, folder: Path) -> None:
    """FullerReport where a part of the sweep would replace the report of a larger part."""
    finished = len(measurements.results.finished)
    # A damaged run is no smaller part of the sweep: the report says that it is missing.
    kept = kept_finished(folder) - len(measurements.results.left_out)
    if finished < min(kept, len(sweep.runs)):
        raise FullerReport(
            f"{folder} has {kept} finished runs and is kept; now {finished} of {len(sweep.runs)} "
            "are finished (--reports DIR reports them elsewhere)"
        )


def _remove_stale(folder: Path, written: dict[str, bytes]) -> None:
    """Remove pictures of an earlier report that this one does not have."""
    for part, pattern in (("figures", "*.p[nd][gf]"), ("samples", "*/*.png")):
        for path in (folder / part).glob(pattern):
            if path.relative_to(folder).as_posix() not in written:
                with contextlib.suppress(OSError):
                    path.unlink()
