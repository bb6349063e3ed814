"""The environment of a result: code, versions, device. For env.json; does not import torch."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.runs.records import Environment
from mixgrpo.compute.machine import processor

PACKAGES = ("mixgrpo", "torch", "diffusers", "numpy", "scipy")

SNAPSHOT = "snapshot.json"
"""Names the commit in a copy of the code (`harness.launching.snapshot`)."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by numerical libraries when they are loaded, so set before torch is imported."""


_JOB_VARIABLES = re.compile(
    r"(MASTER_(ADDR|PORT)|((LOCAL|GROUP|ROLE|NODE|GLOBAL)_)?(RANK|WORLD_SIZE)|NPROC_PER_NODE)"
    r"|(ACCELERATE|FSDP|DEEPSPEED|TORCHELASTIC|TORCH_NCCL|OMPI|PMI|PMIX|MPI|MV2|HYDRA"
    r"|SLURM|SLURMD|SRUN|SUBMITIT)_.*"
)
"""Variables by which launchers (accelerate, torchrun, MPI, Slurm, submitit) tell a process which of
several it is, and with what settings."""
_SITE_VARIABLES = {"SLURM_CONF"}
"""Variables among them that describe the cluster, not the job."""


def job_variables() -> list[str]:
    """The names of variables of a job of several processes. Set by a shell or an allocation, they
    must not reach a job of one process."""
    return [
        name
        for name in os.environ
        if _JOB_VARIABLES.fullmatch(name) and name not in _SITE_VARIABLES
    ]


@contextmanager
def changed(variables: Mapping[str, str | None]) -> Iterator[None]:
    """The environment with these variables set, or removed where they are None."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1", "NoDevFiles")]
    return [line.split(",")[0] for line in _nvidia_smi("index")]


def describe(threads: int, gpu: str | None) -> dict[str, Any]:
    """The contents of env.json. `gpu` as CUDA_VISIBLE_DEVICES takes it; None for the first GPU."""
    used = next(iter(gpus()), "") if gpu is None else gpu
    code, dirty = commit()
    return {
        "commit": code,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "threads": threads,
        "device": _gpu_name(used) if used else "cpu",
    }


def decisive(env: dict[str, Any], processes: int, sharded: bool) -> dict[str, Any]:
    """What a run's bytes depend on beside its settings. `env`: what `describe` returns."""
    keys = ["python", "versions", "system", "threads", "device"]
    if env["device"] == "cpu":
        keys.append("cpu")
    described = {key: env[key] for key in keys}
    return {"code": code(), **described, "processes": processes, "sharded": sharded}


@lru_cache(maxsize=1)
def code() -> str:
    """A digest of the trainer's code, committed or not, as it was when this process began."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2] / "mixgrpo"
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def in_words(env: Environment) -> str:
    """One line of env.json for a report's footer."""
    code = f"commit {env.commit[:10]}" if env.commit else "no commit known"
    if env.dirty:
        code += " with uncommitted changes"
    device = "" if env.device == "cpu" else f"{env.device}, "
    return (
        f"{device}{env.cpu}, {env.threads} thread{'' if env.threads == 1 else 's'} per run, "
        f"Python {env.python}, torch {env.versions.get('torch')}, {code}"
    )


@dataclass(frozen=True, order=True)
class Machine:
    """The description in a report of the machine and the versions of its runs."""

    words: str
    one_core: bool
    """Whether each run had one thread of a CPU: then its CPU time is its cost."""

    @classmethod
    def of(cls, env: Environment) -> "Machine":
        return cls(in_words(env), env.device == "cpu" and env.threads == 1)

    @classmethod
    def read(cls, kept: Any) -> "Machine":
        """From a report's kept measurements, in which version 0.1 kept only the words."""
        if isinstance(kept, dict):
            return cls(str(kept["words"]), kept["one_core"] is True)
        processor, _, rest = str(kept).partition(", 1 thread per run, ")
        return cls(str(kept), bool(rest) and ", " not in processor)  # a GPU would stand before it


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> tuple[str | None, bool | None]:
    """The commit of the code and whether it was changed since; None outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    copied = package.parent / SNAPSHOT
    if copied.exists():
        version = json.loads(copied.read_text())
        return version["commit"], version["dirty"]
    head = _output(["git", "-C", str(package), "rev-parse", "HEAD"])
    if not head:
        return None, None
    # Only the two packages: other files change no result.
    code = [str(package), str(package.parent / "mixgrpo")]
    changed = _output(["git", "-C", str(package), "status", "--porcelain", "--", *code])
    return head[0], bool(changed)


def _gpu_name(gpu: str) -> str:
    names = _nvidia_smi("name", "-i", gpu)
    return names[0] if names else f"GPU {gpu}"


def _nvidia_smi(field: str, *arguments: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = [f"--query-gpu={field}", "--format=csv,noheader"]
    return _output(["nvidia-smi", *query, *arguments])


def _output(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
