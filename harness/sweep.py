"""The command of a sweep: plan it, run what is missing, follow it, write its report.

    python -m harness.sweep sweeps/tau.yaml

Safe to run again at any time: finished runs are kept, unfinished ones continue, new arms and seeds
are added.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.launching import options as cli_launch
from harness.launching import preflight
from harness.launching.dispatch import ExecutorName, Local
from harness.launching.launcher import Launcher, SweepWork
from harness.launching.lengths import other_lengths
from harness.launching.resources import resources
from harness.launching.retry import Retry
from harness.launching.screen import Progress
from harness.launching.snapshot import locate
from harness.launching.sweep_lease import lease_holder, take_lease, wait_for_lease
from harness.launching.trash import Item, confirmed, look_at, move
from harness.probing.workers import after_training
from harness.runs import source
from harness.runs.codechange import of_other_code
from harness.runs.folder import ask_to_stop, is_of
from harness.runs.state import RunState, look_at_all, sweep_folder, unlisted_runs
from harness.runs.store import unused
from harness.slurm import commands as slurms
from harness.slurm.scheduler import LAG_S, Scheduler
from harness.study.load import known_folders, load_sweep
from harness.study.spec import Run, Sweep, only, single_runs
from harness.text import command
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say, warn
from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError, RunError, UnidentifiedError
from mixgrpo.files.lease import Lease
from mixgrpo.settings.places import nothing_left
from mixgrpo.text.words import duration

LOG = "launcher.log"


@dataclass(frozen=True)
class Options(cli_launch.Launching):
    """What the command line asks for, beside which runs."""

    share: bool
    """Whether a run that several sweeps ask for is computed once."""
    accept_code_change: bool
    """Whether finished runs of other code of the user's own are taken for the same."""


def main(
    file: cli.FileArgument,
    profile: cli.ProfileOption = None,
    executor: cli_launch.ExecutorOption = "local",
    jobs: cli_launch.JobsOption = None,
    runs: cli.RunsOption = Path("runs"),
    reports: cli.ReportsOption = Path("reports"),
    set_: cli.SetOption = None,
    slurm: cli_launch.SlurmOption = None,
    snapshot: cli_launch.SnapshotOption = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run; start nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; the same command picks up.")
    ] = False,
    only_: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this arm or run; repeatable."),
    ] = None,
    rerun: Annotated[
        list[str] | None,
        typer.Option(
            "--rerun",
            metavar="RUN",
            help="Run this one anew, and only it; its folder goes to the trash. Repeatable.",
        ),
    ] = None,
    retry: cli_launch.RetryOption = "lost",
    prune_: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Move runs that are no longer in the file to the trash, those of other --set "
            "values and of code before a change too; then run what is missing.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --prune and --rerun: move without asking.")
    ] = False,
    no_share: Annotated[
        bool,
        typer.Option("--no-share", help="Compute every run from its beginning, whatever is there."),
    ] = False,
    accept_code_change: cli_launch.AcceptCodeOption = False,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="Stop the sweep's jobs, with checkpoints; start nothing."),
    ] = False,
    trust: cli_launch.TrustOption = False,
) -> int:
    """Run what a sweep file asks for and is not there yet, follow it, and write the report."""
    sweep = load_sweep(file, profile, set_ or [], trust)
    anew = single_runs(sweep, rerun or [], "--rerun")
    part = only(sweep, [*(only_ or []), *(run.folder_name for run in anew)])
    # What is to run anew is neither copied nor kept from it by how it ended before.
    share = not no_share and not anew
    if accept_code_change and not share:
        raise ConfigError("--accept-code-change: copies runs; leave out --no-share and --rerun")
    asked = _asked(
        sweep,
        executor,
        jobs,
        slurm or [],
        snapshot,
        "failed" if anew else retry,
        share,
        accept_code_change,
    )
    if yes and not (prune_ or anew):
        raise ConfigError("--yes: answers the question of --prune and --rerun; leave it out")
    if (plan or cancel) and (prune_ or anew):
        option = "--prune" if prune_ else "--rerun"
        raise ConfigError(f"{option}: moves runs and starts others; leave out --plan and --cancel")
    if sum((plan, cancel, detach)) > 1:
        raise ConfigError("--plan, --cancel, --detach: each does another thing; give one of them")
    if cancel:
        source.check(sweep.name, sweep.file, sweep_folder(sweep, runs), reports / sweep.report_name)
        return _cancel(part, runs)
    preflight.check_places(sweep, runs, reports, executor == "slurm")
    if plan:
        return _plan(sweep, part, runs, asked)
    _check(sweep, part, runs, asked)
    with nothing_left(sweep_folder(sweep, runs), ("*/attempts", "*/config.yaml")):
        return _own_and_run(sweep, part, runs, reports, asked, detach, prune_, anew, yes)


def _own_and_run(
    sweep: Sweep,
    part: Sweep,
    runs: Path,
    reports: Path,
    asked: Options,
    detach: bool,
    prune_: bool,
    anew: Sequence[Run],
    yes: bool,
) -> int:
    """Take the sweep's lease and run what is missing, or follow its owner. The exit code."""
    if detach:
        held = take_lease(sweep, runs)
        if held is None:
            raise RunError(
                f"{sweep_folder(sweep, runs)}: {lease_holder(sweep, runs)} already runs this "
                "sweep; the same command without --detach follows it"
            )
    else:
        with Progress(sweep.measure) as progress:
            held = take_lease(sweep, runs)
            if held is None:
                progress.say(
                    f"{lease_holder(sweep, runs)} runs this sweep: following it (Ctrl-C leaves it "
                    "alone)"
                )
                scheduler = _scheduler(sweep, runs, asked)
                try:
                    held = wait_for_lease(part, runs, progress, scheduler.job_states)
                except Interrupted as interrupted:
                    progress.say("left; the sweep goes on without this command")
                    return interrupted.exit_code
    handed_over = False
    try:
        in_slurm = Scheduler(sweep_folder(sweep, runs)).job_states()
        queued = {name for name, place in in_slurm.items() if place.status != "gone"}
        folders = [sweep_folder(sweep, runs) / run.folder_name for run in anew]
        there = [path for path in folders if os.path.lexists(path)]
        items = [look_at(path, queued, anew=True) for path in there]
        if not _clear(sweep, runs, items, "--rerun", yes):
            return 1
        if prune_ and not (
            _clear(sweep, runs, _strangers(sweep, runs, queued), "--prune", yes)
            and _clear(sweep, runs, [look_at(path) for path in unused(runs)], "--prune", yes)
        ):
            return 1
        if not detach or _go_to_background(sweep, runs, held, asked.executor):
            return _run(sweep, part, runs, reports, asked, held)
        handed_over = True
        return 0
    finally:
        if not handed_over:
            held.release()


def _asked(
    sweep: Sweep,
    executor: ExecutorName,
    jobs: int | None,
    slurm: list[str],
    snapshot: bool,
    retry: Retry,
    share: bool,
    accept_code_change: bool,
) -> Options:
    """The options that go together. ConfigError for those that do not."""
    cli_launch.check_executor(executor, jobs, slurm, snapshot)
    wishes = resources(sweep, slurm) if executor == "slurm" else {}
    return Options(executor, jobs, wishes, snapshot, retry, share, accept_code_change)


def _check(sweep: Sweep, part: Sweep, runs: Path, asked: Options) -> None:
    """ConfigError, or RunError for a folder of another version, before anything is written."""
    if asked.executor == "slurm":
        slurms.check()
    if asked.snapshot:
        locate(sweep_folder(sweep, runs))
    states = look_at_all(part, runs)
    preflight.check_runs(sweep, states, asked.executor, asked.wishes, runs, warn)


def _scheduler(sweep: Sweep, runs: Path, asked: Options) -> Scheduler:
    polls = [wishes.poll_s for wishes in asked.wishes.values()]
    return Scheduler(sweep_folder(sweep, runs), min(polls, default=30.0), LAG_S)


def _plan(sweep: Sweep, part: Sweep, runs: Path, asked: Options) -> int:
    from harness.launching.plan import describe, foresee

    slots = {"inline": 1, "local": Local(asked.jobs).slots, "slurm": None}[asked.executor]
    states = look_at_all(part, runs, Scheduler(sweep_folder(sweep, runs)).job_states())
    preflight.check_runs(sweep, states, asked.executor, asked.wishes, runs, warn)
    _tell_damage(states)
    saved = foresee(sweep, states, runs, asked.accept_code_change) if asked.share else None
    say(describe(part, states, slots, saved))
    if sweep.probes:
        say(f"afterwards measured on every finished run: {', '.join(sweep.probes)}")
    if asked.executor == "slurm":
        from harness.launching.slurm_plan import describe_arrays

        stored = saved.stored if saved else {}
        left = [state for state in states if state.run.folder_name not in stored]
        say(describe_arrays(part, runs, left, asked.wishes, asked.snapshot))
    _tell_strangers(sweep, runs)
    return 0


def _cancel(part: Sweep, runs: Path) -> int:
    """Stop everything of these arms that is queued or runs."""
    if not sweep_folder(part, runs).is_dir():
        say(f"{sweep_folder(part, runs)}: is not there, so nothing is queued or runs")
        return 0
    held = take_lease(part, runs, begin=False)
    if held is None:
        raise RunError(
            f"{sweep_folder(part, runs)}: {lease_holder(part, runs)} runs this sweep; end that one "
            "first (Ctrl-C, or kill), or it would go on with the rest"
        )
    try:
        scheduler = Scheduler(sweep_folder(part, runs))
        states = look_at_all(part, runs, scheduler.job_states())
        running = [
            s
            for s in states
            if s.state == "running"
            and (not s.attempts or is_of(part.name, s.folder, s.attempts[-1]))
        ]
        queued = [s for s in states if s.state == "queued"]
        shared = scheduler.cancel({state.run.folder_name for state in queued})
        ask_to_stop([s.folder for s in states if s in running or s.run.folder_name in shared])
    finally:
        held.release()
    say(
        f"{len(queued)} queued run(s) cancelled; {len(running)} running one(s) stop after their "
        "iteration, with a checkpoint"
    )
    return 0


def _run(
    sweep: Sweep,
    part: Sweep,
    runs: Path,
    reports: Path,
    asked: Options,
    held: Lease,
) -> int:
    """What happens with the sweep's lease held. Returns the exit code."""
    source.note(sweep.name, sweep.file, sweep_folder(sweep, runs), say)
    _tell_damage(look_at_all(part, runs))
    _tell_strangers(sweep, runs)
    begin = time.monotonic()
    with Progress(sweep.measure) as progress:
        make = asked.executor_maker(sweep.name, sweep_folder(sweep, runs), progress.say)
        scheduler = _scheduler(sweep, runs, asked)
        launcher = Launcher(
            SweepWork(part),
            runs,
            progress,
            make,
            scheduler,
            asked.retry,
            asked.share,
            asked.accept_code_change,
            held,
        )
        complete = launcher.go()
    if not complete:
        goes_on = "left" if launcher.executor.outlive else "stopped; everything is resumable"
        say(f"{goes_on}: the same command continues")
        return launcher.exit_code
    ended = look_at_all(part, runs, scheduler.job_states())
    unfinished = [state for state in ended if state.state != "finished"]
    took = f" ({duration(time.monotonic() - begin)})" if launcher.retries.starts else ""
    say(f"{len(ended) - len(unfinished)} of {len(ended)} runs finished{took}")
    for state in unfinished:
        if state.run.folder_name in launcher.vanished:
            say(f"{state.run.name}: its folder was renamed or removed: {state.folder}")
            continue
        why = state.attempts[-1].last_line if state.attempts else "it never began"
        why = state.damage or why
        log = command("harness.logs", state.folder)
        say(f"{state.run.name}: {state.state}: {why or state.reason}; log: {log}")
    if any(state.state == "failed" for state in unfinished) and asked.retry != "failed":
        say("what failed by an exception runs again by the same command with --retry failed")
    jobs = 1 if asked.executor == "inline" else asked.jobs
    lacking = after_training(part, runs, jobs, asked.executor == "slurm")
    report: Path | RunError | None = None
    if any(state.state == "finished" for state in look_at_all(sweep, runs)):
        report = write_report(sweep, runs, reports)
        say(f"report: {report}")
    return 1 if unfinished or lacking or isinstance(report, PartialReport) else 0


class PartialReport(RunError):
    """A report, by the path of its page, that leaves out what is damaged."""


def _tell_damage(states: list[RunState]) -> None:
    """Name the runs of which a file is damaged."""
    for state in states:
        for text in (*([state.damage] if state.damage else []), *state.unreadable):
            say(f"{state.run.name}: {text}")


def write_report(sweep: Sweep, runs: Path, reports: Path) -> Path | RunError:
    """The report of what is finished; imported late, for it brings pandas and matplotlib."""
    from harness.reporting.write import FullerReport, write

    try:
        written = write(sweep, runs, reports / sweep.report_name)
    except FullerReport as kept:
        return kept
    return PartialReport(written.page) if written.left_out else written.page


def _clear(sweep: Sweep, runs: Path, items: list[Item], option: str, yes: bool) -> bool:
    """Move these runs to the trash. False where the user does not want that."""
    if not items:
        return True
    if not confirmed(items, option, yes):
        say("nothing was moved, and nothing was started")
        return False
    move(items, say, Scheduler(sweep_folder(sweep, runs)).cancel)
    return True


def _strangers(sweep: Sweep, runs: Path, queued: set[str]) -> list[Item]:
    """The run folders that no profile of the file asks for. ConfigError where that is not known."""
    try:
        known = known_folders(sweep.file, sweep) | {run.folder_name for run in sweep.runs}
    except UnidentifiedError as error:  # of another profile, for another machine
        raise ConfigError(
            f"--prune: which folders belong to all profiles of {sweep.file} is not known here "
            f"({error}); nothing was moved"
        ) from error
    remarks = _remarks(sweep, runs)
    return [
        look_at(folder, queued, remarks.get(folder.name, ""))
        for folder in unlisted_runs(known, sweep_folder(sweep, runs))
    ]


def _remarks(sweep: Sweep, runs: Path) -> dict[str, str]:
    """What run folders are that differ from one of the file only in their length, by name."""
    others = other_lengths(sweep, runs, sweep.runs)
    return {other.run.folder_name: other.remark for other in others}


def _tell_strangers(sweep: Sweep, runs: Path) -> None:
    """Report run folders that no profile of the file asks for."""
    try:
        known = known_folders(sweep.file, sweep) | {run.folder_name for run in sweep.runs}
    except UnidentifiedError:  # of another profile, for another machine
        return
    found = unlisted_runs(known, sweep_folder(sweep, runs))
    other_code = of_other_code(found, sweep.runs)
    if other_code:
        say(
            f"{len(other_code)} run(s) have the same settings, but were made before your own code "
            "(of a reward, model or optimizer) changed; they stay. --prune moves them to the "
            "trash; if the change alters no result, --accept-code-change takes finished ones:"
        )
        for folder in other_code:
            say(f"  {folder}")
    found = [folder for folder in found if folder not in other_code]
    if found:
        say(
            f"{len(found)} run(s) are no longer in {sweep.file}, or were made with other --set "
            "values; they stay (--prune moves them to the trash):"
        )
        remarks = _remarks(sweep, runs)
        for folder in found:
            say(f"  {folder}" + (f": {remarks[folder.name]}" if folder.name in remarks else ""))


def _go_to_background(sweep: Sweep, runs: Path, held: Lease, executor: ExecutorName) -> bool:
    """Fork a launcher with a session of its own. True in it, False in the command that returns.

    The sweep's lease goes over to it without ever being free.
    """
    log = sweep_folder(sweep, runs) / LOG
    sys.stdout.flush()
    child = os.fork()
    if child:
        say(f"process {child} runs {sweep.name} in the background; its output is in {log}")
        ends = (
            "ends it and leaves the jobs to Slurm (then --cancel ends them)"
            if executor == "slurm"
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


if __name__ == "__main__":
    run_command(main)
