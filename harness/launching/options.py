"""The options that the commands that start runs share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.launching import job
from harness.launching.dispatch import Executor, ExecutorName, Inline, Local
from harness.launching.resources import Slurm
from harness.launching.retry import Retry
from harness.launching.snapshot import take
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
        help="Accept finished runs that differ only in a reward's or model's code of your own.",
    ),
]


@dataclass(frozen=True)
class Launching:
    """Where and how a command runs jobs."""

    executor: ExecutorName
    jobs: int | None
    resources: Mapping[str, Slurm]
    """What the runs of each arm ask of Slurm; empty for the other executors."""
    snapshot: bool
    retry: Retry

    def executor_maker(
        self, sweep: str, folder: Path, say: Callable[[str], None]
    ) -> Callable[[Callable[[], bool]], Executor]:
        """A function that makes the executor for the launcher of a sweep with this name and folder,
        given the function that an inline job calls after every iteration."""

        def make(should_stop: Callable[[], bool]) -> Executor:
            if self.executor == "inline":
                return Inline(should_stop, job.TRAIN)
            code = take(folder) if self.snapshot else None
            if self.executor == "local":
                return Local(self.jobs, job.TRAIN, code)
            from harness.launching.cluster import Cluster

            return Cluster(sweep, folder, self.resources, say, job.TRAIN, code)

        return make


def check_executor(
    executor: ExecutorName, jobs: int | None, slurm: list[str] | None, snapshot: bool
) -> None:
    """ConfigError for an option that does not fit the executor."""
    if executor != "local" and jobs is not None and (executor, jobs) != ("inline", 1):
        fix = (
            "the inline executor runs one job at a time; leave it out"
            if executor == "inline"
            else "Slurm decides how many run; --slurm at_once=K bounds an array"
        )
        raise ConfigError(f"--jobs: {fix}")
    if slurm and executor != "slurm":
        raise ConfigError("--slurm: only --executor slurm uses Slurm; add it")
    if snapshot and executor == "inline":
        raise ConfigError("--snapshot: an inline run uses this process's code; leave it out")
