"""Options that the command lines share which start runs."""

from typing import Annotated

import typer

from harness.launching.dispatch import ExecutorName
from harness.launching.launcher import Retry
from mixgrpo import cli
from mixgrpo.errors import ConfigError

ExecutorOption = Annotated[
    ExecutorName, typer.Option(help="Where jobs run: this process, local processes, or Slurm.")
]
JobsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Local runs at once; by default one per GPU, else one per core."),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="What jobs ask of Slurm, partition=gpu.", metavar="KEY=VALUE"),
]
SnapshotOption = Annotated[
    bool, typer.Option("--snapshot", help="Run from a copy of the tracked files as they are.")
]
RetryOption = Annotated[
    Retry, typer.Option(help="What runs again: nothing, infrastructure failures, exceptions too.")
]
TrustOption = cli.TrustOption
AcceptCodeOption = Annotated[
    bool,
    typer.Option(
        "--accept-code-change",
        help="Take finished runs for the same whose reward's or model's own code alone differs.",
    ),
]


def check_executor(
    executor: ExecutorName, jobs: int | None, slurm: list[str] | None, snapshot: bool
) -> None:
    """ConfigError for an option that the executor does not have."""
    if executor != "local" and jobs is not None and (executor, jobs) != ("inline", 1):
        mend = (
            "the inline executor runs one job at a time; leave it out"
            if executor == "inline"
            else "Slurm decides how many run; --slurm at_once=K bounds an array"
        )
        raise ConfigError(f"--jobs: {mend}")
    if slurm and executor != "slurm":
        raise ConfigError("--slurm: only --executor slurm asks Slurm for anything; add it")
    if snapshot and executor == "inline":
        raise ConfigError("--snapshot: an inline run has this process's code; leave it out")
