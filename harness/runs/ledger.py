"""What a sweep's runs have cost: hours of runs and of GPUs, useful ones and wasted ones by cause.

Summed from the records of the attempts, from the seconds of the iterations and evaluations that
were kept and, for attempts that left no word, from what Slurm's accounting said. Reads only.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.runs.folder import is_of, last_seen, last_touch, newest_checkpoint, origin
from harness.runs.records import Attempt
from harness.runs.state import RunState
from harness.slurm import submissions
from harness.slurm.commands import CAUSES
from mixgrpo.files.jsonlines import whole_lines
from mixgrpo.files.records import EVALUATIONS, METRICS, DamagedFileError

START_UP = "start-up"
"""What an attempt that lost nothing took beside iterations and evaluations, as for imports."""

_MOST_SECONDS = 1e9
"""Of one iteration; more is damage."""


@dataclass
class Spent:
    """Time of runs."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def add(self, seconds: float, gpus: float) -> None:
        self.seconds += seconds
        self.gpu_seconds += seconds * gpus


@dataclass
class Ledger:
    """The books of a sweep."""

    useful: Spent = field(default_factory=Spent)
    """Iterations and evaluations that are part of a result, or will be."""
    wasted: dict[str, Spent] = field(default_factory=dict)
    """The rest, by why the attempt ended; `start-up` where it lost nothing."""

    @property
    def total(self) -> Spent:
        every = [self.useful, *self.wasted.values()]
        return Spent(sum(s.seconds for s in every), sum(s.gpu_seconds for s in every))


def ledger(states: Iterable[RunState], sweep_folder: Path) -> Ledger:
    """The books over these runs: what was computed for the sweep of this folder, and not what
    other sweeps had computed of the same runs."""
    made, accounting = Ledger(), _Accounting(sweep_folder)
    for state in states:
        if state.attempts:
            _enter(made, state, accounting)
    return made


def _enter(made: Ledger, state: RunState, accounting: "_Accounting") -> None:
    first = state.attempts[0]
    in_one_go = len(state.attempts) == 1 and first.reason == "finished" and not first.began_at
    if state.state == "finished" and in_one_go:
        if is_of(accounting.sweep_folder.name, state.folder, first):
            _enter_finished(made, state)
        return
    # What came from another run is no attempt's work: one that was killed before it had a
    # checkpoint has nothing of what a later one, or a launcher, took over.
    taken = origin(state.folder)
    copied = taken["iterations"] if taken else 0
    iterations = _seconds(state.folder / METRICS)
    evaluations = _seconds(state.folder / EVALUATIONS)
    first_judged = copied > 0 or first.began_at > 0
    for number, attempt in enumerate(state.attempts, start=1):
        later = state.attempts[number:]
        following = later[0] if later else None
        # A run that was queued again is not: what its last attempt lost is lost.
        under_way = following is None and state.state == "running" and attempt.ended is None
        told = None if under_way else accounting.about(state.folder.name, attempt)
        if later:
            # Not the next one's alone: after a damaged checkpoint a run may begin further back.
            kept = min(a.began_at for a in later)
        elif state.state == "finished" or (under_way and _has_measured(state.folder, attempt)):
            kept = state.total + 1
        elif under_way:
            kept = attempt.began_at
        else:
            kept = newest_checkpoint(state.folder)
        began_at = max(attempt.began_at, copied)
        useful = sum(s for m, s in iterations.items() if began_at <= m < kept)
        if under_way and last_touch(state.folder, attempt) is None:
            end = time.time()
        else:
            end = _end(state.folder, attempt, following, told)
        seconds = max(0.0, end - attempt.started)
        # An evaluation stands after so many iterations. The one before them all belongs to the
        # first attempt that had the time for it.
        useful += sum(s for m, s in evaluations.items() if began_at < m <= kept)
        if not first_judged and seconds >= (before := evaluations.get(0, 0.0)):
            first_judged = True
            useful += before
        if not is_of(accounting.sweep_folder.name, state.folder, attempt):
            continue
        useful = min(useful, seconds)
        made.useful.add(useful, attempt.gpus)
        cause = START_UP if under_way else _cause(attempt, told)
        made.wasted.setdefault(cause, Spent()).add(seconds - useful, attempt.gpus)


def _has_measured(folder: Path, attempt: Attempt) -> bool:
    """Whether an attempt has come so far that the metrics are its own, not the last one's."""
    try:
        return (folder / "metrics.jsonl").stat().st_mtime >= attempt.started
    except FileNotFoundError:
        return False


def _enter_finished(made: Ledger, state: RunState) -> None:
    """A run that was finished in one go, as most are: its result has the sum of the iterations."""
    attempt = state.attempts[0]
    seconds = max(0.0, last_seen(state.folder, attempt) - attempt.started)
    iterations = (state.seconds_per_iteration or 0.0) * state.iteration
    useful = min(seconds, iterations + sum(_seconds(state.folder / EVALUATIONS).values()))
    made.useful.add(useful, attempt.gpus)
    made.wasted.setdefault(START_UP, Spent()).add(seconds - useful, attempt.gpus)


def _seconds(file: Path) -> dict[int, float]:
    """Seconds of the iterations or evaluations of a run, by the iterations done before. What is
    damaged counts as none."""
    try:
        lines = whole_lines(file)
    except DamagedFileError:
        return {}
    told = {line.get("iteration"): line.get("seconds_total") for line in lines}
    return {
        iteration: float(seconds)
        for iteration, seconds in told.items()
        if isinstance(iteration, int)
        and isinstance(seconds, int | float)
        and 0 <= seconds < _MOST_SECONDS
    }


def _cause(attempt: Attempt, told: "_Told | None") -> str:
    """An attempt's own reason; Slurm's for one that was killed."""
    own = attempt.reason or "killed"
    if own in ("finished", "stopped", "yielded"):
        return START_UP
    return (told.cause if told else None) or own


def _end(folder: Path, attempt: Attempt, following: Attempt | None, told: "_Told | None") -> float:
    """When an attempt ended, in seconds since the epoch; by Slurm where it left no word."""
    seen = last_seen(folder, attempt)
    if told is None or told.ended is None:
        return seen
    # The clocks may differ: no attempt took longer than its job, or ran on beside the next one.
    bounds = [told.ended]
    if told.started is not None:
        bounds.append(attempt.started + told.ended - told.started)
    if following is not None:
        bounds.append(following.started)
    return max(seen, min(bounds))


@dataclass(frozen=True)
class _Told:
    """What Slurm's accounting said of one time that a task ran."""

    cause: str | None
    """In our words; None where Slurm's says nothing that the job did not."""
    started: float | None
    """Seconds since the epoch by Slurm's clock, as `ended`."""
    ended: float | None


class _Accounting:
    """What was kept of Slurm's accounting, read when it is first asked for."""

    def __init__(self, sweep_folder: Path) -> None:
        self.sweep_folder = sweep_folder
        self._by_run: dict[str, list[submissions.Submission]] | None = None
        self._lines: dict[str, dict[str, list[submissions.Ended]]] = {}
        """By a submission's token and by task: a line for each time the task ran."""

    def about(self, run: str, attempt: Attempt) -> _Told | None:
        """The time that an attempt of this run's folder ran; None where it left its own word."""
        if attempt.reason not in (None, "killed"):
            return None
        if attempt.job_id is None or attempt.restarts is None:
            return None
        asked = [s for s in self._submissions(run) if attempt.job_id in self._ended(s.token)]
        # A cluster that is made anew may give a run the same id again.
        submission = next((s for s in reversed(asked) if s.created <= attempt.started), None)
        submission = submission or (asked[0] if asked else None)
        if submission is None:
            return None
        lines = self._ended(submission.token)[attempt.job_id]
        if attempt.restarts >= len(lines):
            return None
        line = lines[attempt.restarts]
        cause = CAUSES.get(line.state)
        packed = any(run in names and len(names) > 1 for names in submission.tasks)
        # One run of a pack may be killed long before its job ends.
        alone = packed and cause in (None, "out-of-memory")
        return _Told(cause, line.started, None if alone else line.ended)

    def _submissions(self, run: str) -> list[submissions.Submission]:
        """Those that a run was part of, the oldest first."""
        if self._by_run is None:
            self._by_run = defaultdict(list)
            for submission in submissions.read(self.sweep_folder):
                for name in {name for names in submission.tasks for name in names}:
                    self._by_run[name].append(submission)
        return self._by_run.get(run, [])

    def _ended(self, token: str) -> dict[str, list[submissions.Ended]]:
        if token not in self._lines:
            by_task = self._lines[token] = defaultdict(list)
            for ended in submissions.read_ended(self.sweep_folder, token):
                by_task[ended.task].append(ended)
        return self._lines[token]
