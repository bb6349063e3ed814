"""Which runs a launcher starts again after a failure, when, and when it gives up on one.

A run is given up after `MAX_TRIES` starts in a row without a new checkpoint. A failure that only
the user can fix is not retried. A failure outside the run, such as that of a reward's server, is
retried after a pause.
"""

import os
import time
from typing import Literal

from harness.launching.job import MAX_TRIES
from harness.runs.folder import newest_checkpoint
from harness.runs.state import RunState

Retry = Literal["none", "lost", "failed"]
"""What runs again: nothing that ended by itself, infrastructure failures, exceptions as well."""

RETRY_PAUSE_S = float(os.environ.get("MIXGRPO_RETRY_SECONDS", "60"))
"""The pause before a run whose reward cannot be reached, or whose disk fails, is tried again. It
grows by this much with each further try."""

_NEEDS_THE_USER = ("no-space", "no-progress", "finished")
"""Reasons for which starting a lost run again at once would only repeat the failure."""
_PERMANENT = ("no-progress", "finished")
"""Those of them that remain after the user has made room."""


class Retries:
    """What one launcher has started, and what it may start again."""

    def __init__(self, retry: Retry) -> None:
        self.retry = retry
        self.starts: dict[str, int] = {}
        """Starts by this launcher, by folder name."""
        self.no_space = False
        """Whether a run has ended for lack of disk space: then nothing more is started."""
        self._tries: dict[str, tuple[int, int]] = {}
        """By folder name: starts in a row without progress, and the checkpoint at the last one."""
        self._not_before: dict[str, float] = {}
        """By folder name: when a run may be tried again."""
        self._seen_live: set[str] = set()
        """Folder names of runs that this launcher has seen under way, whoever started them."""

    def seen_live(self, state: RunState) -> None:
        """Take note of a run that is under way: if it is stopped later, that was on purpose."""
        self._seen_live.add(state.run.folder_name)

    def count_start(self, state: RunState) -> int:
        """Take note of a start of this run. The number of its starts."""
        name = state.run.folder_name
        tries, began_at = self._tries.get(name, (0, 0))
        checkpoint = newest_checkpoint(state.folder)
        self._tries[name] = (1 if checkpoint > began_at else tries + 1, checkpoint)
        self.starts[name] = self.starts.get(name, 0) + 1
        self._not_before[name] = time.monotonic() + RETRY_PAUSE_S * self._tries[name][0]
        return self.starts[name]

    def may_start(self, state: RunState) -> bool:
        """Whether a run that is not under way may be started now."""
        name = state.run.folder_name
        fresh = name not in self.starts and name not in self._seen_live
        if self.no_space or self._is_stuck(state):
            return False
        match state.state:
            case "waiting":
                return True
            case "stopped":
                return fresh
            case "lost":
                if fresh or self.retry == "none":
                    return fresh and self.retry != "none"
                if state.reason == "run-error":
                    return time.monotonic() >= self._not_before.get(name, 0.0)
                return state.reason not in _NEEDS_THE_USER
            case "failed":
                return self.retry == "failed" and fresh
            case _:
                return False

    def may_start_later(self, state: RunState) -> bool:
        """Whether a run that failed by something outside it waits for its next try."""
        name = state.run.folder_name
        return (
            (state.state, state.reason) == ("lost", "run-error")
            and self.retry != "none"
            and not self.no_space
            and name in self.starts
            and self._tries[name][0] < MAX_TRIES
        )

    def has_given_up(self, state: RunState) -> bool:
        """Whether a run has failed, or was lost for good, so that it is not started again."""
        if self.may_start(state) or self.may_start_later(state):
            return False
        if state.state != "lost":
            return state.state == "failed"
        if self.no_space or self.retry == "none":  # the same command continues
            return False
        return state.reason in _PERMANENT or (self._is_stuck(state) and state.reason != "no-space")

    def _is_stuck(self, state: RunState) -> bool:
        """Whether the last `MAX_TRIES` starts came to no new checkpoint."""
        tries, began_at = self._tries.get(state.run.folder_name, (0, 0))
        return tries >= MAX_TRIES and newest_checkpoint(state.folder) <= began_at


def seems_over(state: RunState) -> bool:
    """For whoever only looks: whether a run has ended for good, finished, failed or given up."""
    if state.state != "lost":
        return state.state in ("finished", "failed")
    tries = state.attempts[-MAX_TRIES:]
    stuck = len(tries) == MAX_TRIES and newest_checkpoint(state.folder) <= tries[0].began_at
    return state.reason in _PERMANENT or (stuck and state.reason != "no-space")
