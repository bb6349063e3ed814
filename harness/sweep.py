"""The command of a sweep: plan it, run what is missing, follow it, write its report.

    python -m harness.sweep sweeps/tau.yaml

Safe to run again at any time: finished runs are kept, unfinished ones continue, new arms and seeds
are added.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.launching import options as cli_launch
from harness.launching import preflight
from harness.launching.background import go_to_background
from harness.launching.cancel import cancel as cancel_jobs
from harness.launching.dispatch import Local
from harness.launching.launcher import Launcher, SweepWork
from harness.launching.looks import LooksWork, seen
from harness.launching.resources import resources
from harness.launching.screen import Progress, say_damage, say_unfinished, say_what_to_do
from harness.launching.snapshot import locate
from harness.launching.sweep_lease import lease_holder, take_lease, wait_for_lease
from harness.launching.trash import Item, confirmed, look_at, move
from harness.launching.unlisted import say_unlisted, unlisted_items
from harness.planning.words import outcome, planned
from harness.probing.workers import after_training
from harness.runs import source
from harness.runs.state import RunState, look_at_all, sweep_folder
from harness.runs.store import unused
from harness.slurm import commands as slurm_commands
from harness.slurm.scheduler import LAG_S, Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Run, Sweep, only, single_runs
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say, warn
from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.lease import Lease
from mixgrpo.settings.paths import removed_if_refused
from mixgrpo.text.words import duration


@dataclass(frozen=True)
class Options(cli_launch.Launching):
    """What the command line asks for, beside which runs."""

    share: bool
    """Whether a run that several sweeps ask for is computed once."""
    accept_code_change: bool
    """Whether finished runs that differ in the user's own code alone are accepted."""


@dataclass(frozen=True)
class Command:
    """One call of the command: a sweep, the part of it to run, folders and options."""

    sweep: Sweep
    part: Sweep
    """The runs that --only and --rerun choose; all of them without. With looks, `now` says which of
    them are needed at present."""
    rerun: Sequence[Run]
    runs: Path
    reports: Path
    options: Options

    @property
    def folder(self) -> Path:
        return sweep_folder(self.sweep, self.runs)

    def scheduler(self) -> Scheduler:
        polls = [asked.poll_s for asked in self.options.resources.values()]
        return Scheduler(self.folder, min(polls, default=30.0), LAG_S)

    def now(self) -> Sweep:
        """The runs of the part that are needed at present: all of them without looks. ConfigError
        where no look needs any."""
        if not self.sweep.looks:
            return self.part
        needed = seen(self.sweep, self.runs).part_of(self.part)
        if not needed.runs:
            raise ConfigError(
                "--only, --rerun: no look needs these runs now; --plan alone says which are needed"
            )
        return needed

    def check_runs(self, states: list[RunState]) -> None:
        """ConfigError where an unfinished run of the part could not run as asked for."""
        options = self.options
        preflight.check_runs(
            self.sweep, states, options.executor, options.resources, self.runs, warn
        )


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
            help="Run only this one, again; its folder goes to the trash. Repeatable.",
        ),
    ] = None,
    retry: cli_launch.RetryOption = "lost",
    until_decided: cli.UntilDecidedOption = False,
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
    sweep = load_sweep(file, profile, set_ or [], trust, until_decided)
    rerun_runs = single_runs(sweep, rerun or [], "--rerun")
    part = only(sweep, [*(only_ or []), *(run.folder_name for run in rerun_runs)])
    # A run that is made again is neither copied nor refused because of how it ended before.
    share = not no_share and not rerun_runs
    if accept_code_change and not share:
        raise ConfigError("--accept-code-change: copies runs; leave out --no-share and --rerun")
    cli_launch.check_executor(executor, jobs, slurm, snapshot)
    options = Options(
        executor,
        jobs,
        resources(sweep, slurm or []) if executor == "slurm" else {},
        snapshot,
        "failed" if rerun_runs else retry,
        share,
        accept_code_change,
    )
    if yes and not (prune_ or rerun_runs):
        raise ConfigError("--yes: answers the question of --prune and --rerun; leave it out")
    if (plan or cancel) and (prune_ or rerun_runs):
        option = "--prune" if prune_ else "--rerun"
        raise ConfigError(f"{option}: moves runs and starts others; leave out --plan and --cancel")
    if sum((plan, cancel, detach)) > 1:
        raise ConfigError("--plan, --cancel, --detach: each does another thing; give one of them")
    asked = Command(sweep, part, rerun_runs, runs, reports, options)
    if cancel:
        source.check(sweep.name, sweep.file, asked.folder, reports / sweep.report_name)
        say(cancel_jobs(part, runs))
        return 0
    preflight.check_folders(sweep, runs, reports, executor == "slurm")
    if plan:
        return _plan(asked)
    if executor == "slurm":
        slurm_commands.check()
    if snapshot:
        locate(asked.folder)
    asked.check_runs(look_at_all(asked.now(), runs))
    with removed_if_refused(asked.folder, ("*/attempts", "*/config.yaml")):
        return _run_with_lease(asked, detach, prune_, yes)


def _plan(asked: Command) -> int:
    from harness.launching.plan import describe, foresee

    sweep, part, options = asked.sweep, asked.now(), asked.options
    slots = {"inline": 1, "local": Local(options.jobs).slots, "slurm": None}[options.executor]
    states = look_at_all(part, asked.runs, Scheduler(asked.folder).job_states())
    asked.check_runs(states)
    say_damage(states, say)
    saved = None
    if options.share:
        saved = foresee(sweep, states, asked.runs, options.accept_code_change)
    say(describe(part, states, slots, saved))
    if sweep.looks:
        say(planned(sweep, seen(sweep, asked.runs)))
    if sweep.probes:
        say(f"afterwards measured on every finished run: {', '.join(sweep.probes)}")
    if options.executor == "slurm":
        from harness.launching.slurm_plan import describe_arrays

        stored = saved.stored if saved else {}
        left = [state for state in states if state.run.folder_name not in stored]
        say(describe_arrays(part, asked.runs, left, options.resources, options.snapshot))
    say_unlisted(sweep, asked.runs, say)
    return 0


def _run_with_lease(asked: Command, detach: bool, prune: bool, yes: bool) -> int:
    """Take the sweep's lease and run what is missing, or follow its holder. The exit code."""
    try:
        held = _take_or_wait_for_lease(asked, detach)
    except Interrupted as interrupted:
        return interrupted.exit_code
    handed_over = False
    try:
        if not _move_to_trash(asked, prune, yes):
            return 1
        on_slurm = asked.options.executor == "slurm"
        if not detach or go_to_background(asked.sweep, asked.runs, held, on_slurm, say):
            return _run(asked, held)
        handed_over = True
        return 0
    finally:
        if not handed_over:
            held.release()


def _take_or_wait_for_lease(asked: Command, detach: bool) -> Lease:
    """The sweep's lease, after its present holder has ended. Interrupted after a signal; RunError
    where a command that is to return at once (`detach`) would have to wait."""
    sweep, runs = asked.sweep, asked.runs
    if detach:
        held = take_lease(sweep, runs)
        if held is None:
            raise RunError(
                f"{asked.folder}: {lease_holder(sweep, runs)} already runs this sweep; the same "
                "command without --detach follows it"
            )
        return held
    with Progress(sweep.measure) as progress:
        held = take_lease(sweep, runs)
        if held is not None:
            return held
        progress.say(
            f"{lease_holder(sweep, runs)} runs this sweep: following it (Ctrl-C leaves it alone)"
        )
        try:
            return wait_for_lease(asked.now, runs, progress, asked.scheduler().job_states)
        except Interrupted:
            progress.say("left; the sweep goes on without this command")
            raise


def _move_to_trash(asked: Command, prune: bool, yes: bool) -> bool:
    """Move the runs that --rerun and --prune name. False where the user does not want that."""
    sweep, runs = asked.sweep, asked.runs
    jobs = Scheduler(asked.folder).job_states()
    queued = {name for name, job in jobs.items() if job.status != "gone"}
    paths = [asked.folder / run.folder_name for run in asked.rerun]
    again = [look_at(path, queued, again=True) for path in paths if os.path.lexists(path)]
    if not _clear(asked, again, "--rerun", yes):
        return False
    return not prune or (
        _clear(asked, unlisted_items(sweep, runs, queued), "--prune", yes)
        and _clear(asked, [look_at(path) for path in unused(runs)], "--prune", yes)
    )


def _clear(asked: Command, items: list[Item], option: str, yes: bool) -> bool:
    for item in items:
        if item.stays:
            say(str(item))
    items = [item for item in items if not item.stays]
    if not items:
        return True
    if not confirmed(items, option, yes):
        say("nothing was moved, and nothing was started")
        return False
    move(items, say, Scheduler(asked.folder).cancel)
    return True


def _run(asked: Command, held: Lease) -> int:
    """Run what is missing with the sweep's lease held, and report. The exit code."""
    sweep, part, runs, options = asked.sweep, asked.part, asked.runs, asked.options
    source.note(sweep.name, sweep.file, asked.folder, say)
    say_damage(look_at_all(part, runs), say)
    say_unlisted(sweep, runs, say)
    work = LooksWork(sweep, part, runs) if sweep.looks else SweepWork(part)
    begin = time.monotonic()
    with Progress(sweep.measure) as progress:
        scheduler = asked.scheduler()
        launcher = Launcher(
            work,
            runs,
            progress,
            options.executor_maker(sweep.name, asked.folder, progress.say),
            scheduler,
            options.retry,
            options.share,
            options.accept_code_change,
            held,
        )
        complete = launcher.go()
    if not complete:
        goes_on = "left" if launcher.executor.outlive else "stopped; everything is resumable"
        say(f"{goes_on}: the same command continues")
        return launcher.exit_code
    part = work.sweep
    ended = look_at_all(part, runs, scheduler.job_states())
    unfinished = [state for state in ended if state.state != "finished"]
    took = f" ({duration(time.monotonic() - begin)})" if launcher.retries.starts else ""
    say(f"{len(ended) - len(unfinished)} of {len(ended)} runs finished{took}")
    say_unfinished(unfinished, launcher.vanished, say)
    say_what_to_do(unfinished, options.retry, say)
    if isinstance(work, LooksWork):
        for text in outcome(sweep, work.standing):
            say(text)
    jobs = 1 if options.executor == "inline" else options.jobs
    not_measured = after_training(part, runs, jobs, options.executor == "slurm")
    report: Path | RunError | None = None
    if any(state.state == "finished" for state in look_at_all(sweep, runs)):
        report = write_report(sweep, runs, asked.reports)
        say(f"report: {report}")
    return 1 if unfinished or not_measured or isinstance(report, PartialReport) else 0


class PartialReport(RunError):
    """A report, by the path of its page, that leaves out what is damaged."""


def write_report(sweep: Sweep, runs: Path, reports: Path) -> Path | RunError:
    """The report of what is finished; imported late, for it brings pandas and matplotlib."""
    from harness.reporting.write import FullerReport, write

    try:
        written = write(sweep, runs, reports / sweep.report_name)
    except FullerReport as kept:
        return kept
    return PartialReport(written.page) if written.left_out else written.page


if __name__ == "__main__":
    run_command(main)
