"""The run folder as a database: what state a run is in, what it measured, what it cost.

Reading never writes. Who may write is decided elsewhere: the job that owns a run's folder
(`harness.launching.job`) and the trainer inside it.

A run's state, from what lies in its folder, in this order of trust:

* finished: result.json is there (it is written last, atomically).
* running: a process holds the folder's lease, or Slurm says that its job runs.
* queued: Slurm has its job in the queue; unknown: it had, and does not answer now.
* by its newest attempt, and by Slurm's word where that left none: `stopped` (asked to), `failed`
  (an exception: the program's or the configuration's fault), `lost` (infrastructure: killed
  without a word, a node that failed, no disk space).
* waiting: it never began.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.runs.folder import ENDED_BY_ITSELF, look_at_attempts
from harness.runs.records import Attempt
from harness.slurm.commands import CAUSES
from harness.slurm.submissions import SUBMISSIONS, Place
from harness.study.spec import Run, Sweep
from mixgrpo.compute import phase
from mixgrpo.errors import RunError
from mixgrpo.files import lease
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    MOST_OF_A_RECORD,
    RESULT,
    DamagedFileError,
    Progress,
    Result,
    Version,
    check_lines,
    parse,
    parse_result,
    read_bytes,
)
from mixgrpo.runs.folder import OWNER
from mixgrpo.runs.location import locate
from mixgrpo.settings.config import SCHEMA_VERSION

State = Literal["finished", "running", "queued", "unknown", "stopped", "failed", "lost", "waiting"]
LIVE: tuple[State, ...] = ("running", "queued", "unknown")
"""What is under way, or may be."""

FIX = "run the sweep again: it makes again what is damaged"
"""What to do about a damaged result, and about damaged lines."""

STATE_OF: dict[str, State] = {
    # Said to be finished, and yet without a result: somebody removed it.
    "finished": "lost",
    "stopped": "stopped",
    "yielded": "lost",
    "config": "failed",
    "exception": "failed",
    "no-space": "lost",
    "run-error": "lost",
    "no-progress": "lost",
    "killed": "lost",
    # Words of Slurm's (harness.slurm.commands), for what left none.
    "cancelled": "stopped",
    "time-limit": "lost",
    "preempted": "lost",
    "requeued": "lost",
    "node-failure": "lost",
    "out-of-memory": "lost",
}


@dataclass(frozen=True)
class RunState:
    """What one look at a run's folder shows."""

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
    place: Place | None = None
    """Where it stands in Slurm, by its last submission."""
    before: float | None = None
    """The sweep's measure in the first evaluation."""
    phase: str = ""
    """What a running one is doing, as far as it says."""
    damage: str | None = None
    """Why a run that was finished counts as lost: which of its files is damaged, and how."""
    unreadable: tuple[str, ...] = ()
    """Records of attempts that are damaged and were passed over, each with what is wrong."""

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
        return self.place is not None and self.place.standing != "gone"

    @property
    def evaluations_left(self) -> int:
        """Evaluations that lie ahead; the one after the last iteration always."""
        every = self.run.config.evaluation.every
        return -(-self.total // every) - self.iteration // every

    @property
    def reason(self) -> str | None:
        """Why the newest attempt ended; None where there was none, or it is under way."""
        if self.state in (*LIVE, "waiting"):
            return None
        if self.damage is not None and self.state == "lost":
            return "damaged"
        return _reason(self.attempts, self.place)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What any attempt warned of, each text once."""
        return tuple(dict.fromkeys(text for a in self.attempts for text in a.warnings))


def sweep_folder(sweep: Sweep, runs_dir: Path) -> Path:
    return runs_dir / sweep.name


def look(
    sweep: Sweep,
    run: Run,
    runs_dir: Path,
    places: Mapping[str, Place] | None = None,
    watch: lease.Watch | None = None,
) -> RunState:
    """The state of one run. RunError where its folder was written by another version.

    `places` is what Slurm says of the sweep's runs; `watch` remembers the leases of other machines
    for whoever looks again and again.
    """
    name = run.folder_name
    folder = locate(sweep_folder(sweep, runs_dir) / name)
    place = places.get(name) if places else None
    finished, damage = _finished(sweep, run, folder, place)
    if finished is not None:
        return finished
    # In this order: an attempt that ends between the two looks is then seen as running, not lost.
    held = watch.holds(folder / OWNER) if watch else lease.is_held(folder / OWNER)
    attempts, unreadable = look_at_attempts(folder)
    state: State
    if held is not False:
        # A job takes the lease, then writes its record: until then there is nothing to show.
        state = "running"
    else:
        finished, damage = _finished(sweep, run, folder, place)
        if finished is not None:
            return finished
        state = _state(attempts, place)
        if damage is not None and state not in LIVE:
            state = "lost"
    found = RunState(
        run, folder, state, attempts, place=place, damage=damage, unreadable=unreadable
    )
    return _with_progress(sweep, found)


def _finished(
    sweep: Sweep, run: Run, folder: Path, place: Place | None
) -> tuple[RunState | None, str | None]:
    """The state of a finished run, or what is damaged of one; neither where it has no result."""
    try:
        result = read_result(folder, run.config.evaluation.every)
    except DamagedFileError as damaged:
        return None, str(damaged)
    if result is None:
        return None, None
    attempts, unreadable = look_at_attempts(folder)
    state = RunState(
        run,
        folder,
        "finished",
        attempts,
        iteration=result.iterations,
        seconds_per_iteration=result.seconds_total / result.iterations,
        score=result.after.get(sweep.measure),
        before=result.before.get(sweep.measure),
        place=place,
        unreadable=unreadable,
    )
    return state, None


def _state(attempts: tuple[Attempt, ...], place: Place | None) -> State:
    """The state of a run without a result that nobody owns."""
    if place is not None and place.standing != "gone":
        last = attempts[-1] if attempts else None
        ended_by_itself = (
            last is not None and last.job_id == place.task and last.reason in ENDED_BY_ITSELF
        )
        if not ended_by_itself:
            return place.standing
    if not attempts and (place is None or place.word == "NEVER_SUBMITTED"):
        return "waiting"
    return STATE_OF.get(_reason(attempts, place) or "killed", "failed")


def _reason(attempts: tuple[Attempt, ...], place: Place | None) -> str | None:
    """Why a run is not under way: its newest attempt's own word, else Slurm's."""
    last = attempts[-1] if attempts else None
    own = last.reason if last else None
    if place is None or not place.task:
        return own or ("killed" if last else None)
    of_this_job = last is not None and last.job_id == place.task
    if last is not None and not of_this_job and _is_newer(attempts, place):
        return own or "killed"
    if of_this_job and own not in (None, "stopped", "yielded", "killed"):
        return own
    cause = CAUSES.get(place.word)
    if of_this_job and own == "stopped" and cause == "cancelled":
        return own  # the word may be the array's, for those of its tasks that waited
    return cause or (own if of_this_job else None) or "killed"


def _is_newer(attempts: tuple[Attempt, ...], place: Place) -> bool:
    """Whether the newest attempt, which is of another job, came after this submission."""
    if any(attempt.job_id == place.task for attempt in attempts):
        return True
    return attempts[-1].started > place.created


def look_at_all(
    sweep: Sweep,
    runs_dir: Path,
    places: Mapping[str, Place] | None = None,
    watch: lease.Watch | None = None,
) -> list[RunState]:
    """The states of all runs, in the order of the sweep."""
    folder = sweep_folder(sweep, runs_dir)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [
        look(sweep, run, runs_dir, places, watch)
        if run.folder_name in there
        else RunState(
            run,
            folder / run.folder_name,
            _state((), places.get(run.folder_name) if places else None),
            place=places.get(run.folder_name) if places else None,
        )
        for run in sweep.runs
    ]


def strangers(known: set[str], folder: Path) -> list[Path]:
    """Run folders of a sweep that are not among the `known` names, oldest name first."""
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.name not in known and p.name != SUBMISSIONS and _looks_like_a_run(p)
    )


def _looks_like_a_run(folder: Path) -> bool:
    # A link of which what it leads to is gone, or the file in place of a link.
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
    # What a killed process left behind is not what its successor does.
    if now is not None and state.attempts and state.attempts[-1].pid == now.pid:
        values["phase"] = "" if now.name == "training" and metrics else str(now)
    return replace(state, **values)


def read_result(folder: Path, every: int | None = None) -> Result | None:
    """The result of a finished run, checked against its lines; None while it is not finished.

    `every` so many iterations it was evaluated: of results that do not say of how many lines they
    are (`mixgrpo.files.records.check_lines`).

    DamagedFileError where the result or the lines are damaged: the sweep makes them again. RunError
    for another version's.
    """
    file = f"{folder}/{RESULT}"
    try:
        text = read_bytes(file, MOST_OF_A_RECORD)
        if text is None:
            return None
        version = parse(Version, file, text).schema_
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{folder}: was written by another version (schema {version}; this one reads "
                f"{SCHEMA_VERSION}); move the folder away to run it anew, or use the version that "
                "wrote it"
            )
        result = parse_result(file, text)
        check_lines(folder, result, every)
    except DamagedFileError as damaged:
        raise DamagedFileError(damaged.file, damaged.why, FIX) from None
    seed = re.search(r"-seed(\d+)-[0-9a-f]{8}$", folder.name)
    if seed is not None and int(seed[1]) != result.seed:
        raise DamagedFileError(file, f"seed is {result.seed}, not {seed[1]}", FIX)
    named = folder.name.rpartition("-")[2]
    if re.fullmatch("[0-9a-f]{8}", named) and named != result.hash:
        raise DamagedFileError(
            file,
            f"is the result of another run ({result.hash})",
            "move this run's folder away and run the sweep again",
        )
    return result


def _regular(file: Path) -> Path:
    """`file`, which may be opened: a pipe would wait for a writer. FileNotFoundError for others."""
    if not file.is_file():
        raise FileNotFoundError(file)
    return file


def _first_line(file: Path) -> Progress | None:
    """The first line of a file of JSON lines; None where there is none yet."""
    with contextlib.suppress(OSError, DamagedFileError), _regular(file).open("rb") as stream:
        return parse(Progress, file, stream.readline(65536))
    return None


def _last_lines(file: Path, count: int) -> Iterator[Progress]:
    """The last whole lines of a file that may be written to just now, the oldest first."""
    try:
        with _regular(file).open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - count * 2048))
            texts = stream.read().split(b"\n")[:-1]
    except OSError:
        return
    for text in texts[-count:]:
        # Cut at the beginning of what was read, or damaged.
        with contextlib.suppress(DamagedFileError):
            yield parse(Progress, file, text)
