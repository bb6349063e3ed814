"""What a sweep is doing: counts, progress, cost, and why runs failed. Never writes anything.

python -m harness.status sweeps/tau.yaml
"""

import json
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import cli
from harness.launcher import LAUNCHER_LOCK, owner
from harness.progress import cells, counts, duration, seconds_left, summary, time_left
from harness.spec import Sweep, known_folders, load_sweep
from harness.store import (
    RunState,
    last_seen,
    look_at_all,
    strangers,
    sweep_folder,
)
from mixgrpo import lock
from mixgrpo.cli import run as run_command
from mixgrpo.jsonlines import read_lines

TRACEBACK_LINES = 6
WATCH_EVERY_S = 2.0


@dataclass(frozen=True)
class Cost:
    """Seconds that a sweep's jobs took."""

    total: float
    useful: float
    """Spent on iterations and evaluations that are part of a result, or will be."""

    @property
    def wasted(self) -> float:
        """Start-up, and what was lost to kills and failures."""
        return max(0.0, self.total - self.useful)


def cost(states: list[RunState]) -> Cost:
    """The ledger, from the attempts' records and the metrics that were kept."""
    total = useful = 0.0
    for state in states:
        for attempt in state.attempts:
            under_way = state.state == "running" and attempt is state.attempts[-1]
            end = time.time() if under_way else last_seen(state.folder, attempt)
            total += max(0.0, end - attempt.started)
        for name in ("metrics.jsonl", "eval.jsonl"):
            lines = read_lines(state.folder / name)
            useful += sum(float(line["seconds_total"]) for line in lines)
    return Cost(total, useful)


def as_data(sweep: Sweep, runs_dir: Path) -> dict[str, Any]:
    """Everything that the status says, for programs."""
    states = look_at_all(sweep, runs_dir)
    spent = cost(states)
    running = lock.is_held(sweep_folder(sweep, runs_dir) / LAUNCHER_LOCK)
    return {
        "sweep": sweep.name,
        "profile": sweep.profile,
        "launcher": owner(sweep, runs_dir) if running else None,
        "counts": counts(states),
        "seconds_left": time_left(states, None),
        "seconds_spent": spent.total,
        "seconds_useful": spent.useful,
        "seconds_wasted": spent.wasted,
        "runs": [_run_data(state) for state in states],
        "no_longer_in_the_file": [folder.name for folder in _strangers(sweep, runs_dir)],
    }


def _run_data(state: RunState) -> dict[str, Any]:
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
        "seconds_per_iteration": state.seconds_per_iteration,
        "seconds_left": seconds_left(state) if state.state == "running" else None,
        "score": state.score,
        "error": state.attempts[-1].error if state.attempts else None,
        "warnings": list(state.warnings),
    }


def as_text(sweep: Sweep, runs_dir: Path) -> str:
    """The status for people."""
    states = look_at_all(sweep, runs_dir)
    title = f"{sweep.name} ({sweep.profile})" if sweep.profile else sweep.name
    lines = [f"{title}: {summary(states, None)}"]
    if lock.is_held(sweep_folder(sweep, runs_dir) / LAUNCHER_LOCK):
        lines.append(f"launcher: {owner(sweep, runs_dir)}")
    for state in states:
        if state.state == "running":
            lines.append("  " + "  ".join(filter(None, cells(state, sweep.measure))))
    spent = cost(states)
    if spent.total:
        lines.append(
            f"cost: {duration(spent.total)} of runs, {duration(spent.useful)} useful, "
            f"{duration(spent.wasted)} start-up and lost"
        )
    for state in states:
        if state.state in ("failed", "lost"):
            lines += _failure(state)
    for state in states:
        lines += [f"{state.run.name}: warning: {text}" for text in state.warnings]
    stopped = [state.run.name for state in states if state.state == "stopped"]
    if stopped:
        lines.append(f"stopped, the sweep's command continues them: {', '.join(stopped)}")
    others = _strangers(sweep, runs_dir)
    if others:
        names = ", ".join(folder.name for folder in others)
        lines.append(f"no longer in the file, or made with other --set values: {names}")
    return "\n".join(lines)


def _failure(state: RunState) -> list[str]:
    last = state.attempts[-1]
    error = last.error or "its process was killed: no word was left"
    tries = len(state.attempts)
    return [
        f"{state.run.name}: {state.state} at {state.iteration}/{state.total} iterations, "
        f"{tries} attempt{'' if tries == 1 else 's'}; log in {state.folder / 'log'}",
        *(f"    {line}" for line in error.strip().splitlines()[-TRACEBACK_LINES:]),
    ]


def _strangers(sweep: Sweep, runs_dir: Path) -> list[Path]:
    known = known_folders(sweep.file) | {run.folder_name for run in sweep.runs}
    return strangers(known, sweep_folder(sweep, runs_dir))


def main(
    file: cli.FileArgument,
    profile: cli.ProfileOption = None,
    runs: cli.RunsOption = Path("runs"),
    set_: cli.SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Show what a sweep is doing. Writes nothing."""

    def show(before: str = "") -> None:
        sweep = load_sweep(file, profile, set_ or [])
        text = json.dumps(as_data(sweep, runs)) if as_json else before + as_text(sweep, runs)
        print(text, flush=True)

    if not watch:
        show()
        return
    # Ctrl-C is the way to end it. As an exception it may be raised where nobody passes it on.
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    while not ended.is_set():
        show("\x1b[H\x1b[2J")
        ended.wait(WATCH_EVERY_S)


if __name__ == "__main__":
    run_command(main)
