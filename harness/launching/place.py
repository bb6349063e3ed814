"""Where this process runs: what Slurm or submitit say in the environment of a job."""

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Here:
    """A job's place."""

    job: str | None
    """The scheduler's name for the job, `123_4` for a task of an array; None without one."""
    raw_job: str | None
    """The id by which Slurm requeues it."""
    restarts: int | None
    """How often Slurm has queued the job again; None where it is not Slurm's."""
    node: str
    rank: int
    """Index of this process among those of the job."""


def here() -> Here:
    """The place of this process."""
    asked = os.environ
    if "SLURM_JOB_ID" not in asked or asked.get("SUBMITIT_EXECUTOR") != "slurm":
        local = asked.get("SUBMITIT_LOCAL_JOB_ID")
        return Here(local, None, None, socket.gethostname(), 0)
    raw = asked["SLURM_JOB_ID"]
    array = asked.get("SLURM_ARRAY_JOB_ID")
    return Here(
        job=f"{array}_{asked['SLURM_ARRAY_TASK_ID']}" if array else raw,
        raw_job=raw,
        restarts=int(asked.get("SLURM_RESTART_COUNT") or 0),
        node=asked.get("SLURMD_NODENAME") or socket.gethostname(),
        rank=int(asked.get("SLURM_PROCID") or 0),
    )


def join_ranks(sharded: bool) -> None:
    """Set what accelerate reads, so that the processes that Slurm started for a run meet."""
    import submitit

    submitit.helpers.TorchDistributedEnvironment().export(
        set_cuda_visible_devices=False, overwrite=True
    )
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if sharded:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
