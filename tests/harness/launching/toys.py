"""Sweeps of the toy, run in this process, for the tests of what runs share."""

import json
from pathlib import Path
from typing import Any

from harness.launching.dispatch import Inline
from harness.launching.launcher import Launcher, SweepWork
from harness.launching.screen import Progress
from harness.runs.state import RunState, look_at_all
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from tests.mixgrpo import toy
from tests.mixgrpo.outcomes import outcome

SETTINGS = toy.settings(
    iterations=12,
    sampler={"steps": 8},
    window={"interval": 3},
    evaluation={"every": 3, "steps": 3},
    output={"checkpoint_every": 5},
)
del SETTINGS["seed"]

Arms = dict[str, dict[str, Any]]


def write_sweep(folder: Path, arms: Arms, name: str = "toy", seeds: int = 1) -> Sweep:
    file = folder / f"{name}.yaml"
    about = {"name": name, "question": "Is it the same?", "seeds": seeds, "measure": "contrast"}
    file.write_text(json.dumps(about | {"set": SETTINGS, "arms": arms}))
    return load_sweep(file)


def launch(
    sweep: Sweep, runs: Path, share: bool = True, accept_code_change: bool = False
) -> tuple[dict[str, RunState], list[str]]:
    """Run a sweep in this process: states by arm, those of the first seed, and what was said."""
    said: list[str] = []
    progress = Progress("contrast", False)
    progress.say = said.append  # type: ignore[method-assign, assignment]
    (runs / sweep.name).mkdir(parents=True, exist_ok=True)
    launcher = Launcher(
        SweepWork(sweep),
        runs,
        progress,
        lambda stop: Inline(stop),
        Scheduler(runs / sweep.name),
        share=share,
        accept_code_change=accept_code_change,
    )
    assert launcher.go()
    first = [s for s in look_at_all(sweep, runs) if s.run.seed == 0]
    return {state.run.arm: state for state in first}, said


def same(folder: Path) -> dict[str, Any]:
    """What must be the same for a run that goes on from a copied checkpoint: the settings say what
    it keeps."""
    found = outcome(folder)
    del found["config"]
    del found["manifest"]
    exported = folder / "weights" / "weights.safetensors"
    return found | {"exported": exported.read_bytes()}
