"""Writes the report over all studies: reports/index.html, README.md, tables.tex and the figures.

Everything is made from the measurements kept with the studies' reports. The same measurements give
the same bytes; where nothing has changed since they were written, nothing is read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.overall.studies import has_measurements, is_study, read_study
from harness.reporting import page, unchanged
from harness.reporting.unchanged import stamp
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError
from mixgrpo.text.escape import latex, markdown, markdown_block

if TYPE_CHECKING:
    from harness.overall.questions import Overall
    from harness.overall.studies import Study
    from harness.reporting.figures import Picture
    from harness.reporting.tables import Table

PAGE = "index.html"
TITLE = "MixGRPO, measured: every question and its answer"
NO_RESULTS = "no results yet"
OTHER_CONFIGURATION = "no results yet of the file as it is now; those kept are of another setting"
KEPT = ("runs.parquet", "metrics.parquet", "evals.parquet", "probes.parquet", "made.json")


def write_overall(sweeps: Sequence[Sweep], runs_dir: Path, reports: Path) -> Path:
    """Write the overall report and return the path of its page.

    `sweeps`: every sweep, reported or not; those that are for trying things out are left out.
    Files are replaced one by one, each atomically, the page last. RunError where a place cannot be
    read or written.
    """
    from harness.reporting.figures import check_drawn

    studies = [sweep for sweep in sweeps if is_study(sweep)]
    made_of = _digest(studies, reports)
    record = unchanged.record(runs_dir, "overall", reports)
    if not unchanged.holds(record, reports, made_of):
        files, pictures = page.write_parts(reports, _files(studies, reports))
        check_drawn(reports / PAGE, pictures)
        if runs_dir.is_dir():
            unchanged.keep(record, reports, made_of, files)
    return reports / PAGE


def _digest(sweeps: Sequence[Sweep], reports: Path) -> str:
    """Changes when anything does that the overall report is made of."""
    hashed = hashlib.sha256()
    for part in unchanged.code():
        hashed.update(repr(part).encode())
    for sweep in sweeps:
        folder = reports / sweep.report_name
        # Arms once: a run's configuration is its arm's with a seed.
        hashed.update(repr(replace(sweep, runs=sweep.runs[: len(sweep.arms)])).encode())
        hashed.update(repr([run.hash for run in sweep.runs]).encode())
        hashed.update(repr([stamp(folder / name) for name in KEPT]).encode())
    return hashed.hexdigest()


def _files(
    sweeps: Sequence[Sweep], reports: Path
) -> "Iterator[tuple[dict[str, bytes], list[Picture]]]":
    """Everything that is written, by path inside the reports' folder, and the pictures; the page
    last."""
    from harness.overall.questions import put_together

    studies, absent = [], []
    for sweep in sweeps:
        if not has_measurements(sweep, reports):
            absent.append((sweep, NO_RESULTS))
            continue
        try:
            studies.append(read_study(sweep, reports))
        except ConfigError:
            absent.append((sweep, OTHER_CONFIGURATION))
    overall = put_together(studies, absent)
    yield {"tables.tex": to_latex(overall).encode()}, []
    pictures = draw(overall)
    yield {"README.md": to_markdown(overall, pictures).encode()}, []
    yield {name: content for one in pictures for name, content in one.files.items()}, pictures
    yield {PAGE: to_html(overall, pictures).encode()}, []


def draw(overall: "Overall") -> "list[Picture]":
    """The figures that have data."""
    from harness.overall import plots
    from harness.overall.front import distinct
    from harness.reporting.figures import picture

    asked = [q for q in overall.questions if q.effect is not None]
    drawn = []
    if asked:
        caption = (
            "The largest effect of every question: held-out reward after training, arm minus "
            "reference, paired by seed, with the interval that holds for all comparisons of the "
            "study. Full mark: better or worse than the reference. Open mark: neither. The "
            "grey bar: differences that are too small to be detected with these seeds, which is "
            "not the same as equal. Questions about something else are left out."
        )
        title = "Every question's largest effect"
        drawn.append(picture("questions", title, caption, lambda: plots.questions(asked)))
    if overall.points:
        caption = (
            "Held-out reward after training, with its 95 % interval, against what one run takes. "
            "The dashed line is the front of the means: full marks lie on it, and no arm that "
            "costs no more has a higher mean. Arms whose intervals overlap are not significant by "
            "this picture; the table compares them seed by seed. Evaluations are counted; seconds "
            "of runs that were trained at different times may differ for the same work."
        )
        title = "Reward against cost"
        drawn.append(picture("pareto", title, caption, lambda: plots.pareto(overall.points)))
    studies = distinct([q.study for q in overall.questions if plots.sensitive_arms(q.study)])
    if studies:
        caption = (
            "Every setting against its study's reference, on one axis: held-out reward after "
            "training, paired by seed, with the interval that holds for all comparisons of the "
            "study. Full mark: better or worse than the reference. Open mark: neither. The "
            "shaded band is one standard deviation of a single run's reward over seeds, to both "
            "sides."
        )
        title = "How sensitive the reward is to each setting"
        drawn.append(picture("sensitivity", title, caption, lambda: plots.sensitivity(studies)))
    return drawn


def _parts(overall: "Overall") -> dict[str, list[str]]:
    """The page's lists of sentences, by heading."""
    from harness.overall import words

    return {
        "Beside the paper": words.of_the_paper(overall),
        "Arms that are the same": words.same_schedules(overall),
        "What is missing": words.incomplete(overall),
        "How to read the numbers": words.notes(overall),
    }


def to_html(overall: "Overall", pictures: "list[Picture]") -> str:
    """The page: one file, pictures inside, autoescaped; links to the studies beside it."""
    from harness.overall import tables as overall_tables
    from harness.overall import words
    from harness.overall.glance import glance

    return page.render(
        "overall.html",
        title=TITLE,
        headline=words.headline(overall),
        summary=words.summary(overall),
        glance=glance(overall),
        front=words.front_sentences(overall),
        pictures={picture.name: picture for picture in pictures},
        questions=overall_tables.questions_table(overall),
        front_table=overall_tables.front_table(overall),
        noise=overall_tables.paper_noise_table(),
        costs=overall_tables.costs_table(overall),
        studies=[question.study for question in overall.questions],
        lists=_parts(overall),
    )


def to_markdown(overall: "Overall", pictures: "list[Picture]") -> str:
    """The same for a reader of the repository, with relative links."""
    from harness.overall import tables as overall_tables
    from harness.overall import words
    from harness.overall.glance import glance
    from harness.reporting.tables import markdown_list, markdown_section

    figures = {
        p.name: ("" if p.error else f"![{markdown(p.title)}](figures/{p.name}.png)\n\n")
        + f"*{markdown(p.caption)}*"
        for p in pictures
    }
    questions = overall_tables.questions_table(overall)
    studies = [question.study for question in overall.questions]

    parts = [f"# {TITLE}", f"**{markdown(words.headline(overall))}**"]
    parts += markdown_list(words.summary(overall))
    parts += [
        "The same as one page with its pictures inside: `index.html`. All tables for print: "
        "[tables.tex](tables.tex). Made by `python -m harness.report --all`, never by hand.",
        figures.get("questions", ""),
        *markdown_section(glance(overall), links=[f"{study.folder}/table.md" for study in studies]),
        *markdown_section(questions, links=[f"{study.folder}/table.md" for study in studies]),
    ]
    table = overall_tables.front_table(overall)
    if table is not None:
        front = map(markdown_block, words.front_sentences(overall))
        parts += ["## Reward against cost", *front, figures["pareto"]]
        parts += markdown_section(table, "###")
    if "sensitivity" in figures:
        parts += ["## How sensitive the reward is to each setting", figures["sensitivity"]]
    parts += [
        *markdown_section(overall_tables.paper_noise_table()),
        *markdown_section(overall_tables.costs_table(overall)),
    ]
    parts.append("## The studies")
    parts.append("\n".join(map(_study_line, studies)))
    for title, said in _parts(overall).items():
        if said:
            parts += [f"## {title}", *markdown_list(said)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _study_line(study: "Study") -> str:
    folder, sweep = study.folder, study.sweep
    profile = f", profile {sweep.profile}" if sweep.profile else ""
    lines = [
        f"* {markdown(f'{sweep.name}{profile}')}: [tables]({folder}/table.md), "
        f"[page]({folder}/index.html), "
        f"[numbers]({folder}/table.csv), measurements [of runs]({folder}/runs.parquet), "
        f"[iterations]({folder}/metrics.parquet) and [evaluations]({folder}/evals.parquet)."
    ]
    lines += [f"  {markdown(said)}" for said in filter(None, (study.answer, *study.said))]
    lines += [f"  Machine: {markdown(machine)}." for machine in study.machines]
    return "\n".join(lines)


def to_latex(overall: "Overall") -> str:
    """A whole document: the tables over all studies, then every study's own."""
    from harness.overall import tables as overall_tables
    from harness.overall import words
    from harness.overall.glance import glance
    from harness.reporting.latex import latex_table
    from harness.reporting.tables import tables

    questions = overall_tables.questions_table(overall)
    parts = [
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        "\\usepackage[margin=2cm]{geometry}\n\\setlength{\\parindent}{0pt}\n"
        "\\setlength{\\parskip}{4pt}\n\\makeatletter\n% Tables stand where they are written.\n"
        "\\def\\fps@table{!htbp}\n\\makeatother\n\\begin{document}",
        rf"\section*{{{latex(TITLE)}}}",
        latex(words.headline(overall)),
        *map(latex, words.summary(overall)),
        latex_table(glance(overall)),
        latex_table(_without(questions, "question", "answer")),
        latex_table(overall_tables.paper_noise_table()),
        latex_table(overall_tables.costs_table(overall)),
    ]
    front = overall_tables.front_table(overall)
    if front is not None:
        parts += [latex(said) for said in words.front_sentences(overall)]
        parts.append(latex_table(front))
    for question, row in zip(overall.questions, questions.rows, strict=True):
        study = question.study
        parts += [
            r"\clearpage",
            rf"\section*{{{latex(f'{study.sweep.name}: {study.sweep.question}')}}}",
            latex(row[2]),
            *(latex_table(table) for table in tables(study.analysis)),
        ]
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def _without(table: "Table", *columns: str) -> "Table":
    kept = [index for index, column in enumerate(table.columns) if column not in columns]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )
