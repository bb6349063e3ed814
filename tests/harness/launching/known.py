"""Sweeps with looks whose runs train nothing and have scores that a test knows."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.finished import REWARDS, write_finished_files
from benchmarks.trivial import MEASURED
from harness.launching.dispatch import Inline, Start
from harness.launching.launcher import Launcher
from harness.launching.looks import LooksWork
from harness.launching.screen import Progress
from harness.planning.standing import Standing
from harness.runs.state import RunState
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from mixgrpo.runs.folder import claim
from mixgrpo.settings.config import RunConfig

ARMS = {"reference": 1, "far": 2, "same": 3, "open": 4}
"""Interval of the window by arm."""
LOOKS = (5, 8, 12, 16, 24, 32)
MARGIN = 0.02
WAVE = [math.sin(2.4 * seed) for seed in range(32)]
"""Of a standard deviation of 0.72, and a mean near 0 at every look."""
BROKEN: set[tuple[str, int]] = set()
"""Runs that raise."""


def score(arm: str, seed: int) -> float:
    """`far` is better by 0.3, `same` differs by noise far below the margin, and `open` by one of
    just such a size that it is neither better nor equal."""
    reference = 0.4 + 0.1 * math.cos(seed)
    wave = WAVE[seed]
    return {
        "reference": reference,
        "far": reference + 0.3 + 0.02 * wave,
        "same": reference + 0.008 * wave,
        "open": reference + 0.015 + 0.08 * wave,
    }[arm]


def train(
    config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> Literal["finished", "stopped"]:
    claim(config, folder)
    arm = next(arm for arm, interval in ARMS.items() if interval == config.window.interval)
    if (arm, config.seed) in BROKEN:
        raise ValueError("broken")
    lines = [json.dumps({"iteration": m} | MEASURED) for m in range(config.iterations)]
    evals = [
        {"iteration": m, "seconds_total": 0.0} | {f"reward_{name}_mean": value for name in REWARDS}
        for m, value in ((0, 0.4), (config.iterations, score(arm, config.seed)))
    ]
    write_finished_files(folder, config, ("\n".join(lines) + "\n").encode(), evals)
    return "finished"


class Queue(Inline):
    """Takes all runs at once, as Slurm does, and computes them at once."""

    slots: int | None = None  # type: ignore[assignment]
    outlive = True

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        super().__init__(should_stop, f"{__name__}:train")
        self.submitted: list[list[str]] = []

    def start(self, starts: Sequence[Start]) -> list[str]:
        self.submitted.append([start.run.name for start in starts])
        return [name for start in starts for name in super(Queue, self).start([start])]


def write(folder: Path, seeds: str = f"{{looks: {list(LOOKS)}, until: decided}}") -> Sweep:
    file = folder / "known.yaml"
    arms = "".join(f"  {arm}: {{window.interval: {n}}}\n" for arm, n in ARMS.items())
    text = (
        f"name: known\nquestion: Which?\nmargin: {MARGIN}\nset: {{iterations: 2}}\n"
        f"arms:\n{arms}seeds: {seeds}\n"
    )
    file.write_text(text)
    return load_sweep(file)


def launch(
    sweep: Sweep, runs: Path, stop_after: int | None = None, part: Sweep | None = None
) -> tuple[Standing, list[list[str]], list[str], list[RunState]]:
    """Run it in this process: where it stands, what was submitted, what was said, the states.

    `stop_after`: as many submissions, then a signal.
    """
    said: list[str] = []
    progress = Progress("composition", False)
    progress.say = said.append  # type: ignore[method-assign, assignment]
    (runs / sweep.name).mkdir(parents=True, exist_ok=True)
    queue = Queue(lambda: False)

    class Stopping(Launcher):
        def _start(self, states: list[RunState]) -> bool:
            started = super()._start(states)
            if len(queue.submitted) == stop_after:
                self.signals += 1
            return started

    work = LooksWork(sweep, part or sweep, runs)
    launcher = Stopping(
        work, runs, progress, lambda stop: queue, Scheduler(runs / sweep.name), "lost"
    )
    assert launcher.go() == (stop_after is None)
    return work.standing, queue.submitted, said, launcher._look()
