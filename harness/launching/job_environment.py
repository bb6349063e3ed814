"""What surrounds a job: the variables that Slurm or submitit set, signals, requeueing, ranks."""

import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass

from harness.slurm import commands as slurm
from mixgrpo.errors import RunError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
YIELD_SIGNAL = signal.SIGUSR2
"""What Slurm sends some time before the time limit and, at most sites, at a preemption."""
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A terminal's Ctrl-C and end are for the launcher, which then asks the jobs to stop."""


@dataclass(frozen=True)
class JobEnvironment:
    """What the environment variables say of this process's job."""

    job: str | None
    """The scheduler's id of the job, `123_4` for a task of an array; None without one."""
    raw_job: str | None
    """The id by which Slurm requeues it."""
    restarts: int | None
    """How often Slurm has requeued the job; None where the job is not Slurm's."""
    node: str
    rank: int
    """Index of this process among those of the job."""


def read_job_environment() -> JobEnvironment:
    variables = os.environ
    if "SLURM_JOB_ID" not in variables or variables.get("SUBMITIT_EXECUTOR") != "slurm":
        local = variables.get("SUBMITIT_LOCAL_JOB_ID")
        return JobEnvironment(local, None, None, socket.gethostname(), 0)
    raw = variables["SLURM_JOB_ID"]
    array = variables.get("SLURM_ARRAY_JOB_ID")
    return JobEnvironment(
        job=f"{array}_{variables['SLURM_ARRAY_TASK_ID']}" if array else raw,
        raw_job=raw,
        restarts=int(variables.get("SLURM_RESTART_COUNT") or 0),
        node=variables.get("SLURMD_NODENAME") or socket.gethostname(),
        rank=int(variables.get("SLURM_PROCID") or 0),
    )


def catch_signals() -> list[int]:
    """Collect the signals that stop a job in the returned list, and ignore a terminal's."""
    signals: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda n, _: signals.append(n))
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return signals


def is_preempted(signals: list[int], job: JobEnvironment) -> bool:
    """Whether signals mean that Slurm ends the job for its time limit or for another job, rather
    than that somebody cancelled it."""
    if job.raw_job is None or not signals:
        return False
    if YIELD_SIGNAL in signals:
        return True
    try:
        return slurm.is_running(job.raw_job)
    except slurm.Unreachable:
        return True


def requeue(job: JobEnvironment) -> None:
    """Put this job back into Slurm's queue, which then ends it. After a refusal the launcher may
    start the run again."""
    try:
        slurm.requeue(str(job.raw_job))
    except RunError as refused:
        with contextlib.suppress(OSError):  # a full disk
            print(f"cannot be queued again: {refused}", file=sys.stderr, flush=True)


def join_ranks(sharded: bool) -> None:
    """Set the variables by which accelerate joins the processes that Slurm started for a run."""
    import submitit

    submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if sharded:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


def leave_ranks() -> None:
    from mixgrpo.compute.ranks import leave

    leave()
