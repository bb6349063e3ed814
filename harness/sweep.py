"""The command of a sweep: plan it, run what is missing, follow it, write its report.

    python -m harness.sweep sweeps/tau.yaml

Safe to run again at any time: finished runs are kept, unfinished ones continue, new arms and seeds
are added.
"""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.dispatch import ExecutorName, Local
from harness.job import TRAIN
from harness.launcher import Launcher, Retry, own, owner, prune, wait_for_lock
from harness.progress import Progress, duration
from harness.spec import Sweep, known_folders, load_sweep, only
from harness.store import look_at_all, strangers, sweep_folder
from mixgrpo.cli import run as run_command
from mixgrpo.errors import RunError
from mixgrpo.lock import Lock

LOG = "launcher.log"
INTERRUPTED = 130


def main(
    file: cli.FileArgument,
    profile: cli.ProfileOption = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="Where jobs run: this process, or local processes.")
    ] = "local",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once; by default one per GPU, else one per core."),
    ] = None,
    runs: cli.RunsOption = Path("runs"),
    reports: cli.ReportsOption = Path("reports"),
    set_: cli.SetOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run; start nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; the same command picks up.")
    ] = False,
    only_: Annotated[
        list[str] | None, typer.Option("--only", metavar="ARM", help="Only this arm; repeatable.")
    ] = None,
    retry: Annotated[
        Retry,
        typer.Option(help="What runs again: nothing, infrastructure failures, exceptions too."),
    ] = "lost",
    prune_: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove runs that are no longer in the file; those of other --set values too.",
        ),
    ] = False,
) -> int:
    """Run what a sweep file asks for and is not there yet, follow it, and write the report."""
    sweep = load_sweep(file, profile, set_ or [])
    part = only(sweep, only_ or [])
    if plan:
        from harness.plan import describe

        slots = 1 if executor == "inline" else Local(jobs).slots
        print(describe(part, runs, slots))
        _tell_strangers(sweep, runs)
        return 0
    if detach:
        held = own(sweep, runs)
        if held is None:
            raise RunError(
                f"{sweep_folder(sweep, runs)}: {owner(sweep, runs)} already runs this sweep; the "
                "same command without --detach follows it"
            )
        if not _go_to_background(sweep, runs, held):
            return 0
    else:
        with Progress(sweep.measure) as progress:
            held = own(sweep, runs)
            if held is None:
                progress.say(
                    f"{owner(sweep, runs)} runs this sweep: following it (Ctrl-C leaves it alone)"
                )
                held = wait_for_lock(part, runs, progress)
        if held is None:
            print("left; the sweep goes on without this command")
            return INTERRUPTED
    try:
        return _run(sweep, part, runs, reports, executor, jobs, retry, prune_)
    finally:
        held.release()


def _run(
    sweep: Sweep,
    part: Sweep,
    runs: Path,
    reports: Path,
    executor: ExecutorName,
    jobs: int | None,
    retry: Retry,
    prune_: bool,
) -> int:
    """What happens with the sweep's lock held. Returns the exit code."""
    look_at_all(part, runs)  # a folder of another version is an error before anything starts
    _tell_strangers(sweep, runs, remove=prune_)
    begin = time.monotonic()
    with Progress(sweep.measure) as progress:
        launcher = Launcher(part, runs, progress, executor, jobs, retry, TRAIN)
        complete = launcher.go()
    if not complete:
        print("stopped; everything is resumable: the same command continues")
        return INTERRUPTED
    ended = look_at_all(part, runs)
    unfinished = [state for state in ended if state.state != "finished"]
    print(f"{len(ended) - len(unfinished)} of {len(ended)} runs finished", end="")
    print(f" ({duration(time.monotonic() - begin)})" if launcher.starts else "", flush=True)
    for state in unfinished:
        why = state.attempts[-1].last_line if state.attempts else "it never began"
        print(f"{state.run.name}: {state.state}: {why or state.reason}; log in {state.folder}/log")
    if any(state.state == "failed" for state in unfinished) and retry != "failed":
        print("what failed by an exception runs again with --retry failed")
    if any(state.state == "finished" for state in look_at_all(sweep, runs)):
        print(f"report: {write_report(sweep, runs, reports)}")
    return 1 if unfinished else 0


def write_report(sweep: Sweep, runs: Path, reports: Path) -> Path | RunError:
    """The report of what is finished; imported late, for it brings pandas and matplotlib."""
    from harness.report import FullerReport
    from harness.report import write_report as write

    try:
        return write(sweep, runs, reports)
    except FullerReport as kept:
        return kept


def _tell_strangers(sweep: Sweep, runs: Path, remove: bool = False) -> None:
    """Report, or remove, run folders that no profile of the file asks for."""
    known = known_folders(sweep.file) | {run.folder_name for run in sweep.runs}
    found = strangers(known, sweep_folder(sweep, runs))
    if remove:
        prune(found, print)
    elif found:
        print(
            f"{len(found)} run(s) are no longer in {sweep.file}, or were made with other --set "
            "values (--prune removes them):"
        )
        for folder in found:
            print(f"  {folder}")


def _go_to_background(sweep: Sweep, runs: Path, held: Lock) -> bool:
    """Fork a launcher with a session of its own. True in it, False in the command that returns.

    The sweep's lock goes over to it without ever being free.
    """
    log = sweep_folder(sweep, runs) / LOG
    sys.stdout.flush()
    child = os.fork()
    if child:
        print(f"process {child} runs {sweep.name} in the background; its output is in {log}")
        print(f"the same command without --detach follows it; `kill {child}` stops it resumably")
        return False
    os.setsid()
    with Path(os.devnull).open() as nothing, log.open("a") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    held.sign()
    return True


if __name__ == "__main__":
    run_command(main)
