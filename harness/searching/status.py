"""What a search would try, and where it stands, in text. Starts nothing and writes nothing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.launching.plan import evaluations
from harness.launching.sweep_lease import LAUNCHER
from harness.runs.store import look
from harness.searching.file import Search
from harness.searching.runs import make_sweep, runs_of
from harness.searching.space import label
from harness.searching.storage import NoTrialsError
from harness.searching.study import Study, Trial
from harness.searching.trials import in_words
from harness.text import number
from mixgrpo.errors import ConfigError
from mixgrpo.files import lease


def describe(search: Search, runs_dir: Path, url: str | None) -> str:
    """The plan: ranges, settings tried first, trials and runs."""
    title = search.name + (f" ({search.profile})" if search.profile else "")
    cost = f", {search.objectives[1]} down" if len(search.objectives) > 1 else ""
    most = search.trials * len(search.seeds)
    lines = [
        f"{title}: {search.trials} trials of up to {len(search.seeds)} seeds, at most {most} runs, "
        f"{search.parallel} trials at once",
        f"objective: reward ({search.measure}) up{cost}",
    ]
    if search.budget is not None:
        name, bound = next((k, v) for k, v in search.budget.model_dump().items() if v is not None)
        lines.append(f"budget: at most {bound:,g} {name} per run")
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
    p = search.prune
    lines.append(
        f"given up: over seeds where Wilcoxon's p is below {p.p:g}; along the curve where behind "
        f"the {p.percentile:g} % best of {p.startup} or more others from iteration {p.warmup} on"
    )
    c = search.confirm
    lines.append(
        f"confirmed: the {c.best} best with the {c.seeds} seeds {c.first_seed} to "
        f"{c.first_seed + c.seeds - 1}, {(c.best + bool(search.enqueue)) * c.seeds} runs"
    )
    trials = _trials(search, runs_dir, url)
    lines.append(summary(trials) if trials else "no trial yet")
    return "\n".join(lines)


def as_text(search: Search, runs_dir: Path, url: str | None) -> str:
    """The status: what ran, what was given up and why."""
    trials = _trials(search, runs_dir, url)
    title = search.name + (f" ({search.profile})" if search.profile else "")
    lines = [f"{title}: {summary(trials) if trials else 'no trial yet'}"]
    folder = runs_dir / search.name / LAUNCHER
    if lease.is_held(folder):
        lines.append(f"launcher: {lease.holder(folder)}")
    sweep = make_sweep(search)
    for trial in trials:
        lines.append(in_words(search, trial))
        if trial.state != "running" or trial.asked is None:
            continue
        try:
            for run in runs_of(search, trial):
                state = look(sweep, run, runs_dir)
                score = "" if state.score is None else f", {search.measure} {number(state.score)}"
                lines.append(
                    f"    seed {run.seed}: {state.state}, {state.iteration}/{state.total}{score}"
                )
        except ConfigError as error:
            lines.append(f"    {error}")
    return "\n".join(lines)


def _trials(search: Search, runs_dir: Path, url: str | None) -> list[Trial]:
    try:
        return Study(search, runs_dir / search.name, url, create=False).trials()
    except NoTrialsError:
        return []


def summary(trials: Sequence[Trial]) -> str:
    """Trials by state in one line."""
    found = Counter(
        "came to nothing" if t.free else {"pruned": "given up"}.get(t.state, t.state)
        for t in trials
    )
    order = ("complete", "given up", "failed", "running", "waiting", "came to nothing")
    parts = [f"{found[name]} {name}" for name in order if found[name]]
    return f"{len(trials)} trials: {', '.join(parts)}"
