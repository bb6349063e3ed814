"""Several small runs in one job of Slurm, each in its own process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.launching.job import YIELDED, Job
from harness.launching.job_environment import (
    STOP_SIGNALS,
    catch_signals,
    read_job_environment,
    requeue,
)

_PAUSE_S = 0.1


@dataclass(frozen=True)
class Pack:
    """Runs that share a job and its GPUs. Each has a folder, a state and a log."""

    jobs: tuple[Job, ...]

    def __call__(self) -> str:
        """Run all of them and pass signals on; requeue the job if any run is to continue."""
        signals = catch_signals()
        children = [_start(job) for job in self._with_gpus()]
        forwarded = 0
        while any(child.poll() is None for child in children):
            for number in signals[forwarded:]:
                _signal(children, number)
            forwarded = len(signals)
            time.sleep(_PAUSE_S)
        codes = [child.returncode for child in children]
        print(f"exit codes of the {len(codes)} runs: {codes}", flush=True)
        if YIELDED in codes:
            requeue(read_job_environment())
        return "finished"

    def _with_gpus(self) -> list[Job]:
        """The jobs, each with one of the GPUs in turn where there are several."""
        visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
        if len(visible) < 2:
            return list(self.jobs)
        return [replace(job, gpu=visible[i % len(visible)]) for i, job in enumerate(self.jobs)]

    def checkpoint(self) -> Any:
        """For submitit, after a signal before `__call__` has begun: the same pack again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _start(job: Job) -> "subprocess.Popen[str]":
    # Slurm signals all processes of the job: a signal waits until the child handles it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", "harness.launching.job"],
            stdin=subprocess.PIPE,
            text=True,
            env={**os.environ, **job.variables()},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(job)))
    child.stdin.close()
    return child


def _signal(children: "list[subprocess.Popen[str]]", number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.Signals(number))
