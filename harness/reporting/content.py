"""What a report says, as data, and the same as Markdown, LaTeX and HTML.

`content` makes findings, notes and tables of the analysis once; every file is made of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis import columns
from harness.reporting import findings, notes, page
from harness.reporting.latex import NEEDED, latex_table
from harness.reporting.tables import Table, markdown_list, markdown_section, tables
from harness.reporting.views.view import View, answer
from harness.text import command_for
from mixgrpo.text.escape import markdown_block
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    from harness.analysis.analyse import Analysis
    from harness.analysis.results import Results
    from harness.reporting.figures import Picture
    from harness.study.arms import Arm
    from harness.study.spec import Sweep


@dataclass(frozen=True)
class Content:
    sweep: "Sweep"
    in_short: list[str]
    others: list[str]
    """What the rewards beside the measure did."""
    missing: list[str]
    remark: str
    """The file's, which is about the file's settings: empty where others are laid on top."""
    tables: list[Table]
    views: list[View]
    how_to_read: list[str]


def content(analysis: "Analysis", views: Sequence[View] = ()) -> Content:
    sweep = analysis.sweep
    return Content(
        sweep,
        findings.in_short(analysis, answer(views, sweep.answered_by)),
        [finding.text for finding in findings.other_rewards(analysis)],
        notes.missing(analysis),
        "" if sweep.overrides else sweep.notes,
        tables(analysis),
        list(views),
        notes.statistics_notes(analysis),
    )


def to_markdown(report: Content) -> str:
    texts = (report.sweep.question, *report.in_short, *report.missing, report.remark)
    title, *parts = map(markdown_block, texts)
    parts = [f"# {title}", *parts]
    for table in report.tables:
        parts += markdown_section(table)
    parts += ["## How to read the numbers", *markdown_list(report.how_to_read)]
    for view in report.views:
        parts += [f"## {markdown_block(view.title)}", *map(markdown_block, view.sentences)]
        for table in view.tables:
            parts += markdown_section(table, "###")
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(report: Content) -> str:
    """Floats with booktabs rules, for \\input; needs \\usepackage{booktabs, graphicx}."""
    of_views = [table for view in report.views for table in view.tables]
    return "\n\n".join([NEEDED, *map(latex_table, [*report.tables, *of_views])]) + "\n"


def to_html(
    report: Content,
    made: list[tuple[str, str]],
    pictures: "list[Picture]",
    of_views: "dict[str, list[Picture]]",
) -> str:
    """One file, pictures inside, autoescaped. `of_views`: the views' pictures, by view."""
    sweep = report.sweep
    file = page.shown(sweep.file)
    return page.render(
        "report.html",
        name=sweep.name,
        profile=sweep.profile,
        question=sweep.question,
        notes=report.remark,
        in_short=report.in_short,
        others=report.others,
        missing=report.missing,
        pictures=pictures,
        views=report.views,
        drawn=of_views,
        tables=report.tables,
        statistics=report.how_to_read,
        made=made,
        command_sweep=command_for("harness.sweep", sweep, file=file),
        command_report=command_for("harness.report", sweep, file=file),
    )


def made_of(analysis: "Analysis", results: "Results") -> list[tuple[str, str]]:
    """What a report was made of: terms and what they are."""
    sweep, finished = analysis.sweep, results.finished
    seconds = float(finished[columns.SECONDS].sum())
    if columns.SHARED_SECONDS in finished:  # another run has taken them
        seconds -= float(finished[columns.SHARED_SECONDS].sum())
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
        *(("Machine", machine.words) for machine in results.machines),
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


def _arm(arm: "Arm") -> str:
    if arm.base is None:
        return arm.label
    path = Path(arm.base)
    return f"{arm.label} ({path.name if path.is_absolute() else path.as_posix()})"


def _distinct(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))
