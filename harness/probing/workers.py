"""Measures what is missing of a sweep's probes, in separate processes."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.probing.tasks import Task, tasks
from harness.runs import environment
from harness.study.spec import Sweep
from harness.text import command_for
from mixgrpo.cli import say
from mixgrpo.text.words import duration

THREADS = 1
"""CPU threads of a process: as in a local run, whose evaluations must be reproduced."""

WORKER = "harness.probing.worker"


def measure_missing(
    sweep: Sweep, runs_dir: Path, jobs: int | None = None, say: Callable[[str], None] = print
) -> list[str]:
    """Measure what is missing, in `jobs` processes: by default one for each GPU, or else core.

    Returns the errors, one line each, which are also said; the other tasks are still measured.
    """
    missing = [task for task in tasks(sweep, runs_dir) if task.is_missing]
    gpus = environment.gpus()
    count = min(jobs or len(gpus) or environment.cores(), len(missing))
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    # Ordered by seed, so that all arms can be compared at any time.
    for task in sorted(missing, key=lambda task: task.run.seed):
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
                name = f"{task.run.name}: {task.name}"
                if error is not None:
                    failed.append(f"{name}: {error}")
                    say(f"error: {failed[-1]}")
                else:
                    took = duration(time.monotonic() - begin)
                    say(f"{name}: measured in {took} ({done} of {len(missing)})")

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
    """Measure what is missing on finished runs, or on a cluster say the command that does so.
    Returns the errors, one line each."""
    if not on_slurm:
        return measure_missing(sweep, runs_dir, jobs, say)
    count = sum(task.is_missing for task in tasks(sweep, runs_dir))
    if count:
        probe = command_for("harness.probe", sweep, runs=runs_dir)
        say(f"{count} measurements are missing: srun --gpus=1 {probe}")
    return []


class _Worker:
    """A process that measures one task after the other: importing the libraries takes seconds."""

    def __init__(self, gpu: str) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in environment.job_variables()},
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
                start_new_session=True,  # this process handles the terminal's Ctrl-C
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
            return f"its process ended unexpectedly ({_ending(process.wait())}); run it again"
        error: str | None = json.loads(reply)["error"]
        return error

    def end(self) -> None:
        """Kill the process."""
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
