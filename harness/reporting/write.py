"""Writes the report of a sweep into its folder: tables, figures, the measurements, one page."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.measurements import Measurements, gather, kept_finished, to_files
from harness.reporting import page, unchanged
from harness.runs import source
from harness.runs.source import relative
from harness.runs.state import sweep_folder
from harness.study.arms import Arm
from harness.study.spec import Sweep
from mixgrpo.cli import warn
from mixgrpo.errors import RunError
from mixgrpo.files.atomic import write_bytes
from mixgrpo.text.escape import markdown_block
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    from harness.analysis.analyse import Analysis
    from harness.reporting.figures import Picture
    from harness.reporting.views.view import View

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
    from harness.reporting.figures import check_drawn

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
    from harness.analysis.analyse import analyse
    from harness.reporting import tables
    from harness.reporting import write as view_files
    from harness.reporting.figures import draw
    from harness.reporting.views.view import answer, make_views
    from harness.study.views import DEFAULT

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
    from harness.reporting import findings
    from harness.reporting.tables import tables

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
        *(("Machine", machine.words) for machine in measurements.results.machines),
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


def markdown(views: "Sequence[View]") -> str:
    """What follows the report's own tables in table.md: sentences, then tables, view by view."""
    from harness.reporting.tables import markdown_section

    parts: list[str] = []
    for view in views:
        parts += [f"## {markdown_block(view.title)}", *map(markdown_block, view.sentences)]
        for table in view.tables:
            parts += markdown_section(table, "###")
    return "".join(f"\n{part}\n" for part in parts if part)


def latex(views: "Sequence[View]") -> str:
    """What follows the report's own tables in table.tex: a float for every table."""
    from harness.reporting.tables import latex_table

    return "".join(f"\n{latex_table(table)}\n" for view in views for table in view.tables)
