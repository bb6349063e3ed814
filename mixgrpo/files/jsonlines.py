"""Files of one JSON object per line, one line per iteration, that survive whoever writes them.

A process may be killed within a line, a crash of the machine may leave zeros at the end, and a
process that slept while another took its run over may add a line that is there already. Of several
lines of one iteration the first counts: the sleeper's is the late one.
"""

import json
from pathlib import Path
from typing import Any

from mixgrpo.errors import RunError
from mixgrpo.files.atomic import write_bytes
from mixgrpo.files.records import loads, read_bytes


def append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, in the order of their iterations; none where there is no file.

    What is broken at the end was cut short, and is left out. RunError where another line is broken.
    """
    found = _parse(file)
    while found and found[-1] is None:
        found.pop()
    if None in found:
        raise RunError(
            f"{file}:{found.index(None) + 1}: not valid JSON; the file was changed from outside: "
            "remove result.json beside it, if there is one, and run the same command again"
        )
    return _in_order(found)


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The same without the broken lines, wherever they are."""
    return _in_order(_parse(file))


def replace(file: Path, lines: list[dict[str, Any]]) -> None:
    """Make these the lines of the file, atomically; it is not touched where they are already."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if content != _read(file):
        write_bytes(file, content)


def _read(file: Path) -> bytes:
    return read_bytes(file) or b""


def _parse(file: Path) -> list[dict[str, Any] | None]:
    """Every line that has an end; None for one that is broken."""
    texts = _read(file).split(b"\n")
    texts.pop()  # what follows the last line's end: nothing, or a line cut short
    try:
        # One parse of the whole file, not one per line: many runs are read at a time.
        lines: list[Any] = loads(b"[%s]" % b",".join(texts))
    except ValueError:
        lines = []
    if len(lines) != len(texts):  # also where two broken lines make a whole one together
        lines = [_object(text) for text in texts]
    return [line if _is_whole(line) else None for line in lines]


def _is_whole(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("iteration", 0), int)


def _object(text: bytes) -> Any:
    try:
        return loads(text)
    except ValueError:
        return None


def _in_order(lines: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    first: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines):
        if line is not None:
            first.setdefault(line.get("iteration", number), line)
    return [first[iteration] for iteration in sorted(first)]
