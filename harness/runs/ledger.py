"""What a sweep's runs have cost: hours of runs and of GPUs, useful ones and wasted ones by cause.

Summed from the records of the attempts, from the seconds of the iterations and evaluations that
were kept and, for attempts that left no word, from what Slurm's accounting said. Reads only.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
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
    """What these runs have cost the sweep of this folder: without what other sweeps had computed
    of the same runs."""
    books, accounting = Ledger(), _Accounting(sweep_folder)
    for state in states:
        first = state.attempts[0] if state.attempts else None
        if first is None:
            continue
        in_one_go = len(state.attempts) == 1 and first.reason == "finished" and not first.began_at
        if state.state == "finished" and in_one_go:
            if is_of(sweep_folder.name, state.folder, first):
                _enter_finished(books, state)
        else:
            _enter(books, state, accounting)
    return books


def _enter_finished(books: Ledger, state: RunState) -> None:
    """A run that was finished in one go, as most are: its result has the sum of the iterations."""
    attempt = state.attempts[0]
    seconds = max(0.0, last_seen(state.folder, attempt) - attempt.started)
    iterations = (state.seconds_per_iteration or 0.0) * state.iteration
    evaluations = _seconds(state.folder / EVALUATIONS)
    if attempt.evaluation_taken:
        evaluations.pop(0, None)
    useful = min(seconds, iterations + sum(evaluations.values()))
    _add(books, attempt, seconds, useful, START_UP)


def _enter(books: Ledger, state: RunState, accounting: "_Accounting") -> None:
    # What came from another run is no attempt's work: one that was killed before it had a
    # checkpoint has nothing of what a later one, or a launcher, took over.
    copied_from = origin(state.folder)
    copied = copied_from["iterations"] if copied_from else 0
    iterations = _seconds(state.folder / METRICS)
    evaluations = _seconds(state.folder / EVALUATIONS)
    first_counted = copied > 0 or any(a.began_at or a.evaluation_taken for a in state.attempts[:1])
    for number, attempt in enumerate(state.attempts, start=1):
        later = state.attempts[number:]
        # A run that was queued again is not: what its last attempt lost is lost.
        under_way = not later and state.state == "running" and attempt.ended is None
        accounted = None if under_way else accounting.about(state.folder.name, attempt)
        began_at = max(attempt.began_at, copied)
        kept = _kept_until(state, attempt, later, under_way)
        if under_way and last_touch(state.folder, attempt) is None:
            end = time.time()
        else:
            end = _end(state.folder, attempt, later[0] if later else None, accounted)
        seconds = max(0.0, end - attempt.started)
        useful = sum(s for m, s in iterations.items() if began_at <= m < kept)
        # An evaluation is numbered by the iterations before it. The one at 0 belongs to the
        # first attempt that had the time for it.
        useful += sum(s for m, s in evaluations.items() if began_at < m <= kept)
        if not first_counted and seconds >= (before := evaluations.get(0, 0.0)):
            first_counted = True
            useful += before
        cause = START_UP if under_way else _cause(attempt, accounted)
        if is_of(accounting.sweep_folder.name, state.folder, attempt):
            _add(books, attempt, seconds, min(useful, seconds), cause)


def _add(books: Ledger, attempt: Attempt, seconds: float, useful: float, cause: str) -> None:
    books.useful.add(useful, attempt.gpus)
    books.wasted.setdefault(cause, Spent()).add(seconds - useful, attempt.gpus)


def _kept_until(
    state: RunState, attempt: Attempt, later: tuple[Attempt, ...], under_way: bool
) -> int:
    """The iteration up to which an attempt's work is part of the result, or will be."""
    if later:
        # Not the next one's alone: after a damaged checkpoint a run may begin further back.
        return min(a.began_at for a in later)
    if state.state == "finished" or (under_way and _has_measured(state.folder, attempt)):
        return state.total + 1
    return attempt.began_at if under_way else newest_checkpoint(state.folder)


def _has_measured(folder: Path, attempt: Attempt) -> bool:
    """Whether the newest metrics are an attempt's, and not the last one's."""
    try:
        return (folder / METRICS).stat().st_mtime >= attempt.started
    except FileNotFoundError:
        return False


def _seconds(file: Path) -> dict[int, float]:
    """Seconds of the iterations or evaluations of a run, by the iterations done before. What is
    damaged counts as none."""
    try:
        lines = whole_lines(file)
    except DamagedFileError:
        return {}
    return {
        iteration: float(seconds)
        for line in lines
        if isinstance(iteration := line.get("iteration"), int)
        and isinstance(seconds := line.get("seconds_total"), int | float)
        and 0 <= seconds < _MOST_SECONDS
    }


def _cause(attempt: Attempt, accounted: "_Accounted | None") -> str:
    """An attempt's own reason; Slurm's for one that was killed."""
    reason = attempt.reason or "killed"
    if reason in ("finished", "stopped", "yielded"):
        return START_UP
    return (accounted.cause if accounted else None) or reason


def _end(
    folder: Path, attempt: Attempt, following: Attempt | None, accounted: "_Accounted | None"
) -> float:
    """When an attempt ended, in seconds since the epoch; by Slurm where it left no word."""
    seen = last_seen(folder, attempt)
    if accounted is None or accounted.ended is None:
        return seen
    # The clocks may differ: no attempt took longer than its job, or ran on beside the next one.
    bounds = [accounted.ended]
    if accounted.started is not None:
        bounds.append(attempt.started + accounted.ended - accounted.started)
    if following is not None:
        bounds.append(following.started)
    return max(seen, min(bounds))


@dataclass(frozen=True)
class _Accounted:
    """What Slurm's accounting says of one time that a task ran."""

    cause: str | None
    """In our words; None where Slurm's says nothing that the job did not."""
    started: float | None
    """Seconds since the epoch by Slurm's clock, as `ended`."""
    ended: float | None


class _Accounting:
    """What was kept of Slurm's accounting, read when it is first asked for."""

    def __init__(self, sweep_folder: Path) -> None:
        self.sweep_folder = sweep_folder
        self._times: dict[str, dict[str, list[submissions.Ended]]] = {}

    def about(self, run: str, attempt: Attempt) -> _Accounted | None:
        """The time that an attempt of this run's folder ran; None where it left its own word."""
        job = attempt.job_id
        if attempt.reason not in (None, "killed") or job is None or attempt.restarts is None:
            return None
        candidates = [s for s in self._by_run.get(run, []) if job in self._ended(s.token)]
        if not candidates:
            return None
        # A cluster that is made anew may give a run the same id again.
        earlier = [s for s in candidates if s.created <= attempt.started]
        submission = earlier[-1] if earlier else candidates[0]
        times = self._ended(submission.token)[job]
        if attempt.restarts >= len(times):
            return None
        time_of_task = times[attempt.restarts]
        cause = CAUSES.get(time_of_task.state)
        packed = any(run in names and len(names) > 1 for names in submission.tasks)
        # One run of a pack may be killed long before its job ends.
        alone = packed and cause in (None, "out-of-memory")
        return _Accounted(cause, time_of_task.started, None if alone else time_of_task.ended)

    @cached_property
    def _by_run(self) -> dict[str, list[submissions.Submission]]:
        """The submissions that each run was part of, the oldest first."""
        by_run: dict[str, list[submissions.Submission]] = defaultdict(list)
        for submission in submissions.read(self.sweep_folder):
            for name in {name for names in submission.tasks for name in names}:
                by_run[name].append(submission)
        return by_run

    def _ended(self, token: str) -> dict[str, list[submissions.Ended]]:
        """Of a submission, by task: a line for each time the task ran."""
        if token not in self._times:
            by_task = self._times[token] = defaultdict(list)
            for ended in submissions.read_ended(self.sweep_folder, token):
                by_task[ended.task].append(ended)
        return self._times[token]
