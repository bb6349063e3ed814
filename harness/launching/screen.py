"""A launcher's output while runs go on: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.launching.retry import Retry
from harness.runs.progress import Warned, by_kind, cells, score, summary, warned, warning_key
from harness.runs.state import RunState
from harness.study.spec import Run
from harness.text import command
from mixgrpo import cli
from mixgrpo.text.escape import visible, without_passwords

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


PLAIN_EVERY_S = 15.0
LIVE_EVERY_S = 0.5


class Progress:
    """The output of one launcher. Use as a context."""

    def __init__(self, measure: str, terminal: bool | None = None) -> None:
        self.measure = measure
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self._live: Live | None = None
        self._shown = 0.0
        self._seen: set[tuple[str, int, str]] | None = None
        """Run, attempt and text of warnings that were shown or are older; None before any look."""
        self._warned: dict[str, Warned] = {}
        """By kind."""

    def __enter__(self) -> "Progress":
        if self.terminal:
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
        self._shown = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._repeat_warnings()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line that stays, above the live table."""
        if self._live is not None:
            from rich.text import Text

            text = visible(without_passwords(text))
            self._live.console.print(Text(text), soft_wrap=True)
        else:
            cli.say(text)

    def started(self, run: Run, starts: int) -> None:
        self.say(f"{run.name}: started" + (f" again ({starts})" if starts > 1 else ""))

    def ended(self, state: RunState) -> None:
        """A job is over: say how, in one line."""
        text = f"{state.run.name}: {state.state}"
        if state.state == "finished" and state.score is not None:
            text += f", {self.measure} {score(state)}"
        elif state.state in ("stopped", "lost", "failed"):
            text += f" after {state.iteration}/{state.total} iterations"
            if not state.attempts:
                text += ": its job ended before the run began; harness.logs shows its output"
            elif state.reason == "killed":
                text += ": its process was killed, or ended without a word"
            elif state.attempts and state.attempts[-1].last_line:
                text += f": {state.attempts[-1].last_line}"
        elif state.state == "waiting":
            text += f": the job ended before it began; see {state.folder / 'log'}"
        self.say(text)

    def warnings(self, states: list[RunState]) -> None:
        """Show the warnings of jobs, each kind once, but none of attempts that were over before."""
        every = [
            (state, attempt.number, text)
            for state in states
            for attempt in state.attempts
            for text in attempt.warnings
        ]
        if self._seen is None:
            self._seen = {warning_key(*one) for one in every if one[0].state != "running"}
        new = [one for one in every if warning_key(*one) not in self._seen]
        self._seen |= {warning_key(*one) for one in new}
        for kind, ones in by_kind((state, text) for state, _, text in new).items():
            runs = self._warned.setdefault(kind, Warned())
            runs.names |= {state.run.name for state, _ in ones}
            if not runs.said:
                runs.said = len(runs.names)
                runs.text = ones[0][1]
                self.say(warned(ones, len(states)))

    def _repeat_warnings(self) -> None:
        """Say how many runs gave a warning in the end, if more than when it was shown."""
        for seen in self._warned.values():
            if len(seen.names) > seen.said:
                self.say(f"{len(seen.names)} runs in all warned: {seen.text}")

    def update(
        self, look: Callable[[], list[RunState]], slots: int | None, force: bool = False
    ) -> None:
        """Show the state of all runs, unless that was done a moment ago."""
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
            cli.say("  " + "  ".join(filter(None, row)))
        cli.say(summary(states, slots))


def _table(rows: list[tuple[str, ...]], total: str) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return Group(table, Text(total, style="bold"))


def say_unfinished(states: list[RunState], vanished: set[str], say: Callable[[str], None]) -> None:
    """Say of each unfinished run why it ended, and where its log is. `vanished`: names of run
    folders that disappeared."""
    for state in states:
        if state.run.folder_name in vanished:
            say(f"{state.run.name}: its folder was renamed or removed: {state.folder}")
            continue
        recorded = state.attempts[-1].last_line if state.attempts else "it never began"
        why = state.damage or recorded or state.reason
        log = command("harness.logs", state.folder)
        say(f"{state.run.name}: {state.state}: {why}; log: {log}")


def say_what_to_do(unfinished: list[RunState], retry: Retry, say: Callable[[str], None]) -> None:
    """How what failed runs again."""
    reasons = {state.reason for state in unfinished if state.state == "failed"}
    again = " (with --retry failed where the file is the same)" if retry != "failed" else ""
    if "config" in reasons:
        say(
            "what failed by a wrong setting fails again as it is: correct the file, or what the "
            f"error names, and run the same command{again}"
        )
    if reasons - {"config"} and retry != "failed":
        say("what failed by an exception runs again by the same command with --retry failed")


def say_damage(states: list[RunState], say: Callable[[str], None]) -> None:
    """Name the runs of which a file is damaged."""
    for state in states:
        for text in (*([state.damage] if state.damage else []), *state.unreadable):
            say(f"{state.run.name}: {text}")
