"""A folder with a sweep file and real launcher processes on it, for tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.launching.status import Observer
from harness.runs.state import RunState, look_at_all
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Sweep

HERE = Path(__file__).parent

SEARCHED = os.pathsep.join([str(HERE), str(HERE.parents[1])])
"""PYTHONPATH of processes that find the fake trainer, and the code that lies beside the tests."""

SWEEP = """\
name: toy
question: Does it work?
set: {iterations: 6, output.checkpoint_every: 2}
grid: {window.interval: [1, 3]}
seeds: 2
"""

SMALL = SWEEP.replace("seeds: 2", "seeds: 1")


@dataclass
class Lab:
    """A folder with a sweep file, its runs, and launchers on it that end with the test."""

    root: Path
    launchers: list[subprocess.Popen[str]] = field(default_factory=list)
    executor: tuple[str, ...] = ()
    """Options that every launcher gets."""
    patience_s: float = 60.0

    @property
    def file(self) -> Path:
        return self.root / "toy.yaml"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sweep(self) -> Sweep:
        return load_sweep(self.file)

    def write(self, text: str = SWEEP) -> Path:
        self.file.write_text(text)
        return self.file

    def launch(
        self, *options: str, fake: dict[str, Any] | None = None, file: Path | None = None
    ) -> "subprocess.Popen[str]":
        """Start `harness.sweep` with the fake trainer in a process of its own."""
        command = [sys.executable, str(HERE / "fake_sweep.py"), str(file or self.file)]
        folders = ["--runs", str(self.runs), "--reports", str(self.root / "reports")]
        environment = {
            **os.environ,
            "FAKE_TRAIN": json.dumps(fake or {}),
            "PYTHONPATH": SEARCHED,
            "CUDA_VISIBLE_DEVICES": "",
            "MIXGRPO_RETRY_SECONDS": "1",
        }
        launcher = subprocess.Popen(
            [*command, *folders, *self.executor, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As a shell does: a Ctrl-C goes to the whole group.
            start_new_session=True,
        )
        self.launchers.append(launcher)
        return launcher

    def finish(self, *options: str, fake: dict[str, Any] | None = None) -> tuple[int, str]:
        """Run a launcher to its end: exit code and everything it printed."""
        launcher = self.launch(*options, fake=fake)
        output, _ = launcher.communicate(timeout=self.patience_s)
        return launcher.returncode, output

    def observe(self) -> Observer:
        """What `harness.status` sees."""
        seen = Observer(self.sweep, self.runs, Scheduler(self.runs / "toy"))
        seen.look()
        return seen

    def states(self) -> dict[str, RunState]:
        """The runs as their folders show them."""
        return {state.run.name: state for state in look_at_all(self.sweep, self.runs)}

    def attempts(self) -> dict[str, list[str | None]]:
        """How every attempt ended, by run."""
        return {name: [a.reason for a in state.attempts] for name, state in self.states().items()}

    def iterations(self, name: str) -> list[int]:
        """The iterations in a run's metrics."""
        text = (self.states()[name].folder / "metrics.jsonl").read_text()
        return [json.loads(line)["iteration"] for line in text.splitlines()]

    def wait_for(self, condition: Callable[[dict[str, RunState]], bool]) -> dict[str, RunState]:
        """Look until `condition` holds."""
        begin = time.monotonic()
        while not condition(states := self.states()):
            if time.monotonic() - begin > self.patience_s / 2:
                raise TimeoutError(
                    f"{[(s.run.name, s.state, s.iteration) for s in states.values()]}"
                )
            time.sleep(0.05)
        return states
