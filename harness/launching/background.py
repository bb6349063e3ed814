"""Continues a launcher in the background (--detach)."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.runs.state import sweep_folder
from harness.study.spec import Sweep
from mixgrpo.files.lease import Lease

LOG = "launcher.log"
"""In the sweep's folder: the output of a launcher in the background."""


def go_to_background(
    sweep: Sweep, runs_dir: Path, held: Lease, on_slurm: bool, say: Callable[[str], None]
) -> bool:
    """Fork a launcher in its own session. True in the launcher, False in the command.

    The launcher takes over the sweep's lease without its ever being free.
    """
    log = sweep_folder(sweep, runs_dir) / LOG
    sys.stdout.flush()
    child = os.fork()
    if child:
        say(f"process {child} runs {sweep.name} in the background; its output is in {log}")
        ends = (
            "ends it and leaves the jobs to Slurm (then --cancel ends them)"
            if on_slurm
            else "stops it resumably"
        )
        say(f"the same command without --detach follows it; `kill {child}` {ends}")
        return False
    os.setsid()
    with Path(os.devnull).open() as nothing, log.open("a") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    held.sign()
    held.keep()
    return True
