"""The lines of many runs' JSON-lines files as one Arrow table, each file parsed once.

What was parsed is kept in pieces beside the run folders (`runs/<sweep>/.cache/`), Arrow files that
say of which run files, at which size and time of change, they are copies. A run file that has
changed since is read anew, a piece that cannot be read is as good as none, and where nothing can
be written nothing is kept: the copies save time and decide nothing.
"""

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from mixgrpo.errors import RunError
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.files.records import (
    EVALUATIONS,
    METRICS,
    DamagedFileError,
    check_measured,
    needed_numbers,
    read_bytes,
)

RUNS_PER_PIECE = 256
"""Bounds the memory of parsing: some 100 MB of text of runs of 300 iterations."""
SMALL_PIECES = 32
"""More pieces than this with less than half their number of runs are made anew, as fewer ones."""
_FORMAT = 1
_KEY = b"runs"


@dataclass(frozen=True)
class _Part:
    """Where a run's lines lie: rows `start` to `start + count` of a piece."""

    piece: int
    start: int
    count: int


def read_runs(
    place: Path, folders: list[str], name: str, digests: dict[str, str]
) -> tuple[pa.Table, list[int], dict[str, str]]:
    """The lines of `<place>/<folder>/<name>.jsonl`, folder after folder, and each one's number; of
    the folders where that file is damaged nothing but why.

    Columns are the keys of any line, empty where a line lacks them. `digests` are sha256 of the
    files, by folder, where they are known.
    """
    stamps = {folder: stamp(place / folder / f"{name}.jsonl") for folder in folders}
    pieces: list[pa.Table] = []
    found: dict[str, _Part] = {}
    damaged: dict[str, str] = {}
    for table, runs in _kept(place / FOLDER, name, stamps):
        for folder, start, count in runs:
            found[folder] = _Part(len(pieces), start, count)
        pieces.append(table)
    missing = [folder for folder in folders if folder not in found]
    for first in range(0, len(missing), RUNS_PER_PIECE):
        group = missing[first : first + RUNS_PER_PIECE]
        files = {folder: place / folder / f"{name}.jsonl" for folder in group}
        table, counts = _parse(files, digests, damaged)
        _keep(place / FOLDER, name, table, [(f, stamps[f], n) for f, n in counts.items()])
        start = 0
        for folder, count in counts.items():
            found[folder] = _Part(len(pieces), start, count)
            start += count
        pieces.append(table)
    parts = [found[folder] for folder in folders if folder not in damaged]
    slices = [pieces[p.piece].slice(p.start, p.count) for p in _joined(parts)]
    table = pa.concat_tables(slices, promote_options="permissive") if slices else pa.table({})
    return table.replace_schema_metadata(None), [part.count for part in parts], damaged


def _joined(parts: list[_Part]) -> Iterator[_Part]:
    """The same rows in the same order, neighbours in a piece as one part."""
    last: _Part | None = None
    for part in parts:
        if last and part.piece == last.piece and part.start == last.start + last.count:
            last = _Part(last.piece, last.start, last.count + part.count)
            continue
        if last:
            yield last
        last = part
    if last:
        yield last


# ---- parsing ---------------------------------------------------------------------------------
def _parse(
    files: dict[str, Path], digests: dict[str, str], damaged: dict[str, str]
) -> tuple[pa.Table, dict[str, int]]:
    """All lines of some files by folder, and how many each has. The damaged ones are left out and
    added to `damaged`."""
    texts: dict[str, bytes] = {}
    for folder, file in files.items():
        try:
            text = read_bytes(file)
            if text is None:
                raise DamagedFileError(file, "is missing")
            if digests.get(folder, digest := hashlib.sha256(text).hexdigest()) != digest:
                raise DamagedFileError(file, "is not as it was when the run finished")
            texts[folder] = text[: text.rfind(b"\n") + 1]
        except DamagedFileError as error:
            damaged[folder] = str(error)
    counts = {folder: text.count(b"\n") for folder, text in texts.items()}
    joined = b"".join(texts.values())
    with contextlib.suppress(pa.ArrowInvalid):
        table = arrow_json.read_json(pa.py_buffer(joined)) if joined else pa.table({})
        if len(table) == sum(counts.values()) and _is_sound(table, list(counts.values())):
            return table, counts
    # Python's own parser reads more (NaN), and knows which line of which file is broken.
    counts, tables = {}, [pa.table({})]
    schema = tables[0].schema
    for folder in texts:
        file = files[folder]
        try:
            lines = read_lines(file)
            check_measured(file, lines)
            # Not from_pylist: it takes the first line's keys alone.
            keys = dict.fromkeys(key for line in lines for key in line)
            own = pa.table({key: [line.get(key) for line in lines] for key in keys})
            schema = pa.unify_schemas([schema, own.schema], promote_options="permissive")
        except (RunError, pa.ArrowException, OverflowError) as error:
            kept = isinstance(error, DamagedFileError)
            damaged[folder] = str(error) if kept else f"{file}: {str(error).splitlines()[0]}"
            continue
        counts[folder] = len(lines)
        tables.append(own)
    return pa.concat_tables(tables, promote_options="permissive"), counts


def _is_sound(table: pa.Table, counts: list[int]) -> bool:
    """Whether every line has what each must have, as numbers, and each run's are in order."""
    kinds = {f.name: f.type for f in table.schema}
    needed = needed_numbers(METRICS if "window_start" in kinds else EVALUATIONS)
    for key in needed:
        if key not in kinds or table[key].null_count:
            return False
    for key, kind in kinds.items():
        if pa.types.is_nested(kind) or (
            (key in needed or key.startswith("reward_"))
            and not (pa.types.is_integer(kind) or pa.types.is_floating(kind))
        ):
            return False
    numbers = table["iteration"].to_numpy()
    if not len(numbers):
        return True
    starts = np.cumsum(counts)
    rises = np.diff(numbers) > 0
    rises[starts[(starts > 0) & (starts < len(numbers))] - 1] = True
    seconds = table["seconds_total"].to_numpy()
    return bool(rises.all() and (numbers >= 0).all() and (seconds >= 0).all())


# ---- what is kept ----------------------------------------------------------------------------
def _kept(
    folder: Path, name: str, stamps: dict[str, list[int] | None]
) -> list[tuple[pa.Table, list[tuple[str, int, int]]]]:
    """Pieces with the runs in them that are as they were: folder, first row, number of rows."""
    pieces = []
    seen: set[str] = set()
    for file in sorted(folder.glob(f"{name}-*.arrow")):
        piece = _read_piece(file)
        if piece is None:
            _remove(file)
            continue
        table, copied = piece
        runs, start = [], 0
        for run, stamped, count in copied:
            if stamped is not None and stamps.get(run) == stamped and run not in seen:
                runs.append((run, start, count))
                seen.add(run)
            start += count
        # Runs of another profile may be of use to its report.
        others = (run for run, _, _ in copied if run not in stamps)
        if runs:
            pieces.append((file, table, runs))
        elif not any((folder.parent / run).is_dir() for run in others):
            _remove(file)
    small = [piece for piece in pieces if len(piece[2]) < RUNS_PER_PIECE // 2]
    if len(small) > SMALL_PIECES:
        for file, _, _ in small:
            _remove(file)
        pieces = [piece for piece in pieces if len(piece[2]) >= RUNS_PER_PIECE // 2]
    return [(table, runs) for _, table, runs in pieces]


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _read_piece(file: Path) -> tuple[pa.Table, list[tuple[str, Any, int]]] | None:
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        about = json.loads(table.schema.metadata[_KEY])
        runs = [(str(run), stamped, int(count)) for run, stamped, count in about["runs"]]
        if about["format"] != _FORMAT or sum(count for _, _, count in runs) != len(table):
            return None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    return table, runs


def _keep(folder: Path, name: str, table: pa.Table, runs: list[tuple[str, Any, int]]) -> None:
    """Write a piece whole or not at all. A disk that is full or read-only keeps nothing."""
    about = json.dumps({"format": _FORMAT, "runs": runs})
    file = folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.arrow"
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    kept = table.replace_schema_metadata({_KEY: about.encode()})
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    try:
        folder.mkdir(exist_ok=True)
        # No fsync, unlike mixgrpo.files.atomic: what a power cut spoils is read again.
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, kept.schema, options=options) as writer,
        ):
            writer.write_table(kept)
        temporary.replace(file)
    except OSError:
        _remove(temporary)


FOLDER = ".cache"


def stamp(file: Path) -> list[int] | None:
    """Size and time of change (ns), one of which changes when a file does; None where no file
    can be read."""
    try:
        stat = file.stat()
    except OSError:  # a loop of links, too
        return None
    return [stat.st_size, stat.st_mtime_ns]
