"""Stops the jobs of a sweep, or of a part of it (--cancel)."""

from pathlib import Path

from harness.launching.sweep_lease import lease_holder, take_lease
from harness.runs.folder import ask_to_stop
from harness.runs.state import look_at_all, sweep_folder
from harness.slurm.scheduler import Scheduler
from harness.study.spec import Sweep
from mixgrpo.errors import RunError


def cancel(sweep: Sweep, runs_dir: Path) -> str:
    """Cancel what is queued, and ask what runs to checkpoint and stop. What was done, in words.

    Runs that another sweep started go on. RunError where a launcher works on the sweep.
    """
    folder = sweep_folder(sweep, runs_dir)
    if not folder.is_dir():
        return f"{folder}: does not exist, so nothing is queued or runs"
    held = take_lease(sweep, runs_dir, begin=False)
    if held is None:
        raise RunError(
            f"{folder}: {lease_holder(sweep, runs_dir)} runs this sweep; end that one first "
            "(Ctrl-C, or kill), or it would go on with the rest"
        )
    try:
        scheduler = Scheduler(folder)
        states = look_at_all(sweep, runs_dir, scheduler.job_states())
        running = [s for s in states if s.state == "running" and s.is_started_by(sweep.name)]
        queued = [s for s in states if s.state == "queued"]
        shared = scheduler.cancel({state.run.folder_name for state in queued})
        ask_to_stop([s.folder for s in states if s in running or s.run.folder_name in shared])
    finally:
        held.release()
    return (
        f"{len(queued)} queued run(s) cancelled; {len(running)} running one(s) stop after their "
        "iteration, with a checkpoint"
    )
