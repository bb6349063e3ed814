"""What a sweep's runs have cost: hours of runs and of GPUs, useful ones and wasted ones by cause.

Summed from the records of the attempts and from the seconds of the iterations and evaluations that
were kept. Reads only.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness import submissions
from harness.slurm import CAUSES
from harness.store import LIVE, Attempt, RunState, last_seen, newest_checkpoint, read_file

START_UP = "start-up"
"""What an attempt that lost nothing took beside iterations and evaluations, as for imports."""

# Not parsed as JSON: the measurements of thousands of runs are read at a time.
_SECONDS = re.compile(rb'"seconds_total": ([0-9.eE+-]+)')
_EVALUATION = re.compile(rb'"iteration": (\d+).*"seconds_total": ([0-9.eE+-]+)')


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
    """The books over these runs."""
    made, words = Ledger(), _Words(sweep_folder)
    for state in states:
        if state.attempts:
            _enter(made, state, words)
    return made


def _enter(made: Ledger, state: RunState, words: "_Words") -> None:
    if state.state == "finished" and len(state.attempts) == 1:
        _enter_finished(made, state)
        return
    # A line for each iteration, in order, from the first on.
    metrics = read_file(f"{state.folder}/metrics.jsonl") or b""
    iterations = dict(enumerate(map(float, _SECONDS.findall(metrics))))
    evaluations = _evaluations(state.folder)
    live = state.state in LIVE
    first_judged = False
    for attempt, following in zip(state.attempts, (*state.attempts[1:], None), strict=True):
        last = following is None
        if not last:
            kept = following.began_at if following else 0
        elif live or state.state == "finished":
            kept = state.total + 1
        else:
            kept = newest_checkpoint(state.folder)
        useful = sum(s for m, s in iterations.items() if attempt.began_at <= m < kept)
        end = time.time() if last and state.state == "running" else last_seen(state.folder, attempt)
        seconds = max(0.0, end - attempt.started)
        # An evaluation stands after so many iterations. The one before them all belongs to the
        # first attempt that had the time for it.
        useful += sum(s for m, s in evaluations.items() if attempt.began_at < m <= kept)
        if not first_judged and seconds >= (before := evaluations.get(0, 0.0)):
            first_judged = True
            useful += before
        useful = min(useful, seconds)
        made.useful.add(useful, attempt.gpus)
        cause = START_UP if last and live else words.cause(attempt)
        made.wasted.setdefault(cause, Spent()).add(seconds - useful, attempt.gpus)


def _enter_finished(made: Ledger, state: RunState) -> None:
    """A run that was finished in one go, as most are: its result has the sum of the iterations."""
    attempt = state.attempts[0]
    seconds = max(0.0, last_seen(state.folder, attempt) - attempt.started)
    iterations = (state.seconds_per_iteration or 0.0) * state.iteration
    useful = min(seconds, iterations + sum(_evaluations(state.folder).values()))
    made.useful.add(useful, attempt.gpus)
    made.wasted.setdefault(START_UP, Spent()).add(seconds - useful, attempt.gpus)


def _evaluations(folder: Path) -> dict[int, float]:
    """Seconds of the evaluations, by the iterations done before."""
    text = read_file(f"{folder}/eval.jsonl") or b""
    return {int(iteration): float(seconds) for iteration, seconds in _EVALUATION.findall(text)}


class _Words:
    """Why attempts ended, where Slurm has to be believed."""

    def __init__(self, sweep_folder: Path) -> None:
        self.sweep_folder = sweep_folder
        self._by_task: dict[str, list[str]] | None = None

    def cause(self, attempt: Attempt) -> str:
        """An attempt's own reason; Slurm's for one that was killed, by how often it had run."""
        own = attempt.reason or "killed"
        if own in ("finished", "stopped", "yielded"):
            return START_UP
        if own != "killed" or attempt.job_id is None or attempt.restarts is None:
            return own
        if self._by_task is None:
            self._by_task = submissions.words_by_task(self.sweep_folder)
        words = self._by_task.get(attempt.job_id, [])
        word = words[attempt.restarts] if attempt.restarts < len(words) else ""
        return CAUSES.get(word, own)
