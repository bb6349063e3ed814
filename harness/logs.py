"""Shows what a run printed, or follows it while it runs.

python -m harness.logs RUN [--follow]
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.runs.folder import read_attempts
from harness.runs.logs import find_log, find_run, submission_log
from mixgrpo.cli import run as run_command
from mixgrpo.cli import warn
from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from mixgrpo.text.escape import visible

FOLLOW_EVERY_S = 0.5


def show(log: Path, lines: int) -> int:
    """Print the last `lines` of a log, or all for 0. Returns the number of bytes read."""
    try:
        text = log.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{log}: is gone; only the record of the attempt is left") from None
    kept = text.splitlines(keepends=True)
    _print(b"".join(kept[-lines:] if lines else kept))
    return len(text)


def _print(text: bytes) -> None:
    """Print what a run printed without moving the cursor: a progress bar becomes lines."""
    decoded = text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    sys.stdout.write(visible(decoded))
    sys.stdout.flush()


def follow(folder: Path, log: Path, position: int, stopping: list[int]) -> None:
    """Print what is added, also by later attempts, until nobody holds the run's lease, or until a
    signal is noted in `stopping`."""
    watch = lease.Watch()
    while not stopping:
        over = watch.holds(folder / OWNER) is False
        with log.open("rb") as stream:
            stream.seek(position)
            added = stream.read()
        position += len(added)
        _print(added)
        newest = find_log(folder)
        if newest != log:
            warn(f"==> {newest} <==")
            log, position = newest, 0
        elif over:
            return
        signals.pause(FOLLOW_EVERY_S, stopping)


def _first_log(folder: Path, stopping: list[int]) -> Path | None:
    """The newest log of a run, waited for where no job has begun; None after a signal."""
    said = False
    while not stopping:
        if read_attempts(folder) or submission_log(folder, ()) is not None:
            return find_log(folder)
        if not said:
            warn(f"{folder}: no job has begun yet; waiting")
            said = True
        signals.pause(FOLLOW_EVERY_S, stopping)
    return None


def main(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name: interval=5-seed0.")],
    runs: cli.RunsOption = Path("runs"),
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt; by default the newest.")
    ] = None,
    lines: Annotated[int, typer.Option(min=0, help="Only the last lines; 0 for all.")] = 0,
) -> int:
    """Show or follow what a run printed."""
    folder = find_run(run, runs)
    # A signal is the way to end it: not as an exception in the middle of a line.
    with signals.noted() as stopping:
        waits = follow_ and attempt is None
        log = _first_log(folder, stopping) if waits else find_log(folder, attempt)
        if log is not None:
            warn(f"==> {log} <==")
            position = show(log, lines)
            if waits:
                follow(folder, log, position, stopping)
    return signals.exit_code(stopping[0]) if stopping else 0


if __name__ == "__main__":
    run_command(main)
