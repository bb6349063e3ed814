"""Shows a sweep while it runs: a live table on a terminal, plain lines elsewhere.

Only shows; what is shown comes from `store`.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.spec import Run
from harness.store import RunState, State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

PLAIN_EVERY_S = 15.0
LIVE_EVERY_S = 0.5

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


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


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
    return (
        state.run.name,
        f"{state.iteration}/{state.total}",
        f"{measure} {state.score:.3f}" if state.score is not None else "",
        f"rollout {state.reward:.3f}" if state.reward is not None else "",
        f"{pace:.2f} s/it" if pace is not None else "starting",
        f"{duration(seconds_left(state))} left" if pace is not None else "",
    )


class Progress:
    """The screen of one launcher. Use as a context."""

    def __init__(self, measure: str, terminal: bool | None = None) -> None:
        self.measure = measure
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self._live: Live | None = None
        self._shown = 0.0
        self._warned: set[tuple[str, int, str]] | None = None
        """Run, attempt and text of the warnings that were said or older; None before any look."""

    def __enter__(self) -> "Progress":
        if self.terminal:
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
        self._shown = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line that stays, above whatever moves."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def started(self, run: Run, starts: int) -> None:
        self.say(f"{run.name}: started" + (f" again ({starts})" if starts > 1 else ""))

    def ended(self, state: RunState) -> None:
        """A job is over: say how, in one line."""
        text = f"{state.run.name}: {state.state}"
        if state.state == "finished" and state.score is not None:
            text += f", {self.measure} {state.score:.3f}"
        elif state.state in ("stopped", "lost", "failed"):
            text += f" after {state.iteration}/{state.total} iterations"
            if not state.attempts:
                text += ": its job ended before the run began; harness.logs shows what it said"
            elif state.reason == "killed":
                text += ": its process was killed"
            elif state.attempts and state.attempts[-1].last_line:
                text += f": {state.attempts[-1].last_line}"
        elif state.state == "waiting":
            text += f": the job ended before it began; see {state.folder / 'log'}"
        self.say(text)

    def warnings(self, states: list[RunState]) -> None:
        """Say what the jobs warned of, each once, and nothing of what was over before."""
        found = {
            (state.run.name, attempt.number, text): state
            for state in states
            for attempt in state.attempts
            for text in attempt.warnings
        }
        if self._warned is None:
            self._warned = {key for key, state in found.items() if state.state != "running"}
        for key in found:
            if key not in self._warned:
                self._warned.add(key)
                self.say(f"{key[0]}: warning: {key[2]}")

    def update(
        self, look: Callable[[], list[RunState]], slots: int | None, force: bool = False
    ) -> None:
        """Show where things stand, unless that was done a moment ago."""
        now = time.monotonic()
        every = LIVE_EVERY_S if self._live is not None else PLAIN_EVERY_S
        if now - self._shown < every and not force:
            return
        self._shown = now
        states = look()
        self.warnings(states)
        running = [cells(s, self.measure) for s in states if s.state == "running"]
        if self._live is not None:
            self._live.update(_table(running, summary(states, slots)), refresh=True)
            return
        for row in running:
            print("  " + "  ".join(filter(None, row)))
        print(summary(states, slots), flush=True)


def _table(rows: list[tuple[str, ...]], total: str) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(table, Text(total, style="bold"))
