"""Writes the report of a search: the trials, tables, figures, one page, and the sweep to confirm.

    python -m harness.search sweeps/search/window.yaml --report

Made from the storage, or, where there is none, from the trials that an earlier report kept. The
same trials give the same bytes.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.reporting.figures import Picture, check_drawn
from harness.reporting.page import render, shown, write_files
from harness.reporting.tables import Table
from harness.runs import source
from harness.runs.environment import Machine
from harness.runs.source import relative
from harness.searching import confirm, records
from harness.searching.file import Search
from harness.searching.outcome import Outcome, answer, markdown, more, tables
from harness.searching.plots import draw
from harness.searching.runs import run_machine
from harness.searching.storage import NoTrialsError
from harness.searching.study import Study
from harness.text import command
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.analyse import Analysis

PAGE = "index.html"


def write_report(search: Search, runs_dir: Path, reports_dir: Path, url: str | None) -> Path:
    """Write reports/<search>/ and return the path of its page.

    ConfigError where there is nothing to report, RunError where a file cannot be read or written.
    """
    folder = reports_dir / search.report_name
    source.check(search.name, search.file, runs_dir / search.name, folder)
    kept = _gather(search, runs_dir, folder, url)
    trials, machines = records.parse(kept)  # as a fresh clone reads them
    text = confirm.sweep_text(search, trials, folder)
    outcome = Outcome(search, trials, machines)
    if text is not None:
        write_files(folder, {confirm.FILE: text.encode()})
        confirmed = _confirmed(runs_dir, reports_dir, folder)
        outcome = Outcome(search, trials, machines, confirmed, folder / confirm.FILE)
    made = tables(outcome)
    write_files(folder, {**kept, "table.md": markdown(outcome, made).encode()})
    pictures = draw(outcome)
    files = {name: content for one in pictures for name, content in one.files.items()}
    write_files(folder, {**files, PAGE: page(outcome, pictures, made).encode()})
    for path in (folder / "figures").glob("*.p[nd][gf]"):
        if path.relative_to(folder).as_posix() not in files:
            path.unlink(missing_ok=True)
    check_drawn(folder / PAGE, pictures)
    return folder / PAGE


def _gather(search: Search, runs_dir: Path, folder: Path, url: str | None) -> dict[str, bytes]:
    """The files that are committed: of the storage, or as an earlier report kept them."""
    runs, fresh = runs_dir / search.name, None
    with contextlib.suppress(NoTrialsError):
        fresh = records.to_frame(search, Study(search, runs, url, create=False).trials())
    if fresh is None or not len(fresh):
        return records.read_files(search, folder)
    with contextlib.suppress(ConfigError):
        kept, _ = records.parse(records.read_files(search, folder))
        if len(kept) > len(fresh):
            raise RunError(
                f"{folder} has {len(kept)} trials and is kept; now there are {len(fresh)} "
                "(--reports DIR reports them elsewhere)"
            )
    file = relative(search.file, folder)
    return records.to_files(search, fresh, _machines(runs, fresh), file)


def _machines(runs: Path, trials: "pd.DataFrame") -> list[Machine]:
    """What the finished runs were computed with, each once."""
    arms, machines = set(trials["arm"]), set()
    for folder in runs.glob("*-seed*-*"):
        if folder.name.rpartition("-seed")[0] in arms and (folder / "result.json").exists():
            unknown = Machine("unknown: env.json of a run is damaged or missing", one_core=False)
            machines.add(run_machine(folder) or unknown)
    return sorted(machines)


def _confirmed(runs_dir: Path, reports_dir: Path, folder: Path) -> "Analysis | None":
    """What the fresh seeds say; None while they have not run."""
    from harness.analysis.analyse import analyse
    from harness.analysis.measurements import gather
    from harness.study.load import load_sweep

    sweep = load_sweep(folder / confirm.FILE)
    try:
        measured = gather(sweep, runs_dir, reports_dir / sweep.report_name)
    except ConfigError:
        return None
    analysis = analyse(sweep, measured.results)
    return analysis if analysis.compared else None


def page(outcome: Outcome, pictures: list[Picture], made: list[Table]) -> str:
    """The page of the report: one file, pictures inside."""
    search, confirmation = outcome.search, outcome.confirmation
    return render(
        "search.html",
        name=search.report_name,
        profile=search.profile,
        question=search.question,
        answer=answer(outcome),
        more=more(outcome),
        notes=search.notes,
        pictures=pictures,
        tables=made,
        made=_made(outcome),
        command_search=outcome.command(),
        command_report=outcome.command("--report"),
        command_confirm=confirmation and command("harness.sweep", shown(confirmation)),
    )


def _made(outcome: Outcome) -> list[tuple[str, str]]:
    search = outcome.search
    goals = [f"{search.measure} up", *(f"{cost} down" for cost in search.objectives[1:])]
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    made = [
        ("Search file", shown(search.file)),
        ("Profile", search.profile),
        ("Settings on top", ", ".join(search.overrides)),
        ("Ranges", "; ".join(f"{one.label}: {one.text}" for one in search.space)),
        ("Objective", ", ".join(goals)),
        ("Budget of a run", ", ".join(f"{value:,} {name}" for name, value in budget.items())),
        ("Seeds of the search", ", ".join(map(str, search.seeds))),
        ("Sampler", f"Optuna's TPE, seed {search.sampler_seed}"),
        *(("Machine", machine.words) for machine in outcome.machines),
    ]
    return [(term, text) for term, text in made if text]
