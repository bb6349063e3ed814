"""Files of one JSON object per line, to which a process that may be killed appends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixgrpo.atomic import write_text
from mixgrpo.errors import RunError


def append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last one that a kill cut short is left out.

    RunError where another line is broken.
    """
    try:
        texts = file.read_text().split("\n")
    except FileNotFoundError:
        return []
    texts.pop()  # what follows the last line's end: nothing, or a line cut short
    try:
        # One parse of the whole file, not one per line: many runs are read at a time.
        lines: list[dict[str, Any]] = json.loads(f"[{','.join(texts)}]")
    except ValueError:
        lines = []
        for number, text in enumerate(texts, 1):
            try:
                lines.append(json.loads(text))
            except ValueError:
                raise RunError(
                    f"{file}:{number}: not valid JSON; the file was changed from outside: remove "
                    "the run's folder and run the same command again"
                ) from None
    return lines


def keep_lines(file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Replace the file by those of its lines that `keep` says yes to, atomically."""
    if file.exists():
        kept = [line for line in read_lines(file) if keep(line)]
        write_text(file, "".join(json.dumps(line) + "\n" for line in kept))
