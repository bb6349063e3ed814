"""Measures finished runs after their training: hybrid inference, the solver's error.

    python -m harness.probe sweeps/hybrid.yaml

`probes:` of the sweep file says what is measured (`mixgrpo.settings.probes`). Each measurement is
one file, `<run>/probes/<name>.json`, written atomically, so that the command can be killed and run
again at any time. It is repeated if its options or the weights have changed.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.probing.tasks import tasks
from harness.probing.workers import measure_missing
from harness.study.load import load_sweep
from harness.study.spec import only
from mixgrpo.cli import TrustOption, say, warn
from mixgrpo.cli import run as run_command
from mixgrpo.errors import ConfigError


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
    """Measure on a sweep's finished runs what its `probes:` name and is still missing."""
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
    say(f"{len(every) - len(failed)} of {len(every)} measurements exist")
    return 1 if failed or damaged else 0


if __name__ == "__main__":
    run_command(main)
