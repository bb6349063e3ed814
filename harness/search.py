"""The command of a search over settings: ask Optuna, run, give up what falls behind, confirm.

    python -m harness.search sweeps/search/window.yaml

Safe to stop and run again at any time: trials and runs that are finished are kept, others go on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import cli
from harness.launching import options as cli_launch
from harness.launching import preflight
from harness.launching.dispatch import Executor, ExecutorName, Inline, Local
from harness.launching.job import TRAIN
from harness.launching.launcher import Retry, own, owner
from harness.launching.resources import Slurm, layered
from harness.launching.screen import Progress
from harness.launching.snapshot import locate, take
from harness.runs import source
from harness.runs.store import RunState
from harness.searching.check import check_space
from harness.searching.file import Search, load_search
from harness.searching.storage import JOURNAL, check_url, open_storage
from harness.slurm import commands as slurms
from harness.slurm.submissions import LAG_S, Scheduler
from harness.study.spec import Sweep
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
    from harness.searching.runs import make_sweep

    sweep = make_sweep(search)
    if not (status or report):
        check_space(search)
        preflight.check_places(sweep, runs, reports, executor == "slurm")
        wishes = _wishes(search, slurm or []) if executor == "slurm" else Slurm()
        _check(search, wishes, executor)
    if plan:
        from harness.searching.status import describe

        say(describe(search, runs, storage))
        return 0
    if status:
        from harness.searching.status import as_text

        say(as_text(search, runs, storage))
        return 0
    if report:
        say(write_report(search, runs, reports, storage))
        return 0
    if executor == "slurm":
        slurms.check()
    if snapshot:
        locate(runs / search.name)
    if storage is not None:
        open_storage(runs / search.name, storage, create=True)
    with removed_if_refused(runs / search.name, ("*/attempts", "*/config.yaml", JOURNAL)):
        return _own_and_run(
            search,
            sweep,
            runs,
            reports,
            storage,
            executor,
            jobs,
            wishes,
            slurm,
            snapshot,
            retry,
            confirm,
        )


def _own_and_run(
    search: Search,
    sweep: Sweep,
    runs: Path,
    reports: Path,
    storage: str | None,
    executor: ExecutorName,
    jobs: int | None,
    wishes: Slurm,
    slurm: list[str] | None,
    snapshot: bool,
    retry: Retry,
    confirm: bool,
) -> int:
    """Take the search's lease and run it. The exit code."""
    held = own(sweep, runs)
    if held is None:
        raise RunError(
            f"{runs / search.name}: {owner(sweep, runs)} already runs this search; end that one "
            "first, or look at it with --status"
        )
    try:
        source.note(search.name, search.file, runs / search.name, say)
        code, over = _run(search, runs, storage, executor, jobs, wishes, snapshot, retry, held)
        if ended_by_signal(code):
            return code
        page = write_report(search, runs, reports, storage)
        sweep_file = reports / search.report_name / "confirm.yaml"
        if confirm and not over:
            say("the best are confirmed when all trials are over: the same command continues")
        if not (over and confirm and sweep_file.exists()):
            say(f"report: {page}")
            return code
        from harness import sweep as sweeps

        say(f"the best on fresh seeds: {sweep_file}")
        confirmed = sweeps.main(
            file=sweep_file,
            executor=executor,
            jobs=jobs,
            runs=runs,
            reports=reports,
            slurm=slurm,
            snapshot=snapshot,
            retry=retry,
            trust=True,  # what this command wrote, of a file that was checked
        )
        say(f"report: {write_report(search, runs, reports, storage)}")
        return max(code, confirmed)  # a signal's are the highest
    finally:
        held.release()


def _check(search: Search, wishes: Slurm, executor: ExecutorName) -> None:
    """ConfigError where trials name code, weights or prompts that cannot be used."""
    preflight.check_processes(executor, _wishes(search, []), search.file)
    if wishes.python is None:
        named = list(search.named())
        preflight.check_code(named, executor != "slurm", warn)


def write_report(search: Search, runs: Path, reports: Path, storage: str | None) -> Path:
    """The report of what is there; imported late, for it brings pandas and matplotlib."""
    from harness.searching.report import write_report as write

    return write(search, runs, reports, storage)


def _wishes(search: Search, overrides: list[str]) -> Slurm:
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


class _ForAll(dict[str, Slurm]):
    """What every trial asks for, whatever its name."""

    def __init__(self, wishes: Slurm) -> None:
        super().__init__()
        self.wishes = wishes

    def __missing__(self, arm: str) -> Slurm:
        return self.wishes


def _run(
    search: Search,
    runs: Path,
    storage: str | None,
    executor: ExecutorName,
    jobs: int | None,
    wishes: Slurm,
    snapshot: bool,
    retry: Retry,
    held: Lease,
) -> tuple[int, bool]:
    """What happens with the search's lease held: the exit code, and whether all trials are over."""
    from harness.searching.launcher import SearchLauncher
    from harness.searching.study import Study

    folder = runs / search.name
    study = Study(search, folder, storage)

    with _Quiet(search.measure) as progress:

        def make(should_stop: Callable[[], bool]) -> Executor:
            if executor == "inline":
                return Inline(should_stop, TRAIN)
            code = take(folder) if snapshot else None
            if executor == "local":
                return Local(jobs, TRAIN, code)
            from harness.launching.cluster import Cluster

            return Cluster(search.name, folder, _ForAll(wishes), progress.say, TRAIN, code)

        scheduler = Scheduler(folder, wishes.poll_s, LAG_S)
        launcher = SearchLauncher(search, study, runs, progress, make, scheduler, retry, held)
        complete = launcher.go()
        outlive = launcher.executor.outlive
    if not complete:
        goes_on = "left" if outlive else "stopped; everything is resumable"
        say(f"{goes_on}: the same command continues")
        return launcher.exit_code, False
    return _say_end(study, retry)


def _say_end(study: "Study", retry: Retry) -> tuple[int, bool]:
    from harness.searching.status import summary

    trials = study.trials()
    say(summary(trials))
    failed = [trial for trial in trials if trial.state == "failed"]
    settled = {trial.arm for trial in trials if trial.state in ("complete", "pruned")}
    bad = [trial for trial in failed if trial.arm not in settled]
    left = [trial for trial in trials if trial.state in ("running", "waiting")]
    for trial in bad:
        say(f"trial {trial.number}: {trial.why}")
    for trial in left:
        say(f"trial {trial.number}: not finished ({trial.arm or 'it never began'})")
    if bad and retry != "failed":
        say("what failed runs again by the same command with --retry failed")
    if trials and not any(trial.state == "complete" for trial in trials) and not left:
        say(f"no trial came to a result; trial 0: {trials[0].why or 'it never began'}")
        return 1, not study.wants_more()
    more = study.wants_more()
    return (1 if bad or left or more else 0), not (left or more)


if __name__ == "__main__":
    run_command(main)
