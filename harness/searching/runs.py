"""The runs of a search's trials, and what they have measured so far, read from their folders."""

from pathlib import Path
from typing import Any

from harness.runs.records import Environment
from harness.runs.store import RunState
from harness.searching.file import Search
from harness.searching.space import arm_name
from harness.searching.study import Trial
from harness.study.arms import Arm
from harness.study.spec import Run, Sweep
from mixgrpo.files.jsonlines import whole_lines
from mixgrpo.files.records import EVALUATIONS, METRICS, DamagedFileError, read, shows_progress
from mixgrpo.settings.identity import config_hashes


def make_sweep(search: Search, arms: tuple[Arm, ...] = (), runs: tuple[Run, ...] = ()) -> Sweep:
    """A search's runs so far, as everything that starts and follows runs knows them."""
    return Sweep(
        name=search.name,
        question=search.question,
        file=search.file,
        profile=search.profile,
        arms=arms,
        seeds=search.seeds,
        runs=runs,
        reference=arms[0].name if arms else "",
        measure=search.measure,
        paper=None,
        paper_rows={},
        notes=search.notes,
        overrides=search.overrides,
        variant=search.variant,
    )


def runs_of(search: Search, trial: Trial) -> tuple[Run, ...]:
    """The runs of a trial, one for each seed. ConfigError where its settings cannot be run."""
    assert trial.asked is not None
    config = search.config(trial.asked)
    arm = arm_name(trial.asked)
    hashes = config_hashes(config, search.seeds)
    return tuple(
        Run(arm, seed, config.model_copy(update={"seed": seed}), identity)
        for seed, identity in zip(search.seeds, hashes, strict=True)
    )


class Curves:
    """Reward by iteration, by seed and arm: of all runs that were ever looked at."""

    def __init__(self, search: Search, runs_dir: Path) -> None:
        self._folder = runs_dir / search.name
        self._column = f"reward_{search.measure}_mean"
        self._found: dict[str, dict[int, dict[int, float]]] = {}
        self._whole: set[str] = set()
        """Folder names of the runs whose curves cannot grow."""

    def of(self, run: Run) -> dict[int, float]:
        """Of one run, as it was read last."""
        return self._found.get(run.arm, {}).get(run.seed, {})

    def others(self, run: Run, arms: set[str]) -> list[dict[int, float]]:
        """Of the same seed in the other `arms`."""
        return [
            curves[run.seed]
            for arm, curves in self._found.items()
            if arm != run.arm and arm in arms and run.seed in curves
        ]

    def update(self, states: list[RunState]) -> None:
        """Read what has grown."""
        for state in states:
            if state.run.folder_name in self._whole or state.state not in ("running", "finished"):
                continue
            self.read(state.run)
            if state.state == "finished":
                self._whole.add(state.run.folder_name)

    def read(self, run: Run) -> None:
        lines = _lines(self._folder / run.folder_name / EVALUATIONS)
        curve = {
            line["iteration"]: float(line[self._column])
            for line in lines
            if isinstance(line.get(self._column), int | float)
        }
        if curve:
            self._found.setdefault(run.arm, {})[run.seed] = curve


def run_seconds(folder: Path) -> float:
    """Seconds of a run's training so far: of one core where it has them, else by the clock.

    What is measured beside the training (health) is not in them.
    """
    total = 0.0
    lines = _lines(folder / METRICS)
    core = bool(lines) and all("seconds_cpu" in line for line in lines) and on_one_core(folder)
    for line in lines:
        if core:
            total += float(line["seconds_cpu"])
        else:
            total += float(line["seconds_total"]) - float(line.get("seconds_health", 0.0))
    return total


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines that show progress; those that are damaged are made again by their run."""
    return [line for line in whole_lines(file) if shows_progress(line)]


def on_one_core(folder: Path) -> bool:
    """Whether a run was computed by one thread of a processor."""
    try:
        env = read(Environment, folder / "env.json")
    except DamagedFileError:
        return False
    return env is not None and env.device == "cpu" and env.threads == 1
