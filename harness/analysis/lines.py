"""The lines of many runs' JSON-lines files as one Arrow table."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from harness.analysis.columns import ITERATION, SECONDS, WINDOW_START
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

RUNS_AT_ONCE = 256
"""Bounds the memory of parsing: some 100 MB of text of runs of 300 iterations."""


@dataclass(frozen=True)
class Lines:
    """What some runs' files of one name hold, run after run."""

    table: pa.Table
    """Columns are the keys of any line, empty where a line lacks them."""
    counts: dict[str, int]
    """Lines by folder, in the order of the table."""
    damaged: dict[str, str]
    """By folder whose file is damaged: what is wrong. Its lines are not in the table."""


def read_runs(files: Mapping[str, Path], digests: Mapping[str, str]) -> Lines:
    """All lines of these files, by folder. `digests`: their sha256, where they are known."""
    tables = [pa.table({})]
    counts: dict[str, int] = {}
    damaged: dict[str, str] = {}
    folders = list(files)
    for first in range(0, len(folders), RUNS_AT_ONCE):
        texts = {}
        for folder in folders[first : first + RUNS_AT_ONCE]:
            try:
                texts[folder] = _read(files[folder], digests.get(folder))
            except DamagedFileError as error:
                damaged[folder] = str(error)
        read = _parse_together(texts) or _parse_one_by_one({f: files[f] for f in texts})
        tables.append(read.table)
        counts |= read.counts
        damaged |= read.damaged
    return Lines(pa.concat_tables(tables, promote_options="permissive"), counts, damaged)


def _read(file: Path, digest: str | None) -> bytes:
    """The whole lines of a file. DamagedFileError where it is missing or has changed."""
    text = read_bytes(file)
    if text is None:
        raise DamagedFileError(file, "is missing")
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise DamagedFileError(file, "is not as it was when the run finished")
    return text[: text.rfind(b"\n") + 1]


def _parse_together(texts: Mapping[str, bytes]) -> Lines | None:
    """Parsed by Arrow, which is quick; None where any line is not what Arrow or we expect."""
    counts = {folder: text.count(b"\n") for folder, text in texts.items()}
    joined = b"".join(texts.values())
    with contextlib.suppress(pa.ArrowInvalid):
        table = arrow_json.read_json(pa.py_buffer(joined)) if joined else pa.table({})
        if len(table) == sum(counts.values()) and _is_sound(table, counts.values()):
            return Lines(table, counts, {})
    return None


def _parse_one_by_one(files: Mapping[str, Path]) -> Lines:
    """Parsed by Python, which also reads NaN and knows which line of which file is broken."""
    tables = [pa.table({})]
    counts: dict[str, int] = {}
    damaged: dict[str, str] = {}
    schema = tables[0].schema
    for folder, file in files.items():
        try:
            lines = read_lines(file)
            check_measured(file, lines)
            # Not from_pylist: it takes the first line's keys alone.
            keys = dict.fromkeys(key for line in lines for key in line)
            table = pa.table({key: [line.get(key) for line in lines] for key in keys})
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        except (RunError, pa.ArrowException, OverflowError) as error:
            names_file = isinstance(error, DamagedFileError)
            damaged[folder] = str(error) if names_file else f"{file}: {str(error).splitlines()[0]}"
            continue
        counts[folder] = len(lines)
        tables.append(table)
    return Lines(pa.concat_tables(tables, promote_options="permissive"), counts, damaged)


def _is_sound(table: pa.Table, counts: Iterable[int]) -> bool:
    """Whether every line has what each must have, as numbers, and each run's are in order."""
    kinds = {f.name: f.type for f in table.schema}
    needed = needed_numbers(METRICS if WINDOW_START in kinds else EVALUATIONS)
    for key in needed:
        if key not in kinds or table[key].null_count:
            return False
    for key, kind in kinds.items():
        if pa.types.is_nested(kind) or (
            (key in needed or key.startswith("reward_"))
            and not (pa.types.is_integer(kind) or pa.types.is_floating(kind))
        ):
            return False
    numbers = table[ITERATION].to_numpy()
    if not len(numbers):
        return True
    starts = np.cumsum(list(counts))
    rises = np.diff(numbers) > 0
    rises[starts[(starts > 0) & (starts < len(numbers))] - 1] = True
    seconds = table[SECONDS].to_numpy()
    return bool(rises.all() and (numbers >= 0).all() and (seconds >= 0).all())
