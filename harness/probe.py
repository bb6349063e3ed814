"""Measures on finished runs what their training did not: hybrid inference, the solver's error.

    python -m harness.probe sweeps/hybrid.yaml

What is measured stands below `probes:` of the sweep file (`mixgrpo.probes`). Each measurement is
one file, `<run>/probes/<name>.json`, written whole or not at all, so that the command can be killed
and run again at any time. A file of other options or other weights is measured again.
"""

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import cli, environment
from harness.advice import command_for
from harness.spec import Run, Sweep, load_sweep, only
from harness.store import read_result, sweep_folder
from mixgrpo.atomic import write_json
from mixgrpo.cli import TrustOption, say, warn
from mixgrpo.cli import run as run_command
from mixgrpo.errors import ConfigError
from mixgrpo.records import DamagedFileError, loads
from mixgrpo.words import duration

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Raised when a measurement means something else than before."""

THREADS = 1
"""CPU threads of a process: as in a local run, whose evaluations are to come out again."""

WORKER = "harness.probe_worker"


@dataclass(frozen=True)
class Task:
    """One probe of one finished run."""

    run: Run
    folder: Path
    name: str
    options: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "probes" / f"{self.name}.json"

    def identity(self) -> dict[str, Any]:
        """What the measurement depends on. `weights`: the digest of the averaged weights in the
        run's last checkpoint, None where there is no such checkpoint."""
        manifest = self.folder / "checkpoints" / f"{self.run.config.iterations:06d}/manifest.json"
        weights = None
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            weights = str(loads(manifest.read_bytes())["files"]["average.safetensors"])
        identity = {
            "format": FORMAT,
            "probe": self.name,
            "run": self.run.hash,
            "weights": weights,
            "options": self.options,
        }
        text = json.dumps(identity, sort_keys=True)
        return identity | {"digest": hashlib.sha256(text.encode()).hexdigest()}

    def read(self) -> list[dict[str, Any]] | None:
        """The rows that were measured; None where there are none of this run and these options.

        Without the run's last checkpoint they are of the weights that it had.
        """
        try:
            kept = loads(self.file.read_bytes())
            wanted = self.identity()
            same = ("digest",) if wanted["weights"] else ("format", "probe", "run", "options")
            fits = all(kept[key] == wanted[key] for key in same)
            rows = list(kept["rows"]) if fits else None
            return rows if rows is None or all(isinstance(row, dict) for row in rows) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def write(self, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep rows. ValueError for NaN and Inf, OSError for a disk that does not take them."""
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, {**self.identity(), "seconds": seconds, "rows": list(rows)})


def tasks(sweep: Sweep, runs_dir: Path, damaged: list[str] | None = None) -> list[Task]:
    """Every probe of every finished run, arm by arm; what is wrong with a damaged one is added to
    `damaged`. RunError for a folder of another version."""

    def is_finished(run: Run) -> bool:
        try:
            return read_result(place / run.folder_name, run.config.evaluation.every) is not None
        except DamagedFileError as error:
            if damaged is not None:
                damaged.append(f"{run.name}: {error}")
            return False

    place = sweep_folder(sweep, runs_dir)
    order = {arm.name: index for index, arm in enumerate(sweep.arms)}
    runs = sorted(sweep.runs, key=lambda run: (order[run.arm], run.seed))
    return [
        Task(run, place / run.folder_name, name, options)
        for run in runs
        if sweep.probes and is_finished(run)
        for name, options in sweep.probes.items()
    ]


def read_probes(sweep: Sweep, runs_dir: Path) -> "pd.DataFrame | None":
    """All rows that were measured, with arm, seed and probe; arm by arm, then by seed. None where
    there are none."""
    import pandas as pd

    rows = [
        {"arm": task.run.arm, "seed": task.run.seed, "probe": task.name, **row}
        for task in tasks(sweep, runs_dir)
        for row in task.read() or ()
    ]
    return pd.DataFrame(rows) if rows else None


def measure_missing(
    sweep: Sweep, runs_dir: Path, jobs: int | None = None, say: Callable[[str], None] = print
) -> list[str]:
    """Measure what is missing, in `jobs` processes: by default one for each GPU, or else core.

    The lines of what failed; the others are measured all the same. Each is also said.
    """
    missing = [task for task in tasks(sweep, runs_dir) if task.read() is None]
    gpus = environment.gpus()
    count = min(jobs or len(gpus) or environment.cores(), len(missing))
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in sorted(missing, key=lambda task: task.run.seed):  # compares all arms at any time
        waiting.put(task)
    failed: list[str] = []
    done = 0
    lock = threading.Lock()
    workers = [_Worker(gpus[slot % len(gpus)] if gpus else "") for slot in range(count)]

    def work(worker: _Worker) -> None:
        nonlocal done
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            begin = time.monotonic()
            error = worker.measure(task)
            with lock:
                done += 1
                place = f"{task.run.name}: {task.name}"
                if error is not None:
                    failed.append(f"{place}: {error}")
                    say(f"error: {failed[-1]}")
                else:
                    took = duration(time.monotonic() - begin)
                    say(f"{place}: measured in {took} ({done} of {len(missing)})")

    threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in workers:
            worker.end()
    return failed


def after_training(sweep: Sweep, runs_dir: Path, jobs: int | None, on_slurm: bool) -> list[str]:
    """What a sweep does when its runs have ended: measure what is missing on the finished ones, or
    say the command that does so on a cluster. The lines of what failed."""
    if not on_slurm:
        return measure_missing(sweep, runs_dir, jobs, say)
    count = sum(task.read() is None for task in tasks(sweep, runs_dir))
    if count:
        probe = command_for("harness.probe", sweep, runs=runs_dir)
        say(f"{count} measurements are missing: srun --gpus=1 {probe}")
    return []


class _Worker:
    """A process that measures one task after the other: to import the libraries takes seconds."""

    def __init__(self, gpu: str) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in environment.strays()},
            **dict.fromkeys(environment.THREAD_VARIABLES, str(THREADS)),
            "CUDA_VISIBLE_DEVICES": gpu,
        }
        self.process: subprocess.Popen[str] | None = None
        self.over = False

    def measure(self, task: Task) -> str | None:
        """Why the task failed, in one line; None where it is measured."""
        if self.process is None or self.process.poll() is not None:
            if self.over:
                return "interrupted"
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C of the terminal is this process's to handle
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(_as_json(task) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            reply = ""
        if not reply:
            return f"its process ended unasked ({_ending(process.wait())}); run it again"
        error: str | None = json.loads(reply)["error"]
        return error

    def end(self) -> None:
        """End the process, whatever it does."""
        self.over = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _as_json(task: Task) -> str:
    return json.dumps(
        {
            "arm": task.run.arm,
            "seed": task.run.seed,
            "hash": task.run.hash,
            "config": task.run.config.model_dump(mode="json"),
            "folder": str(task.folder),
            "name": task.name,
            "options": task.options,
        }
    )


def main(
    file: cli.FileArgument,
    profile: cli.ProfileOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes at once; by default one per GPU, else one per core."),
    ] = None,
    runs: cli.RunsOption = Path("runs"),
    set_: cli.SetOption = None,
    only_: Annotated[
        list[str] | None, typer.Option("--only", metavar="ARM", help="Only this arm; repeatable.")
    ] = None,
    trust: TrustOption = False,
) -> int:
    """Measure on a sweep's finished runs what its `probes:` name and is not there yet."""
    sweep = only(load_sweep(file, profile, set_ or [], trust), only_ or [])
    if not sweep.probes:
        raise ConfigError(
            f"{file}: probes: names none; add a line such as probes: {{hybrid: {{}}}}"
        )
    damaged: list[str] = []
    every = tasks(sweep, runs, damaged)
    for text in damaged:
        warn(f"error: {text}")
    finished = len({task.folder for task in every})
    say(f"{finished} of {len(sweep.runs)} runs finished")
    failed = measure_missing(sweep, runs, jobs, say)
    say(f"{len(every) - len(failed)} of {len(every)} measurements are there")
    return 1 if failed or damaged else 0


if __name__ == "__main__":
    run_command(main)
