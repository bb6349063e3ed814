"""What a sweep is doing: counts, progress, cost, and why runs failed. Never writes anything.

python -m harness.status sweeps/tau.yaml
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.launching.status import Observer, as_data, as_text
from harness.runs.state import sweep_folder
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say
from mixgrpo.compute import signals
from mixgrpo.files import lease

WATCH_EVERY_S = 2.0


def main(
    file: cli.FileArgument,
    profile: cli.ProfileOption = None,
    runs: cli.RunsOption = Path("runs"),
    set_: cli.SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    until_decided: cli.UntilDecidedOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> int:
    """Show what a sweep is doing. Writes nothing."""
    seen: Observer | None = None

    def show(before: str = "") -> None:
        nonlocal seen
        sweep = load_sweep(file, profile, set_ or [], until_decided=until_decided)
        if seen is None:
            seen = Observer(
                sweep, runs, Scheduler(sweep_folder(sweep, runs)), lease.Watch() if watch else None
            )
        seen.sweep = sweep
        seen.look()
        print(before, end="")
        say(json.dumps(as_data(seen)) if as_json else as_text(seen))

    if not watch:
        show()
        return 0
    with signals.noted() as stopping:
        while not stopping:
            show("\x1b[H\x1b[2J")
            signals.pause(WATCH_EVERY_S, stopping)
    return signals.exit_code(stopping[0])


if __name__ == "__main__":
    run_command(main)
