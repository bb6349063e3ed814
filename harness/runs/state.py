"""The state of every run of a sweep, from its folder and from Slurm's answers. Writes nothing.

The first of these that applies:

* finished: result.json is there (it is written last, atomically).
* running: a process holds the folder's lease, or Slurm says that its job runs.
* queued: Slurm has its job in the queue; unknown: it had, and does not answer now.
* as its newest attempt recorded, or else as Slurm says: `stopped` (it was asked to), `failed` (an
  exception: the program's or the configuration's fault), `lost` (infrastructure: it was killed, a
  node failed, a disk was full).
* waiting: it never began.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.runs.codechange import read_accepted
from harness.runs.folder import ENDED_BY_ITSELF, is_of, look_at_attempts
from harness.runs.records import Attempt
from harness.runs.result import read_result
from harness.slurm.commands import CAUSES
from harness.slurm.scheduler import JobState
from harness.slurm.submissions import SUBMISSIONS
from harness.study.spec import Run, Sweep
from mixgrpo.compute import phase
from mixgrpo.files import lease
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    DamagedFileError,
    Progress,
    parse,
)
from mixgrpo.runs.folder import OWNER
from mixgrpo.runs.location import locate

State = Literal["finished", "running", "queued", "unknown", "stopped", "failed", "lost", "waiting"]
LIVE: tuple[State, ...] = ("running", "queued", "unknown")
"""The states in which a run's job exists, or may exist."""

STATE_OF: dict[str, State] = {
    # Recorded as finished, and yet without a result: somebody removed it.
    "finished": "lost",
    "stopped": "stopped",
    "yielded": "lost",
    "config": "failed",
    "exception": "failed",
    "no-space": "lost",
    "run-error": "lost",
    "no-progress": "lost",
    "killed": "lost",
    # Slurm's causes (harness.slurm.commands), for attempts that recorded no reason.
    "cancelled": "stopped",
    "time-limit": "lost",
    "preempted": "lost",
    "requeued": "lost",
    "node-failure": "lost",
    "out-of-memory": "lost",
}


@dataclass(frozen=True)
class RunState:
    """What a run's folder and Slurm show at one moment."""

    run: Run
    folder: Path
    state: State
    attempts: tuple[Attempt, ...] = ()
    iteration: int = 0
    """Iterations done, as far as the metrics say."""
    seconds_per_iteration: float | None = None
    """Median over the last ones."""
    seconds_per_evaluation: float | None = None
    reward: float | None = None
    """Rollout reward of the last iteration: not comparable across window positions."""
    score: float | None = None
    """The sweep's measure in the last evaluation."""
    job: JobState | None = None
    """The state of its last job in Slurm; None for a run that was never submitted."""
    before: float | None = None
    """The sweep's measure in the first evaluation."""
    phase: str = ""
    """What a running one is doing, as far as that is known."""
    damage: str | None = None
    """Why a run that was finished counts as lost: which of its files is damaged, and how."""
    unreadable: tuple[str, ...] = ()
    """Damaged records of attempts, which were skipped, and of accepted code, each with what is
    wrong."""

    @property
    def total(self) -> int:
        return self.run.config.iterations

    @property
    def gain(self) -> float | None:
        """By how much the sweep's measure has risen since the first evaluation."""
        if self.score is None or self.before is None:
            return None
        return self.score - self.before

    @property
    def in_queue(self) -> bool:
        """Whether Slurm has its job, waiting or running."""
        return self.job is not None and self.job.status != "gone"

    @property
    def evaluations_left(self) -> int:
        """Evaluations still to come; there is always one after the last iteration."""
        every = self.run.config.evaluation.every
        return -(-self.total // every) - self.iteration // every

    @property
    def reason(self) -> str | None:
        """Why the newest attempt ended; None where there was none, or where it goes on."""
        if self.state in (*LIVE, "waiting"):
            return None
        if self.damage is not None and self.state == "lost":
            return "damaged"
        return _reason(self.attempts, self.job)

    def is_started_by(self, sweep: str) -> bool:
        """Whether this sweep, and no other that shares the run, made the newest attempt at it; True
        where there is none."""
        return not self.attempts or is_of(sweep, self.folder, self.attempts[-1])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What any attempt warned of, each text once."""
        return tuple(dict.fromkeys(text for a in self.attempts for text in a.warnings))


def sweep_folder(sweep: Sweep, runs_dir: Path) -> Path:
    return runs_dir / sweep.name


def run_folder(folder: Path, run: Run) -> Path:
    """Where a run of the sweep or search in `folder` lies. Where what leads to it is damaged, the
    path of that: no run lies there, and `look` says what is wrong."""
    path = folder / run.folder_name
    try:
        return locate(path)
    except DamagedFileError:
        return path


def look(
    sweep: Sweep,
    run: Run,
    runs_dir: Path,
    jobs: Mapping[str, JobState] | None = None,
    watch: lease.Watch | None = None,
) -> RunState:
    """The state of one run. RunError where its folder was written by another version.

    `jobs`: what Slurm says of the sweep's runs, by folder name. `watch` remembers the leases of
    other machines, for callers that look repeatedly.
    """
    name = run.folder_name
    job = jobs.get(name) if jobs else None
    path = sweep_folder(sweep, runs_dir) / name
    try:
        folder = locate(path)
    except DamagedFileError as damaged:
        return RunState(run, path, "lost", job=job, damage=str(damaged))
    finished, damage = _finished(sweep, run, folder, job)
    if finished is not None:
        return finished
    # In this order, an attempt that ends in between is seen as running and not as lost.
    held = watch.holds(folder / OWNER) if watch else lease.is_held(folder / OWNER)
    attempts, unreadable = look_at_attempts(folder)
    state: State
    if held is not False:
        state = "running"
    else:
        finished, damage = _finished(sweep, run, folder, job)
        if finished is not None:
            return finished
        state = _state(attempts, job)
        if damage is not None and state not in LIVE:
            state = "lost"
    unfinished = RunState(
        run, folder, state, attempts, job=job, damage=damage, unreadable=unreadable
    )
    return _with_progress(sweep, unfinished)


def _finished(
    sweep: Sweep, run: Run, folder: Path, job: JobState | None
) -> tuple[RunState | None, str | None]:
    """The state of a finished run, or what is damaged in its result; neither without a result."""
    try:
        result = read_result(folder, run)
    except DamagedFileError as damaged:
        return None, str(damaged)
    if result is None:
        return None, None
    attempts, unreadable = look_at_attempts(folder)
    try:
        read_accepted(folder, result)
    except DamagedFileError as damaged:
        unreadable = (*unreadable, str(damaged))
    state = RunState(
        run,
        folder,
        "finished",
        attempts,
        iteration=result.iterations,
        seconds_per_iteration=result.seconds_total / result.iterations,
        score=result.after.get(sweep.measure),
        before=result.before.get(sweep.measure),
        job=job,
        unreadable=unreadable,
    )
    return state, None


def _state(attempts: tuple[Attempt, ...], job: JobState | None) -> State:
    """The state of a run without a result whose lease nobody holds."""
    if job is not None and job.status != "gone":
        last = attempts[-1] if attempts else None
        ended_by_itself = (
            last is not None and last.job_id == job.task and last.reason in ENDED_BY_ITSELF
        )
        if not ended_by_itself:
            return job.status
    if not attempts and (job is None or job.slurm_state == "NEVER_SUBMITTED"):
        return "waiting"
    return STATE_OF.get(_reason(attempts, job) or "killed", "failed")


def _reason(attempts: tuple[Attempt, ...], job: JobState | None) -> str | None:
    """Why a run ended without a result: as its newest attempt recorded, or else as Slurm says."""
    last = attempts[-1] if attempts else None
    recorded = last.reason if last else None
    if job is None or not job.task:
        return recorded or ("killed" if last else None)
    of_this_job = last is not None and last.job_id == job.task
    if last is not None and not of_this_job and _is_newer(attempts, job):
        return recorded or "killed"
    if of_this_job and recorded not in (None, "stopped", "yielded", "killed"):
        return recorded
    cause = CAUSES.get(job.slurm_state)
    if of_this_job and recorded == "stopped" and cause == "cancelled":
        return recorded  # Slurm's state may be that of the array's tasks that still waited
    return cause or (recorded if of_this_job else None) or "killed"


def _is_newer(attempts: tuple[Attempt, ...], job: JobState) -> bool:
    """Whether the newest attempt, which is of another job, came after this submission."""
    if any(attempt.job_id == job.task for attempt in attempts):
        return True
    return attempts[-1].started > job.created


def look_at_all(
    sweep: Sweep,
    runs_dir: Path,
    jobs: Mapping[str, JobState] | None = None,
    watch: lease.Watch | None = None,
) -> list[RunState]:
    """The states of all runs, in the order of the sweep."""
    folder = sweep_folder(sweep, runs_dir)
    existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    states = []
    for run in sweep.runs:
        name = run.folder_name
        if name in existing:
            states.append(look(sweep, run, runs_dir, jobs, watch))
        else:
            job = jobs.get(name) if jobs else None
            states.append(RunState(run, folder / name, _state((), job), job=job))
    return states


def unlisted_runs(known: set[str], folder: Path) -> list[Path]:
    """The run folders in a sweep's `folder` whose names are not `known`, in alphabetical order."""
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.name not in known and p.name != SUBMISSIONS and _looks_like_a_run(p)
    )


def _looks_like_a_run(folder: Path) -> bool:
    # A link whose target is gone, or the file that stands for a link.
    if folder.is_file() or (folder.is_symlink() and not folder.exists()):
        return "-seed" in folder.name
    return any((folder / name).exists() for name in ("config.yaml", "attempts", OWNER))


def _with_progress(sweep: Sweep, state: RunState) -> RunState:
    metrics = list(_last_lines(state.folder / METRICS, count=20))
    evals = list(_last_lines(state.folder / EVALUATIONS, count=1))
    values: dict[str, Any] = {}
    if metrics:
        seconds = sorted(line.seconds_total for line in metrics)
        values["iteration"] = metrics[-1].iteration + 1
        values["seconds_per_iteration"] = seconds[len(seconds) // 2]
        values["reward"] = metrics[-1].number(f"reward_{sweep.measure}_mean")
    if evals:
        values["seconds_per_evaluation"] = evals[-1].seconds_total
        values["score"] = evals[-1].number(f"reward_{sweep.measure}_mean")
        first = _first_line(state.folder / EVALUATIONS)
        values["before"] = first.number(f"reward_{sweep.measure}_mean") if first else None
    now = phase.read(state.folder) if state.state == "running" else None
    # A killed process leaves its phase behind: that is not what its successor does.
    if now is not None and state.attempts and state.attempts[-1].pid == now.pid:
        values["phase"] = "" if now.name == "training" and metrics else str(now)
    return replace(state, **values)


def _regular(file: Path) -> Path:
    """`file` if it is a regular file: opening a pipe would wait for a writer. FileNotFoundError
    otherwise."""
    if not file.is_file():
        raise FileNotFoundError(file)
    return file


def _first_line(file: Path) -> Progress | None:
    """The first line of a file of JSON lines; None where there is none yet."""
    with contextlib.suppress(OSError, DamagedFileError), _regular(file).open("rb") as stream:
        return parse(Progress, file, stream.readline(65536))
    return None


def _last_lines(file: Path, count: int) -> Iterator[Progress]:
    """The last complete lines of a file that may be being written, the oldest first."""
    try:
        with _regular(file).open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - count * 2048))
            texts = stream.read().split(b"\n")[:-1]
    except OSError:
        return
    for text in texts[-count:]:
        # A line may be damaged, or cut at the beginning of what was read.
        with contextlib.suppress(DamagedFileError):
            yield parse(Progress, file, text)
