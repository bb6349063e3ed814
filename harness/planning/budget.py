"""What runs have cost in hours of cores or GPUs, and whether further ones fit a budget."""

from collections.abc import Sequence
from pathlib import Path

from harness.runs.ledger import ledger
from harness.runs.records import Environment
from harness.runs.state import RunState
from harness.study.spec import Budget
from mixgrpo.files.records import DamagedFileError, read


def hours(states: Sequence[RunState], folder: Path, unit: str) -> list[float]:
    """Hours of cores or GPUs (`unit`) that each run has cost the sweep of this folder, failed
    attempts included; runs that cost nothing, as those of another sweep, are left out."""
    spent = []
    for state in states:
        total = ledger([state], folder).total
        seconds = total.gpu_seconds if unit == "GPU" else total.seconds * _threads(state.folder)
        if seconds:
            spent.append(seconds / 3600)
    return spent


def fits(budget: Budget, made: Sequence[RunState], new: int, folder: Path) -> bool:
    """Whether so many `new` runs fit into what the runs `made` have left, at their mean cost."""
    spent = hours(made, folder, budget.unit)
    mean = sum(spent) / len(spent) if spent else 0.0
    return sum(spent) + mean * new <= budget.hours


def _threads(folder: Path) -> int:
    """The threads of a run, each on a core of its own."""
    try:
        env = read(Environment, folder / "env.json")
    except DamagedFileError:
        return 1
    return (env.threads if env else None) or 1
