"""Writes the report of a search: the trials, tables, figures, one page, and the sweep to confirm.

    python -m harness.search sweeps/search/window.yaml --report

Made from the storage, or, where there is none, from the trials that an earlier report kept. The
same trials give the same bytes.
"""

import base64
import contextlib
import io
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import environment
from harness.numbers import NOTHING, number
from harness.progress import duration
from harness.searching import confirm, records
from harness.searching.file import Search
from harness.searching.launcher import on_one_core
from harness.searching.space import label
from harness.searching.study import NoTrialsError, Study, storage_file
from harness.tables import Table
from harness.tables import tables as sweep_tables
from mixgrpo.atomic import write_bytes
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis import Analysis
    from harness.figures import Picture

PAGE = "index.html"
_MIN_IMPORTANCE = 8
"""Trials below which importances say nothing."""


@dataclass(frozen=True)
class _Told:
    """What a report is made of."""

    search: Search
    trials: "pd.DataFrame"
    made: dict[str, Any]
    confirmed: "Analysis | None"
    unit: str
    """What a second is."""


def write_report(search: Search, runs_dir: Path, reports_dir: Path, url: str | None) -> Path:
    """Write reports/<search>/ and return the path of its page.

    ConfigError where there is nothing to report, RunError where a place cannot be read or written.
    """
    folder = reports_dir / search.report_name
    kept = _gather(search, runs_dir, folder, url)
    trials, made = _read_back(kept)
    files: dict[str, bytes] = dict(kept)
    text = confirm.sweep_text(search, trials, folder)
    if text is not None:
        files[confirm.FILE] = text.encode()
        _write(folder, {confirm.FILE: files[confirm.FILE]})
    confirmed = _confirmed(search, runs_dir, reports_dir, folder) if text is not None else None
    unit = "seconds of one core's time" if made.get("one_core") else "seconds"
    told = _Told(search, trials, made, confirmed, unit)
    pictures = _draw(told)
    found = _tables(told)
    files["table.md"] = _markdown(told, found).encode()
    for picture in pictures:
        files[f"figures/{picture.name}.png"] = picture.png
        files[f"figures/{picture.name}.pdf"] = picture.pdf
    files[PAGE] = _page(told, pictures, found).encode()
    _write(folder, files)
    for path in (folder / "figures").glob("*.p[nd][gf]"):
        if path.relative_to(folder).as_posix() not in files:
            path.unlink(missing_ok=True)
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
        return records.to_files(search, fresh, machines, core)
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
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                words.add(environment.in_words(json.loads((folder / "env.json").read_text())))
    return sorted(words - {""}), bool(core)


def _confirmed(
    search: Search, runs_dir: Path, reports_dir: Path, folder: Path
) -> "Analysis | None":
    """What the fresh seeds say; None while they have not run."""
    from harness.analysis import analyse
    from harness.measurements import gather
    from harness.spec import load_sweep

    sweep = load_sweep(folder / confirm.FILE)
    try:
        found = gather(sweep, runs_dir, reports_dir / sweep.report_name)
    except ConfigError:
        return None
    analysis = analyse(sweep, found.results)
    return analysis if analysis.compared else None


# ---- sentences -------------------------------------------------------------------------------


def _answer(told: _Told) -> str:
    from harness import findings

    if told.confirmed is None:
        return "The best settings that the search found are not confirmed on fresh seeds yet."
    return findings.answer(told.confirmed)


def _more(told: _Told) -> list[str]:
    """What stands below the answer."""
    from harness import findings

    search, found = told.search, []
    if told.confirmed is not None:
        seeds = ", ".join(map(str, told.confirmed.sweep.seeds))
        found.append(f"Measured with the seeds {seeds}, which the search had not seen.")
        ratio = _cost_ratios(told.confirmed)
        if ratio:
            found.append(ratio)
        resolution = findings.resolution(told.confirmed)
        if resolution:
            found.append(resolution)
    else:
        found.append(
            f"`python -m harness.search {_shown(search.file)}` runs them; until then nothing is "
            "called better."
        )
    return [*found, _counted(told), _biased(told)]


def _cost_ratios(analysis: "Analysis") -> str:
    base = analysis.reference.evaluations
    parts = [
        f"{result.evaluations / base:.2f} for {result.arm.label}"
        for result in analysis.arms
        if result.arm.name != analysis.sweep.reference and math.isfinite(result.evaluations / base)
    ]
    if not parts:
        return ""
    return (
        f"Network evaluations as a multiple of {analysis.reference.arm.label}'s: "
        f"{', '.join(parts)}."
    )


def _counted(told: _Told) -> str:
    trials = told.trials
    real = trials[~trials["free"]]
    done = int((real["state"] == "complete").sum())
    up = int((real["state"] == "pruned").sum())
    failed = int((real["state"] == "failed").sum())
    text = f"{len(real)} settings were tried: {done} with all seeds"
    if up:
        text += f", {up} given up early"
    if failed:
        text += f", {failed} failed"
    none = len(trials) - len(real)
    if none:
        text += (
            f"; {none} more came to nothing (they cannot be run, are over the budget, or were "
            "tried before)"
        )
    return f"{text}; {duration(float(trials['spent'].sum()))} of training in all."


def _biased(told: _Told) -> str:
    return (
        "The highest reward of a search is no measurement of its setting: of many noisy values the "
        "highest is too high, and the settings that were given up have fewer seeds. Figures and "
        "tables of the search say where to look; only the fresh seeds compare."
    )


# ---- tables ----------------------------------------------------------------------------------


def _tables(told: _Told) -> list[Table]:
    found = []
    if told.confirmed is not None:
        found += [
            Table(f"On fresh seeds: {one.title}", one.columns, one.rows, one.note)
            for one in sweep_tables(told.confirmed)[:2]
        ]
    costs = told.search.objectives[1:]
    from harness.searching.plots import whole_trials

    done = whole_trials(told.trials)
    if costs:
        numbers = confirm.pareto(done, costs[0])
        title = f"Pareto-optimal in reward and {costs[0]}"
    else:
        usable = done[done["feasible"]].sort_values(["reward", "number"], ascending=[False, True])
        numbers = [int(n) for n in usable["number"]][:5]
        title = "The highest rewards of the search"
    found.append(_trial_table(told, title, numbers, _biased(told)))
    every = [int(n) for n in told.trials["number"]]
    note = (
        "In the order they were asked for. The reward is the mean over the seeds that ran; a dash: "
        "none did."
    )
    found.append(_trial_table(told, "All trials", every, note, why=True))
    return found


def _trial_table(
    told: _Told, title: str, numbers: Sequence[int], note: str, why: bool = False
) -> Table:
    search = told.search
    columns = ["trial", *(one.label for one in search.space), search.measure, "seeds"]
    columns += ["evaluations", told.unit] + (["what became of it"] if why else [])
    own = confirm.reference(told.trials)
    rows = []
    for n in numbers:
        row = told.trials[told.trials["number"] == n].iloc[0]
        asked = records.asked_of(search, told.trials, n)
        name = f"{n} (reference)" if n == own else str(n)
        settings = [label((one,), asked).partition(" = ")[2] or NOTHING for one in search.space]
        state = {"pruned": "given up"}.get(row["state"], row["state"])
        cells = [name, *settings, number(float(row["reward"])), str(int(row["seeds"]))]
        cells += [_count(row["evaluations"]), number(float(row["seconds"]), 1)]
        rows.append(tuple(cells + ([f"{state}: {row['why']}" if row["why"] else state] * why)))
    return Table(title, tuple(columns), tuple(rows), note)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def _markdown(told: _Told, found: list[Table]) -> str:
    from harness.tables import markdown_table

    parts = [f"# {told.search.question}", _answer(told), *_more(told)]
    for table in found:
        parts += [f"## {table.title}", markdown_table(table), table.note]
    return "\n\n".join(parts) + "\n"


# ---- figures ---------------------------------------------------------------------------------


def _draw(told: _Told) -> "list[Picture]":
    from harness.figures import picture
    from harness.plots import differences
    from harness.searching import plots

    search, trials, found = told.search, told.trials, []
    if told.confirmed is not None:
        analysis = told.confirmed
        found.append(
            picture(
                "confirmed",
                "The best on fresh seeds",
                f"The reward {analysis.measure} on held-out prompts, minus the reference's, paired "
                "by seed, with seeds that the search had not seen. Thick line: 95 % interval of "
                "this setting alone; thin line: the interval that holds for all of them together, "
                "which decides.",
                lambda: differences(analysis),
            )
        )
    if not len(plots.whole_trials(trials)):
        return found
    found.append(
        picture(
            "front",
            "Reward against cost",
            "Each point is a setting with all seeds of the search. Numbers are trials. No other "
            "setting has both more reward and less cost than a Pareto-optimal one, as far as this "
            "search saw: with other seeds the front would be another.",
            lambda: plots.front(search, trials, told.unit),
        )
    )
    shares = _importances(search, trials)
    if shares:
        left_out = [one.label for one in search.space if one.unless]
        some = (
            f" Left out, because not every trial was asked for them: {', '.join(left_out)}."
            if left_out
            else ""
        )
        found.append(
            picture(
                "importances",
                "Which settings matter",
                "PED-ANOVA (Watanabe et al. 2023, Optuna's default): how much the values of a "
                "setting among the best tenth of the trials differ from those among all. It says "
                "where good settings lie within these ranges and among these few trials; it is no "
                f"effect and has no interval.{some}",
                lambda: plots.importance(shares),
            )
        )
    found.append(
        picture(
            "slices",
            "Settings one by one",
            "Reward over each setting by itself; later trials are darker, the star is the "
            "reference. The other settings differ from point to point, and the search went where "
            "rewards were high: a slope here is no effect.",
            lambda: plots.slices(search, trials),
        )
    )
    found.append(
        picture(
            "history",
            "The course of the search",
            "Mean reward by trial. The line rises by chance alone too: the best of more values is "
            "higher.",
            lambda: plots.history(search, trials),
        )
    )
    return found


def _importances(search: Search, trials: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Importance of each setting that every trial was asked for, by target; empty where unknown."""
    import optuna

    from harness.searching.plots import whole_trials

    done = whole_trials(trials)
    ranges = [one for one in search.space if not one.unless]
    if len(done) < _MIN_IMPORTANCE or len(ranges) < 2:
        return {}
    found: dict[str, dict[str, float]] = {}
    targets = {"reward": 1.0} | dict.fromkeys(search.objectives[1:], -1.0)
    for target, sign in targets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            study = optuna.create_study(direction="maximize")
            for n, value in zip(done["number"], done[target], strict=True):
                asked = records.asked_of(search, trials, int(n))
                study.add_trial(
                    optuna.create_trial(
                        value=sign * float(value),
                        params={one.key: asked[one.key] for one in ranges},
                        distributions={one.key: one.distribution() for one in ranges},
                    )
                )
            try:
                shares = optuna.importance.get_param_importances(study)
            except (ValueError, RuntimeError):  # all values alike
                continue
        if not all(math.isfinite(share) for share in shares.values()):
            continue
        found[target] = {one.label: shares.get(one.key, 0.0) for one in ranges}
    return found


# ---- page ------------------------------------------------------------------------------------


def _page(told: _Told, pictures: "list[Picture]", found: list[Table]) -> str:
    import jinja2

    search = told.search
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("harness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["tight"] = lambda text: text.replace(" = ", "\u00a0=\u00a0").replace(
        " %", "\u00a0%"
    )
    arguments = _shown(search.file) + (f" --profile {search.profile}" if search.profile else "")
    arguments += "".join(f" --set '{text}'" for text in search.overrides)
    return env.get_template("search.html").render(
        name=search.report_name,
        profile=search.profile,
        question=search.question,
        answer=_answer(told),
        more=[text.replace("`", "") for text in _more(told)],
        notes=search.notes,
        pictures=[
            {
                "title": one.title,
                "caption": one.caption,
                "source": f"data:image/png;base64,{base64.b64encode(one.png).decode()}",
            }
            for one in pictures
        ],
        tables=found,
        made=_made(told),
        command_search=f"python -m harness.search {arguments}",
        command_report=f"python -m harness.search {arguments} --report",
        command_confirm=None
        if confirm.sweep_text(search, told.trials, Path()) is None
        else f"python -m harness.sweep reports/{search.report_name}/{confirm.FILE}",
    )


def _made(told: _Told) -> list[tuple[str, str]]:
    search = told.search
    ranges = "; ".join(f"{one.label}: {one.text}" for one in search.space)
    goal = f"{search.measure} up"
    if search.objectives[1:]:
        goal += f", {search.objectives[1]} down"
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    made = [
        ("Search file", _shown(search.file)),
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


def _shown(file: Path) -> str:
    """A file as a reader can use it: relative to here, never a path of this machine."""
    with contextlib.suppress(ValueError):
        return file.resolve().relative_to(Path.cwd().resolve()).as_posix()
    return file.name
