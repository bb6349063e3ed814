"""The runs of a search's trials, and what they have measured so far, read from their folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runs.environment import Machine
from harness.runs.records import Environment
from harness.runs.state import RunState, run_folder
from harness.searching.file import Search
from harness.searching.space import arm_name
from harness.study.arms import Arm
from harness.study.spec import Run, Sweep
from mixgrpo.files.jsonlines import whole_lines
from mixgrpo.files.records import EVALUATIONS, METRICS, DamagedFileError, read, shows_progress
from mixgrpo.settings.identity import config_hashes

if TYPE_CHECKING:
    from harness.searching.study import Trial


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


def runs_of(search: Search, trial: "Trial") -> tuple[Run, ...]:
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
    """Reward by iteration of all runs that were ever looked at."""

    def __init__(self, search: Search, runs_dir: Path) -> None:
        self._folder = runs_dir / search.name
        self._column = f"reward_{search.measure}_mean"
        self._curves: dict[tuple[str, int], dict[int, float]] = {}
        """By arm and seed."""
        self._whole: set[str] = set()
        """Folder names of the runs whose curves cannot grow."""

    def of(self, run: Run) -> dict[int, float]:
        """Of one run, as it was read last."""
        return self._curves.get((run.arm, run.seed), {})

    def others(self, run: Run, arms: set[str]) -> list[dict[int, float]]:
        """Of the same seed in the other `arms`."""
        others = arms - {run.arm}
        return [
            curve
            for (arm, seed), curve in self._curves.items()
            if arm in others and seed == run.seed
        ]

    def update(self, states: list[RunState]) -> None:
        """Read what has grown."""
        for state in states:
            name = state.run.folder_name
            if state.state in ("running", "finished") and name not in self._whole:
                self.read(state.run)
                if state.state == "finished":
                    self._whole.add(name)

    def read(self, run: Run) -> None:
        curve = {
            line["iteration"]: float(line[self._column])
            for line in _lines(run_folder(self._folder, run) / EVALUATIONS)
            if isinstance(line.get(self._column), int | float)
        }
        if curve:
            self._curves[run.arm, run.seed] = curve


def run_seconds(folder: Path) -> float:
    """Seconds of a run's training so far: of one core where it has them, else by the clock.

    What is measured beside the training (health) is not in them.
    """
    lines = _lines(folder / METRICS)
    machine = run_machine(folder)
    if machine and machine.one_core and all("seconds_cpu" in line for line in lines):
        return sum(float(line["seconds_cpu"]) for line in lines)
    return sum(
        float(line["seconds_total"]) - float(line.get("seconds_health", 0.0)) for line in lines
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines that show progress; those that are damaged are made again by their run."""
    return [line for line in whole_lines(file) if shows_progress(line)]


def run_machine(folder: Path) -> Machine | None:
    """What a run was computed with; None where that is not known."""
    try:
        env = read(Environment, folder / "env.json")
    except DamagedFileError:
        return None
    return Machine.of(env) if env else None
