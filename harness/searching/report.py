"""Writes the report of a search: the trials, tables, figures, one page, and the sweep to confirm.

    python -m harness.search sweeps/search/window.yaml --report

Made from the storage, or, where there is none, from the trials that an earlier report kept. The
same trials give the same bytes.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reporting import page as shared
from harness.reporting.figures import check_drawn
from harness.reporting.tables import Table
from harness.runs import environment, source
from harness.runs.records import Environment
from harness.runs.source import relative
from harness.searching import confirm, records
from harness.searching.file import Search
from harness.searching.plots import draw
from harness.searching.runs import on_one_core
from harness.searching.storage import NoTrialsError, storage_file
from harness.searching.study import Study
from harness.searching.words import Told, answer, markdown, more, tables
from harness.text import command
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.atomic import write_bytes
from mixgrpo.files.records import DamagedFileError, read

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.analyse import Analysis
    from harness.reporting.figures import Picture


PAGE = "index.html"


def write_report(search: Search, runs_dir: Path, reports_dir: Path, url: str | None) -> Path:
    """Write reports/<search>/ and return the path of its page.

    ConfigError where there is nothing to report, RunError where a place cannot be read or written.
    """
    folder = reports_dir / search.report_name
    source.check(search.name, search.file, runs_dir / search.name, folder)
    kept = _gather(search, runs_dir, folder, url)
    trials, made = _read_back(kept)
    files: dict[str, bytes] = dict(kept)
    text = confirm.sweep_text(search, trials, folder)
    if text is not None:
        files[confirm.FILE] = text.encode()
        _write(folder, {confirm.FILE: files[confirm.FILE]})
    confirmed = _confirmed(search, runs_dir, reports_dir, folder) if text is not None else None
    unit = "seconds of one core's time" if made.get("one_core") else "seconds"
    place = None if text is None else folder / confirm.FILE
    told = Told(search, trials, made, confirmed, place, unit)
    found = tables(told)
    files["table.md"] = markdown(told, found).encode()
    _write(folder, files)
    pictures = draw(told)
    files = {name: content for one in pictures for name, content in one.files.items()}
    files[PAGE] = page(told, pictures, found).encode()
    _write(folder, files)
    for path in (folder / "figures").glob("*.p[nd][gf]"):
        if path.relative_to(folder).as_posix() not in files:
            path.unlink(missing_ok=True)
    check_drawn(folder / PAGE, pictures)
    return folder / PAGE


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def _gather(search: Search, runs_dir: Path, folder: Path, url: str | None) -> dict[str, bytes]:
    """The files that are committed: of the storage, or as they lie there."""
    place = runs_dir / search.name
    fresh = None
    if url is not None or storage_file(place).exists():
        try:
            trials = Study(search, place, url, create=False).trials()
            fresh = records.to_frame(search, trials)
        except NoTrialsError:
            fresh = None
    if fresh is not None and len(fresh):
        if (folder / records.FILE).exists():
            with contextlib.suppress(ConfigError):
                kept, _ = records.read_files(search, folder)
                if len(kept) > len(fresh):
                    raise RunError(
                        f"{folder} has {len(kept)} trials and is kept; now there are {len(fresh)} "
                        "(--reports DIR reports them elsewhere)"
                    )
        machines, core = _machines(place, fresh)
        return records.to_files(search, fresh, machines, core, relative(search.file, folder))
    records.read_files(search, folder)  # says what is wrong
    return {name: (folder / name).read_bytes() for name in (records.FILE, records.MADE)}


def _read_back(files: dict[str, bytes]) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """As a fresh clone reads them, so that both draw the same."""
    import pandas as pd

    frame = pd.read_parquet(io.BytesIO(files[records.FILE]))
    return frame, dict(json.loads(files[records.MADE]))


def _machines(place: Path, trials: "pd.DataFrame") -> tuple[list[str], bool]:
    """The machines of the finished runs in words, and whether all ran on one core each."""
    arms = set(trials["arm"])
    words: set[str] = set()
    core: bool | None = None
    for folder in sorted(place.glob("*-seed*-*")):
        if folder.name.rpartition("-seed")[0] in arms and (folder / "result.json").exists():
            core = core is not False and on_one_core(folder)
            with contextlib.suppress(DamagedFileError):
                env = read(Environment, folder / "env.json")
                words |= {environment.in_words(env)} if env else set()
    return sorted(words), bool(core)


def _confirmed(
    search: Search, runs_dir: Path, reports_dir: Path, folder: Path
) -> "Analysis | None":
    """What the fresh seeds say; None while they have not run."""
    from harness.analysis.analyse import analyse
    from harness.analysis.measurements import gather
    from harness.study.load import load_sweep

    sweep = load_sweep(folder / confirm.FILE)
    try:
        found = gather(sweep, runs_dir, reports_dir / sweep.report_name)
    except ConfigError:
        return None
    analysis = analyse(sweep, found.results)
    return analysis if analysis.compared else None


def page(told: Told, pictures: "list[Picture]", found: list[Table]) -> str:
    search = told.search
    arguments = shared.arguments(search.file, search.profile, search.overrides)
    return shared.render(
        "search.html",
        name=search.report_name,
        profile=search.profile,
        question=search.question,
        answer=answer(told),
        more=more(told),
        notes=search.notes,
        pictures=pictures,
        tables=found,
        made=_made(told),
        command_search=f"python -m harness.search {arguments}",
        command_report=f"python -m harness.search {arguments} --report",
        command_confirm=None
        if told.confirmation is None
        else command("harness.sweep", shared.shown(told.confirmation)),
    )


def _made(told: Told) -> list[tuple[str, str]]:
    search = told.search
    ranges = "; ".join(f"{one.label}: {one.text}" for one in search.space)
    goal = f"{search.measure} up"
    if search.objectives[1:]:
        goal += f", {search.objectives[1]} down"
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    made = [
        ("Search file", shared.shown(search.file)),
        ("Profile", search.profile),
        ("Settings on top", ", ".join(search.overrides)),
        ("Ranges", ranges),
        ("Objective", goal),
        ("Budget of a run", ", ".join(f"{value:,} {name}" for name, value in budget.items())),
        ("Seeds of the search", ", ".join(map(str, search.seeds))),
        ("Sampler", f"Optuna's TPE, seed {search.sampler_seed}"),
        *(("Machine", text) for text in told.made.get("machines", [])),
    ]
    return [(term, text) for term, text in made if text]
