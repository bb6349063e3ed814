"""Shows a sweep while it runs: a live table on a terminal, plain lines elsewhere.

Only shows; what is shown comes from `store`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.runs.state import RunState, State
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    pass


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
    """Seconds until a run is done, at its own pace or else at that of a run `like` it."""
    paced = state if state.seconds_per_iteration is not None else like
    if paced is None or paced.seconds_per_iteration is None:
        return None
    evaluations = state.evaluations_left * (paced.seconds_per_evaluation or 0.0)
    return paced.seconds_per_iteration * (state.total - state.iteration) + evaluations


def seconds_per_run(states: list[RunState]) -> float | None:
    """Mean wall time of the finished runs among `states`, start and evaluations included.

    Of the runs that took one attempt from their first iteration on; what kills and stops have cost
    elsewhere says nothing.
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
    usual = {arm: seconds_per_run(own) or whole for arm, own in by_arm.items()}
    left = []
    for state in states:
        like = paced.get(state.run.arm, anyone)
        if state.state in ("waiting", "queued", "unknown"):
            left.append(usual[state.run.arm] or seconds_left(state, like) or 0.0)
        elif state.state in ("running", "stopped"):
            left.append(seconds_left(state, like) or 0.0)
    width = slots or sum(state.state == "running" for state in states) or 1
    # The longest run is a bound of its own once there are fewer runs than slots.
    return max(sum(left) / width, *left) if left else 0.0


def counts(states: list[RunState]) -> dict[str, int]:
    """Runs by state, in the order of `STATES`."""
    found = Counter(state.state for state in states)
    return {name: found[name] for name in STATES if found[name]}


def summary(states: list[RunState], slots: int | None) -> str:
    """The total line."""
    parts = [f"{n} {name}" for name, n in counts(states).items()]
    left = time_left(states, slots)
    if left:
        parts.append(f"about {duration(left)} left")
    return f"{len(states)} runs: {', '.join(parts)}"


def cells(state: RunState, measure: str) -> tuple[str, ...]:
    """One running run: name, iterations, evaluated and rollout reward, pace, time left."""
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
    """The measure at the newest evaluation, and by how much it has risen: 0.612 (+0.094)."""
    gain = "" if state.gain is None or not state.iteration else f" ({state.gain:+.3f})"
    return f"{state.score:.3f}{gain}"


@dataclass
class Warned:
    """A kind of warning: the runs that gave it, of how many it was said, and as what."""

    names: set[str] = field(default_factory=set)
    said: int = 0
    text: str = ""


def by_kind(found: Iterable[tuple[RunState, str]]) -> dict[str, list[tuple[RunState, str]]]:
    """Warnings with their runs by kind: numbers in them apart, they say the same."""
    kinds: dict[str, list[tuple[RunState, str]]] = {}
    for state, text in found:
        kinds.setdefault(_NUMBER.sub("0", text), []).append((state, text))
    return kinds


def warned(ones: list[tuple[RunState, str]], total: int) -> str:
    """A kind of warning in one line, with its first run or the number of its runs."""
    names = list(dict.fromkeys(state.run.name for state, _ in ones))
    who = names[0]
    if len(names) > 1:
        who = f"{len(names)} of {total} runs ({names[0]} and others)"
    return f"{who}: warning: {ones[0][1]}"


def _key(state: RunState, attempt: int, text: str) -> tuple[str, int, str]:
    return state.run.name, attempt, text
