"""The command of a search over settings: ask Optuna, run, give up what falls behind, confirm.

    python -m harness.search sweeps/search/window.yaml

Safe to stop and run again at any time: trials and runs that are finished are kept, others go on.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import cli
from harness.launching import options as cli_launch
from harness.launching import preflight
from harness.launching.launcher import Launcher
from harness.launching.resources import Slurm, layered
from harness.launching.retry import Retry
from harness.launching.screen import Progress
from harness.launching.snapshot import locate
from harness.launching.sweep_lease import lease_holder, take_lease
from harness.runs import source
from harness.runs.state import RunState
from harness.searching.check import check_space
from harness.searching.file import Search, load_search
from harness.searching.runs import make_sweep
from harness.searching.storage import JOURNAL, check_url, open_storage
from harness.slurm import commands as slurms
from harness.slurm.scheduler import LAG_S, Scheduler
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say, warn
from mixgrpo.compute.signals import ended_by_signal
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.lease import Lease
from mixgrpo.settings.paths import removed_if_refused

if TYPE_CHECKING:
    from harness.searching.study import Study

SearchArgument = Annotated[Path, typer.Argument(help="Search file (YAML).")]


def main(
    file: SearchArgument,
    profile: cli.ProfileOption = None,
    executor: cli_launch.ExecutorOption = "local",
    jobs: cli_launch.JobsOption = None,
    runs: cli.RunsOption = Path("runs"),
    reports: cli.ReportsOption = Path("reports"),
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna storage of the trials; a journal file beside the runs by default.",
            metavar="URL",
        ),
    ] = None,
    set_: cli.SetOption = None,
    slurm: cli_launch.SlurmOption = None,
    snapshot: cli_launch.SnapshotOption = False,
    retry: cli_launch.RetryOption = "lost",
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be tried; start nothing.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say what ran and what was given up, and why.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report again, and nothing else.")
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm/--no-confirm", help="Run the best settings on fresh seeds when done."
        ),
    ] = True,
    trust: cli_launch.TrustOption = False,
) -> int:
    """Search for the best settings, with Optuna, over the ranges of a file."""
    search = load_search(file, profile, set_ or [], trust)
    cli_launch.check_executor(executor, jobs, slurm, snapshot)
    check_url(storage)
    if sum((plan, status, report)) > 1:
        raise ConfigError("--plan, --status and --report: give one of them")
    folder = runs / search.name
    wishes = Slurm()
    if not (status or report):
        check_space(search)
        preflight.check_folders(make_sweep(search), runs, reports, executor == "slurm")
        if executor == "slurm":
            wishes = _wishes(search, slurm or [])
        preflight.check_processes(executor, _wishes(search, []), search.file)
        if wishes.python is None:
            preflight.check_code(list(search.named()), executor != "slurm", warn)
    if plan or status:
        from harness.searching.status import as_text, describe

        say((describe if plan else as_text)(search, runs, storage))
        return 0
    if report:
        say(write_report(search, runs, reports, storage))
        return 0
    if executor == "slurm":
        slurms.check()
    if snapshot:
        locate(folder)
    if storage is not None:
        open_storage(folder, storage, create=True)
    asked = Options(
        executor,
        jobs,
        defaultdict(lambda: wishes),
        snapshot,
        retry,
        runs,
        reports,
        storage,
        slurm,
        wishes.poll_s,
        confirm,
    )
    with removed_if_refused(folder, ("*/attempts", "*/config.yaml", JOURNAL)):
        held = take_lease(make_sweep(search), runs)
        if held is None:
            who = lease_holder(make_sweep(search), runs)
            raise RunError(
                f"{folder}: {who} already runs this search; end that one first, or look at it with "
                "--status"
            )
        try:
            return _search_and_confirm(search, asked, held)
        finally:
            held.release()


@dataclass(frozen=True)
class Options(cli_launch.Launching):
    """What the command line asks for, beside what is searched."""

    runs: Path
    reports: Path
    storage: str | None
    slurm: list[str] | None
    """Words of the command line for Slurm, for the runs that confirm."""
    poll_s: float
    """How often Slurm is asked for its queue."""
    confirm: bool


def _search_and_confirm(search: Search, asked: Options, held: Lease) -> int:
    """Run the trials, and the best on fresh seeds when they are over. The exit code."""
    source.note(search.name, search.file, asked.runs / search.name, say)
    code, over = _run(search, asked, held)
    if ended_by_signal(code):
        return code
    page = write_report(search, asked.runs, asked.reports, asked.storage)
    sweep_file = asked.reports / search.report_name / "confirm.yaml"
    if asked.confirm and not over:
        say("the best are confirmed when all trials are over: the same command continues")
    if not (over and asked.confirm and sweep_file.exists()):
        say(f"report: {page}")
        return code
    from harness import sweep as sweeps

    say(f"the best on fresh seeds: {sweep_file}")
    confirmed = sweeps.main(
        file=sweep_file,
        executor=asked.executor,
        jobs=asked.jobs,
        runs=asked.runs,
        reports=asked.reports,
        slurm=asked.slurm,
        snapshot=asked.snapshot,
        retry=asked.retry,
        trust=True,  # what this command wrote, of a file that was checked
    )
    say(f"report: {write_report(search, asked.runs, asked.reports, asked.storage)}")
    return max(code, confirmed)  # a signal's are the highest


def write_report(search: Search, runs: Path, reports: Path, storage: str | None) -> Path:
    """The report of what is there; imported late, for it brings pandas and matplotlib."""
    from harness.searching.report import write_report as write

    return write(search, runs, reports, storage)


def _wishes(search: Search, overrides: list[str]) -> Slurm:
    """What a trial's runs ask of Slurm."""
    parts = [
        (part, lambda word, k=key: search.document.place((*k, word))) for part, key in search.slurm
    ]
    return layered(parts, str(search.file), overrides)


class _Quiet(Progress):
    """Leaves out the last look: no run is left in it, and the trials are said instead."""

    def update(
        self, look: Callable[[], list[RunState]], slots: int | None, force: bool = False
    ) -> None:
        if not force:
            super().update(look, slots)


def _run(search: Search, asked: Options, held: Lease) -> tuple[int, bool]:
    """Run the trials: the exit code, and whether all are over."""
    from harness.searching.study import Study
    from harness.searching.work import SearchWork

    folder = asked.runs / search.name
    study = Study(search, folder, asked.storage)
    with _Quiet(search.measure) as progress:
        make = asked.executor_maker(search.name, folder, progress.say)
        scheduler = Scheduler(folder, asked.poll_s, LAG_S)
        work = SearchWork(search, study, asked.runs, progress.say, again=asked.retry == "failed")
        launcher = Launcher(work, asked.runs, progress, make, scheduler, asked.retry, held=held)
        complete = launcher.go()
        outlive = launcher.executor.outlive
    if not complete:
        goes_on = "left" if outlive else "stopped; everything is resumable"
        say(f"{goes_on}: the same command continues")
        return launcher.exit_code, False
    return _say_end(study, asked.retry)


def _say_end(study: "Study", retry: Retry) -> tuple[int, bool]:
    """Say how the trials ended: the exit code, and whether all are over."""
    from harness.searching.status import summary

    trials, more = study.trials(), study.wants_more()
    say(summary(trials))
    settled = {trial.arm for trial in trials if trial.state in ("complete", "pruned")}
    bad = [trial for trial in trials if trial.state == "failed" and trial.arm not in settled]
    left = [trial for trial in trials if trial.state in ("running", "waiting")]
    for trial in bad:
        say(f"trial {trial.number}: {trial.why}")
    for trial in left:
        say(f"trial {trial.number}: not finished ({trial.arm or 'it never began'})")
    if bad and retry != "failed":
        say(
            "what failed runs again by the same command with --retry failed; a wrong setting is to "
            "be corrected first"
        )
    if trials and not left and all(trial.state != "complete" for trial in trials):
        say(f"no trial came to a result; trial 0: {trials[0].why or 'it never began'}")
        return 1, not more
    return (1 if bad or left or more else 0), not (left or more)


if __name__ == "__main__":
    run_command(main)
