"""Several small runs in one job of the scheduler, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from harness.job import YIELDED, Job, catch_signals, requeue
from harness.place import here

_PAUSE_S = 0.1


@dataclass(frozen=True)
class Pack:
    """Runs that share a job and its GPUs. Each has its own folder, state and log."""

    jobs: tuple[Job, ...]

    def __call__(self) -> str:
        """Run all of them; signals go on to each. Requeues the job where any made room."""
        signals = catch_signals()
        children = [_start(job) for job in self.jobs]
        told = 0
        while any(child.poll() is None for child in children):
            for number in signals[told:]:
                _tell(children, number)
            told = len(signals)
            time.sleep(_PAUSE_S)
        codes = [child.returncode for child in children]
        print(f"exit codes of the {len(codes)} runs: {codes}", flush=True)
        if YIELDED in codes:
            requeue(here())
        return "finished"

    def checkpoint(self) -> Any:
        """For submitit: at a signal before `__call__` has begun, the same pack again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _start(job: Job) -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "harness.job"],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, **job.variables()},
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(job)))
    child.stdin.close()
    return child


def _tell(children: "list[subprocess.Popen[str]]", number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.Signals(number))
