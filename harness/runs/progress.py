"""The progress of a sweep in numbers and lines: counts, pace, time left, warnings.

Computed from the states of the runs (`harness.runs.state`).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.runs.state import RunState, State
from mixgrpo.text.words import duration

_NUMBER = re.compile(r"[-+−]?\d+(\.\d+)?(e[-+]?\d+)?")

STATES: tuple[State, ...] = (
    "finished",
    "running",
    "queued",
    "unknown",
    "waiting",
    "stopped",
    "lost",
    "failed",
)


def seconds_left(state: RunState, like: RunState | None = None) -> float | None:
    """Seconds until a run is done, at its pace or else at that of a similar run, `like`."""
    paced = state if state.seconds_per_iteration is not None else like
    if paced is None or paced.seconds_per_iteration is None:
        return None
    evaluations = state.evaluations_left * (paced.seconds_per_evaluation or 0.0)
    return paced.seconds_per_iteration * (state.total - state.iteration) + evaluations


def seconds_per_run(states: list[RunState]) -> float | None:
    """Mean wall time of the finished runs among `states`, start and evaluations included.

    Only of runs that one attempt computed from the first iteration on: kills and stops distort the
    time of the others.
    """
    seconds = [
        state.attempts[0].ended - state.attempts[0].started
        for state in states
        if state.state == "finished"
        and len(state.attempts) == 1
        and state.attempts[0].ended
        and not state.attempts[0].began_at
    ]
    return sum(seconds) / len(seconds) if seconds else None


def time_left(states: list[RunState], slots: int | None) -> float | None:
    """Seconds until the sweep is done, from the runs and paces seen so far."""
    paced = {s.run.arm: s for s in states if s.seconds_per_iteration is not None}
    if not paced:
        return None
    anyone = next(iter(paced.values()))
    whole = seconds_per_run(states)
    by_arm: dict[str, list[RunState]] = {}
    for state in states:
        by_arm.setdefault(state.run.arm, []).append(state)
    usual = {arm: seconds_per_run(of_arm) or whole for arm, of_arm in by_arm.items()}
    left = []
    for state in states:
        like = paced.get(state.run.arm, anyone)
        if state.state in ("waiting", "queued", "unknown"):
            left.append(usual[state.run.arm] or seconds_left(state, like) or 0.0)
        elif state.state in ("running", "stopped"):
            left.append(seconds_left(state, like) or 0.0)
    width = slots or sum(state.state == "running" for state in states) or 1
    # With fewer runs than slots, the longest run decides.
    return max(sum(left) / width, *left) if left else 0.0


def counts(states: list[RunState]) -> dict[str, int]:
    """Runs by state, in the order of `STATES`."""
    counter = Counter(state.state for state in states)
    return {name: counter[name] for name in STATES if counter[name]}


def summary(states: list[RunState], slots: int | None) -> str:
    """All runs in one line."""
    parts = [f"{n} {name}" for name, n in counts(states).items()]
    left = time_left(states, slots)
    if left:
        parts.append(f"about {duration(left)} left")
    return f"{len(states)} runs: {', '.join(parts)}"


def cells(state: RunState, measure: str) -> tuple[str, ...]:
    """A row for a running run: name, iterations, evaluated and rollout reward, pace, time left."""
    pace = state.seconds_per_iteration
    shown = f"{pace:.2f} s/it" if pace is not None else "starting"
    return (
        state.run.name,
        f"{state.iteration}/{state.total}",
        f"{measure} {score(state)}" if state.score is not None else "",
        f"rollout {state.reward:.3f}" if state.reward is not None else "",
        state.phase or shown,
        f"{duration(seconds_left(state))} left" if pace is not None else "",
    )


def score(state: RunState) -> str:
    """The measure at the newest evaluation, and its gain: 0.612 (+0.094)."""
    gain = "" if state.gain is None or not state.iteration else f" ({state.gain:+.3f})"
    return f"{state.score:.3f}{gain}"


@dataclass
class Warned:
    """A kind of warning: the runs that gave it, and what was shown of it, for how many runs."""

    names: set[str] = field(default_factory=set)
    said: int = 0
    text: str = ""


def by_kind(warnings: Iterable[tuple[RunState, str]]) -> dict[str, list[tuple[RunState, str]]]:
    """Warnings with their runs, grouped by text: numbers in it do not count."""
    kinds: dict[str, list[tuple[RunState, str]]] = {}
    for state, text in warnings:
        kinds.setdefault(_NUMBER.sub("0", text), []).append((state, text))
    return kinds


def warned(ones: list[tuple[RunState, str]], total: int) -> str:
    """A kind of warning in one line, with its first run or the number of its runs."""
    names = list(dict.fromkeys(state.run.name for state, _ in ones))
    who = names[0]
    if len(names) > 1:
        who = f"{len(names)} of {total} runs ({names[0]} and others)"
    return f"{who}: warning: {ones[0][1]}"


def warning_key(state: RunState, attempt: int, text: str) -> tuple[str, int, str]:
    return state.run.name, attempt, text
