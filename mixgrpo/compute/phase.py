"""What a run is doing at this moment, for whoever looks at its folder: phase.json.

Nothing is computed from it. Writes are atomic and do not wait for the disk; a failure is ignored.
The file is removed when the process ends.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

FILE = "phase.json"
_EVERY_S = 0.5


@dataclass(frozen=True)
class Phase:
    name: str
    """loading, evaluating, training or saving."""
    part: float | None
    """How much of it is done, from 0 to 1, where that is known."""
    pid: int
    """Of the process that wrote it."""

    def __str__(self) -> str:
        return self.name if self.part is None else f"{self.name} {self.part:.0%}".replace("%", " %")


class PhaseFile:
    """Keeps a run's phase.json while it runs. Without a folder nothing is written."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._name, self._written = "", float("-inf")

    def enter(self, name: str, part: float | None = None) -> None:
        """The run is in this phase; a part of it is written twice a second at most."""
        now = time.monotonic()
        if self._folder is None or (name == self._name and now - self._written < _EVERY_S):
            return
        self._name, self._written = name, now
        temporary = self._folder / f".{FILE}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({"phase": name, "part": part, "pid": os.getpid()}))
            temporary.replace(self._folder / FILE)

    def close(self) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / FILE).unlink()


def read(folder: Path) -> Phase | None:
    """What the newest process wrote that it is doing; None where the file is absent or damaged."""
    try:
        if not (folder / FILE).is_file():  # nothing, or a pipe, which would wait for a writer
            return None
        phase = json.loads((folder / FILE).read_bytes())
        name, part, pid = phase["phase"], phase["part"], phase["pid"]
        if part is not None:
            part = min(1.0, max(0.0, float(part)))
        return Phase(str(name)[:40], part, int(pid))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
