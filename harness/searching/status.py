"""What a search would try, and where it stands, in text. Starts nothing and writes nothing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.launching.plan import evaluations
from harness.launching.sweep_lease import LAUNCHER
from harness.runs.state import look
from harness.searching.file import Search
from harness.searching.runs import make_sweep, runs_of
from harness.searching.space import label
from harness.searching.storage import NoTrialsError
from harness.searching.study import STATES, Study, Trial
from harness.searching.trials import in_words
from harness.text import number
from mixgrpo.errors import ConfigError
from mixgrpo.files import lease


def describe(search: Search, runs_dir: Path, url: str | None) -> str:
    """The plan: ranges, settings tried first, trials and runs."""
    costs = "".join(f", {cost} down" for cost in search.objectives[1:])
    most = search.trials * len(search.seeds)
    lines = [
        f"{_title(search)}: {search.trials} trials of up to {len(search.seeds)} seeds, at most "
        f"{most} runs, {search.parallel} trials at once",
        f"objective: reward ({search.measure}) up{costs}",
    ]
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    lines += [f"budget: at most {bound:,g} {name} per run" for name, bound in budget.items()]
    lines.append("ranges:")
    for one in search.space:
        unless = "".join(
            f"; not asked for with {key} {', '.join(map(str, values))}"
            for key, values in one.unless
        )
        lines.append(f"  {one.key}: {one.text}{unless}")
    if search.enqueue:
        lines.append("tried first, the first of them is the reference:")
    for asked in search.enqueue:
        count = evaluations(search.config(asked))
        lines.append(f"  {label(search.space, asked)}: {count:,} evaluations per run")
    p, c = search.prune, search.confirm
    trials = _trials(search, runs_dir, url)
    return "\n".join(
        [
            *lines,
            f"given up: over seeds where Wilcoxon's p is below {p.p:g}; along the curve where "
            f"behind the {p.percentile:g} % best of {p.startup} or more others from iteration "
            f"{p.warmup} on",
            f"confirmed: the {c.best} best with the {c.seeds} seeds {c.first_seed} to "
            f"{c.first_seed + c.seeds - 1}, {(c.best + bool(search.enqueue)) * c.seeds} runs",
            summary(trials),
        ]
    )


def as_text(search: Search, runs_dir: Path, url: str | None) -> str:
    """The status: what ran, what was given up and why."""
    trials, sweep = _trials(search, runs_dir, url), make_sweep(search)
    lines = [f"{_title(search)}: {summary(trials)}"]
    folder = runs_dir / search.name / LAUNCHER
    if lease.is_held(folder):
        lines.append(f"launcher: {lease.holder(folder)}")
    for trial in trials:
        lines.append(in_words(search, trial))
        if trial.state != "running" or trial.asked is None:
            continue
        try:
            states = [look(sweep, run, runs_dir) for run in runs_of(search, trial)]
        except ConfigError as error:
            lines.append(f"    {error}")
            continue
        for state in states:
            score = "" if state.score is None else f", {search.measure} {number(state.score)}"
            progress = f"{state.state}, {state.iteration}/{state.total}{score}"
            lines.append(f"    seed {state.run.seed}: {progress}")
    return "\n".join(lines)


def _title(search: Search) -> str:
    return search.name + (f" ({search.profile})" if search.profile else "")


def _trials(search: Search, runs_dir: Path, url: str | None) -> list[Trial]:
    try:
        return Study(search, runs_dir / search.name, url, create=False).trials()
    except NoTrialsError:
        return []


def summary(trials: Sequence[Trial]) -> str:
    """Trials by state in one line."""
    if not trials:
        return "no trial yet"
    counts = Counter("came to nothing" if trial.free else STATES[trial.state] for trial in trials)
    order = (*STATES.values(), "came to nothing")
    parts = [f"{counts[name]} {name}" for name in order if counts[name]]
    return f"{len(trials)} trials: {', '.join(parts)}"
