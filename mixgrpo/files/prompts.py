"""Reads prompts from a file: text, JSON, JSON lines, CSV, TSV or Parquet, known by its ending.

Nothing is cut or left out in silence: what is left out is counted in a warning, and what cannot be
read as prompts is an error with file and line. Imports nothing heavy.
"""

import csv
import errno
import hashlib
import io
import json
import stat
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mixgrpo.errors import ConfigError
from mixgrpo.files.regular import NOT_REGULAR, is_own_stream, read_regular

FIELDS = ("prompt", "caption", "text")
"""Keys of an object and names of a column that hold a prompt, in any case; the first there is."""


MOST_BYTES = 1 << 30
"""Of a file that is read as a whole; of Parquet one column is read, part by part."""


class _Entry(NamedTuple):
    """What stands where a prompt is wanted."""

    place: str
    """For an error: `line 3`, `entry 3` or `row 3`."""
    value: Any


class _Read(NamedTuple):
    prompts: tuple[str, ...]
    empty: int
    repeated: int


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file in its order, each once. Formats by the file's ending:

    * .json: a list of strings (HPDv2's `benchmark/anime.json` and its like), or of objects with a
      prompt (HPDv2's `train.json` and `test.json`), or lists of these by name (a benchmark's
      styles in one file). https://huggingface.co/datasets/zhwang/HPDv2
    * .jsonl: on each line a string or an object with a prompt (GenEval's metadata).
    * .csv, .tsv: a first line with names, and a column of prompts (PartiPrompts.tsv). Quoted as
      in RFC 4180: a prompt with a comma or a quote must be.
    * .parquet: a column of prompts; no other is read (Pick-a-Pic keeps images beside `caption`).
      https://huggingface.co/datasets/yuvalkirstain/pickapic_v2
    * any other: text, a prompt a line; white space around it is no part of it.

    A prompt in an object or a table has one of the names in `FIELDS`. UTF-8, with or without a byte
    order mark, with line ends of any system. Repeated prompts and empty entries (blank lines of a
    text apart) are left out with a warning that counts them. ConfigError naming file and line
    for anything else, and for a file without a prompt.
    """
    read = _read(*_state(file))
    found = len(read.prompts) + read.repeated
    if read.repeated:
        warnings.warn(
            f"{file}: {read.repeated} of its {found} prompts repeat an earlier one and are left "
            f"out; {len(read.prompts)} remain",
            stacklevel=2,
        )
    if read.empty:
        warnings.warn(
            f"{file}: {read.empty} of its {found + read.empty} entries have an empty prompt and "
            "are left out",
            stacklevel=2,
        )
    return list(read.prompts)


def prompts_digest(file: Path) -> str:
    """sha256 of the prompts that `read_prompts` returns, whatever format they are in.

    ConfigError as there, and for a pipe: what identifies a run is read again by other processes.
    Remembered while the file stays the same.
    """
    if is_own_stream(file):
        raise ConfigError(
            f"{file}: is read by several processes, each time anew; write the prompts to a file "
            "and name that"
        )
    return _digest(_read(*_state(file)).prompts)


def _state(file: Path) -> tuple[Path, int, int]:
    """The file, and what tells that it was changed."""
    try:
        place = file.expanduser().absolute()
        status = place.stat()
        if is_own_stream(place):
            return place, 0, 0
    except (FileNotFoundError, RuntimeError):  # the latter: of somebody without a home folder
        raise ConfigError(f"{file}: no such file of prompts") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{file}: is a folder; name a file of prompts")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{file}: {NOT_REGULAR}; write the prompts to a file and name that")
    return place, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _digest(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


@lru_cache(maxsize=16)
def _read(file: Path, _mtime: int, _size: int) -> _Read:
    empty, all_found = 0, []
    for place, value in _entries(file):
        if value is None or (isinstance(value, str) and not value.strip()):
            empty += 1
            continue
        if not isinstance(value, str):
            raise ConfigError(f"{file}: {place}: expected a prompt as text, not {value!r:.60}")
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(
                f"{file}: {place}: has a character that is no text (NUL or half of a surrogate "
                "pair); remove it"
            )
        all_found.append(value)
    if not all_found:
        raise ConfigError(f"{file}: has no prompt; write one a line, or name another file")
    prompts = tuple(dict.fromkeys(all_found))
    return _Read(prompts, empty, len(all_found) - len(prompts))


def _entries(file: Path) -> Iterable[_Entry]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _parquet(file)
    text = _text(file)
    if suffix == ".json":
        return _json(file, text)
    if suffix == ".jsonl":
        return _json_lines(file, text)
    if suffix in (".csv", ".tsv"):
        return _table(file, text, "," if suffix == ".csv" else "\t")
    # Split at newlines alone: str.splitlines would cut a prompt at rarer separators.
    lines = ((n, line.strip()) for n, line in enumerate(_lines(text), 1))
    return (_Entry(f"line {n}", line) for n, line in lines if line)


def _text(file: Path) -> str:
    try:
        raw = read_regular(file, MOST_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ConfigError(
                f"{file}: {error.strerror}; is it a file of prompts? Larger ones as .parquet"
            ) from None
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
        bad = raw.find(b"\0")
    except UnicodeDecodeError as error:
        # Counted in what was decoded, which has no byte order mark.
        bad = error.start + (len(raw) - len(error.object))
    if bad >= 0:
        line = raw.count(b"\n", 0, bad) + 1
        raise ConfigError(f"{file}: line {line}: is not UTF-8 text; save the file as UTF-8")
    return text


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _json(file: Path, text: str) -> Iterator[_Entry]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{file}: line {error.lineno}: is not JSON ({error.msg}); fix it, or end the file's "
            "name in .jsonl where each line is JSON by itself"
        ) from None
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply for a list of prompts") from None
    parts = data if isinstance(data, dict) else {"": data}
    for name, part in parts.items():
        if not isinstance(part, list):
            raise ConfigError(
                f"{file}: {f'{name}: ' if name else ''}expected a list of prompts, not "
                f"{type(part).__name__}"
            )
        for n, value in enumerate(part, 1):
            place = f"{name}: entry {n}" if name else f"entry {n}"
            yield _Entry(place, _of_object(file, place, value))


def _json_lines(file: Path, text: str) -> Iterator[_Entry]:
    for n, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        place = f"line {n}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise ConfigError(
                f"{file}: {place}: is not JSON ({reason}); write a string or an object with "
                f'"{FIELDS[0]}" on every line'
            ) from None
        yield _Entry(place, _of_object(file, place, value))


def _of_object(file: Path, place: str, value: Any) -> Any:
    """The prompt of an object; anything else as it is."""
    if not isinstance(value, dict):
        return value
    name = _field(value)
    if name is None:
        raise ConfigError(
            f"{file}: {place}: an object without {' or '.join(FIELDS)}; it has "
            f"{', '.join(value) or 'nothing'}"
        )
    return value[name]


def _table(file: Path, text: str, delimiter: str) -> Iterator[_Entry]:
    # Strict, since a lenient reader takes quotes away from a prompt that is half quoted.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        column = _column(file, names)
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise ConfigError(
                    f"{file}: line {reader.line_num}: has {len(row)} fields, the first line has "
                    f"{len(names)}; put a prompt that has the separator in it between quotes"
                )
            yield _Entry(f"line {reader.line_num}", row[column])
    except csv.Error as error:
        raise ConfigError(
            f"{file}: line {reader.line_num}: {error}; put a prompt with quotes in it between "
            'quotes, and write "" for each of its own'
        ) from None


def _parquet(file: Path) -> Iterator[_Entry]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            names = table.schema_arrow.names
            name = names[_column(file, names)]
            # Part by part: one column of a large file, whatever is beside it.
            n = 0
            for part in table.iter_batches(columns=[name]):
                for value in part.column(0).to_pylist():
                    n += 1
                    yield _Entry(f"row {n}", value)
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as Parquet: {error}") from None


def _column(file: Path, names: list[str]) -> int:
    name = _field(names)
    if name is None:
        raise ConfigError(
            f"{file}: line 1: no column {' or '.join(FIELDS)} among {', '.join(names) or 'none'}; "
            "name the column of prompts so"
        )
    return names.index(name)


def _field(names: Iterable[str]) -> str | None:
    """The one of `names` that holds a prompt."""
    by_lower = {name.strip().lower(): name for name in names}
    return next((by_lower[field] for field in FIELDS if field in by_lower), None)
