"""What a sweep is doing, as text and as data: counts, progress, cost, and why runs failed.

Writes nothing.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.launching.retry import seems_over
from harness.launching.sweep_lease import LAUNCHER, lease_holder
from harness.launching.unlisted import find_unlisted
from harness.planning import words
from harness.planning.standing import Standing, stand
from harness.runs.codechange import of_other_code
from harness.runs.ledger import Ledger, Spent, ledger
from harness.runs.progress import by_kind, cells, counts, seconds_left, summary, time_left, warned
from harness.runs.state import RunState, look_at_all, sweep_folder
from harness.slurm.scheduler import Scheduler
from harness.study.spec import Sweep
from harness.text import command, listed
from mixgrpo.errors import UnidentifiedError
from mixgrpo.files import lease
from mixgrpo.text.words import duration

TRACEBACK_LINES = 6
MOST_ROWS = 20
"""The most runs of a kind that the text lists one by one; --json lists all."""

_HELD = ("held", "Held", "DependencyNeverSatisfied")


@dataclass
class Observer:
    """Looks at a sweep, once or repeatedly."""

    sweep: Sweep
    runs_dir: Path
    scheduler: Scheduler
    watch: lease.Watch | None = None
    """Remembers the leases of other machines between looks."""
    states: list[RunState] = field(default_factory=list)
    """Of a sweep with looks: of the runs that are needed until now, and of those that are there."""
    standing: Standing | None = None
    """Of a sweep with looks."""

    def look(self) -> None:
        jobs = self.scheduler.job_states()
        self.states = look_at_all(self.sweep, self.runs_dir, jobs, self.watch)
        if self.sweep.looks:
            self.standing = stand(self.sweep, self.states, seems_over, self.folder)
            needed = {run.folder_name for run in self.standing.part_of(self.sweep).runs}
            self.states = [
                state
                for state in self.states
                if state.state != "waiting" or state.run.folder_name in needed
            ]

    @property
    def folder(self) -> Path:
        return sweep_folder(self.sweep, self.runs_dir)

    @property
    def launcher(self) -> str | None:
        """Which process runs the sweep, in words; None where none does."""
        if not lease.is_held(self.folder / LAUNCHER):
            return None
        return lease_holder(self.sweep, self.runs_dir)

    @property
    def unlisted(self) -> list[Path]:
        """The run folders that no profile of the file asks for, if that is known here."""
        try:
            return find_unlisted(self.sweep, self.runs_dir)
        except UnidentifiedError:
            return []


def as_data(seen: Observer) -> dict[str, Any]:
    """Everything that the status says, for programs."""
    costs = ledger(seen.states, seen.folder)
    unlisted = seen.unlisted
    other_code = of_other_code(unlisted, seen.sweep.runs)
    return {
        "sweep": seen.sweep.name,
        "profile": seen.sweep.profile,
        "launcher": seen.launcher,
        "slurm_silent": seen.scheduler.silent,
        "counts": counts(seen.states),
        "seconds_left": time_left(seen.states, None),
        "seconds_spent": costs.total.seconds,
        "seconds_useful": costs.useful.seconds,
        "seconds_wasted": {cause: spent.seconds for cause, spent in costs.wasted.items()},
        "gpu_hours_spent": costs.total.gpu_seconds / 3600,
        "gpu_hours_useful": costs.useful.gpu_seconds / 3600,
        "gpu_hours_wasted": {c: spent.gpu_seconds / 3600 for c, spent in costs.wasted.items()},
        "measure": seen.sweep.measure,
        "arms": _arms(seen.states),
        "until_decided": words.as_data(seen.standing) if seen.standing else None,
        "runs": [_run_data(state) for state in seen.states],
        "no_longer_in_the_file": [f.name for f in unlisted if f not in other_code],
        "of_other_code": [folder.name for folder in other_code],
    }


def _run_data(state: RunState) -> dict[str, Any]:
    last = state.attempts[-1] if state.attempts else None
    return {
        "arm": state.run.arm,
        "seed": state.run.seed,
        "hash": state.run.hash,
        "folder": str(state.folder),
        "state": state.state,
        "reason": state.reason,
        "iteration": state.iteration,
        "iterations": state.total,
        "attempts": len(state.attempts),
        "job": state.job.task if state.job else last.job_id if last else None,
        "queue": state.job.reason if state.job and state.state == "queued" else None,
        "node": last.host if last else None,
        "seconds_per_iteration": state.seconds_per_iteration,
        "seconds_left": seconds_left(state) if state.state == "running" else None,
        "phase": state.phase or None,
        "score": state.score,
        "before": state.before,
        "gain": state.gain,
        "error": state.damage or (last.error if last else None),
        "damaged": [*([state.damage] if state.damage else []), *state.unreadable],
        "warnings": list(state.warnings),
    }


def as_text(seen: Observer) -> str:
    """The status for people."""
    sweep, states = seen.sweep, seen.states
    title = f"{sweep.name} ({sweep.profile})" if sweep.profile else sweep.name
    lines = [f"{title}: {summary(states, None)}"]
    if seen.launcher is not None:
        lines.append(f"launcher: {seen.launcher}")
    if seen.scheduler.silent is not None:
        lines.append(f"Slurm does not answer: {seen.scheduler.silent}")
    running = [state for state in states if state.state == "running"]
    rows = ["  " + "  ".join(filter(None, (*cells(s, sweep.measure), _node(s)))) for s in running]
    lines += _first(rows)
    lines += _queue(states)
    lines += _first(_results(states, sweep.measure))
    lines += _first(words.status(seen.standing)) if seen.standing else []
    costs = ledger(states, seen.folder)
    if costs.total.seconds:
        lines.append(_cost(costs))
    bad = [_failure(state) for state in states if state.state in ("failed", "lost")]
    lines += ["\n".join(rows) for rows in bad[:MOST_ROWS]]
    lines += _more(len(bad))
    lines += _first(f"{s.run.name}: {text}" for s in states for text in s.unreadable)
    kinds = by_kind((state, text) for state in states for text in state.warnings)
    lines += _first(warned(ones, len(states)) for ones in kinds.values())
    stopped = [state.run.name for state in states if state.state == "stopped"]
    if stopped:
        lines.append(f"stopped, the sweep's command continues them: {listed(stopped)}")
    unlisted = seen.unlisted
    other_code = of_other_code(unlisted, sweep.runs)
    if other_code:
        names = listed([folder.name for folder in other_code])
        lines.append(f"made before your own code changed, and kept: {names}")
    others = [folder.name for folder in unlisted if folder not in other_code]
    if others:
        lines.append(f"no longer in the file, or made with other --set values: {listed(others)}")
    return "\n".join(lines)


def _arms(states: list[RunState]) -> dict[str, dict[str, Any]]:
    """By arm: the number of finished runs, and the means of their scores and gains."""
    by_arm: dict[str, list[RunState]] = {}
    for state in states:
        by_arm.setdefault(state.run.arm, []).extend([state] if state.state == "finished" else [])
    return {
        arm: {
            "finished": len(done),
            "score": _mean(state.score for state in done),
            "gain": _mean(state.gain for state in done),
        }
        for arm, done in by_arm.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _results(states: list[RunState], measure: str) -> list[str]:
    """The scores of the finished runs: a line for each arm."""
    lines = []
    for arm, data in _arms(states).items():
        if data["score"] is None:
            continue
        gain = "" if data["gain"] is None else f", gain {data['gain']:+.3f}"
        runs = "1 finished run" if data["finished"] == 1 else f"{data['finished']} finished runs"
        lines.append(f"  {arm}: {measure} {data['score']:.3f}{gain} ({runs})")
    return lines


def _first(rows: Iterable[str]) -> list[str]:
    """The first rows, and the number of the others."""
    every = list(rows)
    return every[:MOST_ROWS] + _more(len(every))


def _more(count: int) -> list[str]:
    return [f"  ... and {count - MOST_ROWS} more (--json has all)"] if count > MOST_ROWS else []


def _node(state: RunState) -> str:
    """The node and job of a run in Slurm."""
    if state.job is None or not state.job.nodes:
        return ""
    return f"on {state.job.nodes} ({state.job.task})"


def _queue(states: list[RunState]) -> list[str]:
    """Why runs wait, and what to do about those that Slurm holds."""
    queued = [s.job for s in states if s.state == "queued" and s.job is not None]
    if not queued:
        return []
    reasons = Counter(job.reason if job.reason != "None" else "" for job in queued)
    texts = [f"{n} {reason or 'just submitted'}" for reason, n in reasons.most_common()]
    lines = [f"in Slurm's queue: {', '.join(texts)}"]
    held = sorted({job.task for job in queued if any(word in job.reason for word in _HELD)})
    if held:
        lines.append(f"held, and will not start by themselves: scontrol release {' '.join(held)}")
    return lines


def _cost(costs: Ledger) -> str:
    def amount(spent: Spent) -> str:
        if costs.total.gpu_seconds:
            return f"{spent.gpu_seconds / 3600:.2f}"
        return duration(spent.seconds)

    unit = " GPU hours" if costs.total.gpu_seconds else " of runs"
    lost = sorted(costs.wasted.items(), key=lambda item: -item[1].seconds)
    causes = ", ".join(f"{amount(spent)} {cause}" for cause, spent in lost if spent.seconds >= 0.5)
    text = f"cost: {amount(costs.total)}{unit}, {amount(costs.useful)} useful"
    return f"{text}; beside them {causes}" if causes else text


def _failure(state: RunState) -> list[str]:
    last = state.attempts[-1] if state.attempts else None
    error = state.damage or (last.error if last else None) or _why_ended(state)
    tries = len(state.attempts)
    return [
        f"{state.run.name}: {state.state} at {state.iteration}/{state.total} iterations, "
        f"{tries} attempt{'' if tries == 1 else 's'}; log: {command('harness.logs', state.folder)}",
        *(f"    {line}" for line in error.strip().splitlines()[-TRACEBACK_LINES:]),
    ]


def _why_ended(state: RunState) -> str:
    """Why a run ended that recorded no error."""
    if not state.attempts and state.reason in (None, "killed"):
        return "its job ended before the run began: harness.logs shows what it said"
    if state.reason in (None, "killed"):
        return "its process was killed and recorded nothing"
    return f"its job ended: {state.reason}"
