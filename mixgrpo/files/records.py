"""The files of a run's folder that are read back: each is checked here, by a model of pydantic.

What is no such file (cut short, of another type, a folder in its place, not readable) is a
`DamagedFileError` with its path. Keys that this version does not know are left alone. Nothing here
imports torch.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mixgrpo.errors import RunError

RESULT = "result.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "eval.jsonl"
SCORES = "scores"
"""The folder of every image's score, a file for each evaluation (`mixgrpo.files.scores`)."""
SCORES_DIGEST = "scores_sha256"
"""In a line of eval.jsonl: of the file of its scores. Earlier versions kept none."""
ORIGIN = "origin.json"
"""Says which run its first iterations were copied from, how many, their seconds, and who made
them."""

_MOST = 2**63
"""A number of more than 64 bits is none that the program wrote, and no table has room for it."""

_MOST_OF_SCORES = 2**30
"""Bytes of the scores of one evaluation; the program writes some tens of thousands."""

MOST_OF_A_RECORD = 10_000_000
"""Bytes of a file that is one record; the program writes some thousands."""

MEANS = ("nfe_rollout", "nfe_train")
TOTALS = ("seconds_total", "evaluations_computed", "backward_computed", *MEANS)
"""What a result says of all lines of metrics.jsonl: their sum, and of MEANS their mean."""

Kind = TypeVar("Kind", bound=BaseModel)

Count = Annotated[int, Field(ge=0, lt=_MOST)]
Seconds = Annotated[int | float, Field(ge=0, lt=1e12)]
Number = Annotated[int | float, Field(gt=-1e300, lt=1e300)]


class DamagedFileError(RunError):
    """A file of a run is not what the program wrote."""

    def __init__(self, file: Path | str, why: str, fix: str = "") -> None:
        super().__init__(f"{file}: {why}" + (f"; {fix}" if fix else ""))
        self.file, self.why = Path(file), why


class Record(BaseModel):
    """A file that is read back, or a part of one. Types are not converted: `"8"` is no number."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Measured(Record):
    """What metrics.jsonl and eval.jsonl were when the result was written."""

    bytes: Count
    sha256: str


class Result(Record):
    """result.json."""

    schema_: Count = Field(alias="schema")
    hash: str
    seed: int
    iterations: Annotated[Count, Field(ge=1)]
    before: dict[str, Number]
    """Mean of every reward on held-out prompts, before the first iteration."""
    after: dict[str, Number]
    """After the last one."""
    seconds_total: Seconds
    evaluations_computed: Number
    backward_computed: Number
    nfe_rollout: Number
    nfe_train: Number
    digests: dict[str, Measured] = {}
    """By name, this file's among them (`sealed`); earlier versions did not say."""
    accepted: str | None = None
    """The sha256 of what records that other code made the run (`harness.runs.codechange`)."""


class Version(Record):
    """What every version's result.json has."""

    schema_: Count = Field(alias="schema")


class MetricsLine(Record):
    """A line of metrics.jsonl: what every one has."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)
    __pydantic_extra__: dict[str, float | str | None]
    iteration: Count
    window_start: Count
    window_size: Annotated[Count, Field(ge=1)]
    seconds_total: Seconds
    evaluations_computed: Number
    backward_computed: Number
    nfe_rollout: Number
    nfe_train: Number


class EvaluationLine(Record):
    """A line of eval.jsonl: what every one has."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | None]
    iteration: Count
    seconds_total: Seconds
    scores_sha256: str | None = None


class Progress(Record):
    """What is shown of a line of a run that is under way."""

    model_config = ConfigDict(extra="allow")
    iteration: Count
    seconds_total: Seconds

    def number(self, key: str) -> float | None:
        """A further number of the line; None where it has none of that name."""
        value = (self.__pydantic_extra__ or {}).get(key)
        return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


class Origin(Record):
    """origin.json."""

    run: str = ""
    """`<study>/<folder>`."""
    iterations: Count
    seconds: Seconds
    trained_by: str | None = None
    made_on: list[tuple[Count, dict[str, JsonValue]]] | None = None


LINES: Mapping[str, type[MetricsLine | EvaluationLine]] = {
    METRICS: MetricsLine,
    EVALUATIONS: EvaluationLine,
}


def read_bytes(path: Path | str, most: int = _MOST) -> bytes | None:
    """What a file holds; None where there is none. DamagedFileError where it cannot be read, or has
    more than `most` bytes.

    Without the cost of paths and streams: tens of thousands of small files are read at a time.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise DamagedFileError(path, "is no regular file")
        if status.st_size > most:
            raise DamagedFileError(path, f"has more than {most:,} bytes")
        return os.read(descriptor, status.st_size)
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def parse(kind: type[Kind], file: Path | str, text: bytes) -> Kind:
    """The content of a file of this kind. DamagedFileError where it is none."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DamagedFileError(file, in_words(error)) from None


def read(kind: type[Kind], file: Path | str) -> Kind | None:
    """A file of this kind; None where there is none. DamagedFileError where it is damaged."""
    text = read_bytes(file, MOST_OF_A_RECORD)
    return None if text is None else parse(kind, file, text)


def in_words(error: ValidationError) -> str:
    """What is wrong first, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return "is not whole JSON"
    key = ".".join(map(str, first["loc"]))
    return f"{key}: {first['msg']}" if key else first["msg"]


def read_result(folder: Path | str) -> Result | None:
    """A run's result.json; None while it is not finished. DamagedFileError where it is damaged."""
    file = f"{folder}/{RESULT}"
    text = read_bytes(file, MOST_OF_A_RECORD)
    return None if text is None else parse_result(file, text)


def read_origin(folder: Path | str) -> Origin | None:
    """A run's origin.json; None where nothing was copied. DamagedFileError where it is damaged."""
    return read(Origin, f"{folder}/{ORIGIN}")


def measured(content: bytes) -> Measured:
    return Measured(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def sealed(result: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json holds: `result` with the digest of all that it says itself."""
    digests = {k: v for k, v in result.get("digests", {}).items() if k != RESULT}
    rest = {**result, "digests": digests}
    said = measured(json.dumps(rest, sort_keys=True).encode())
    return {**rest, "digests": {**digests, RESULT: said.model_dump()}}


def parse_result(file: Path | str, text: bytes) -> Result:
    """The content of a result.json. DamagedFileError where it is none, or was changed."""
    result = parse(Result, file, text)
    said = result.digests.get(RESULT)
    if said is not None and sealed(loads(text))["digests"][RESULT] != said.model_dump():
        raise DamagedFileError(file, "was changed after the run finished")
    return result


def check_lines(
    folder: Path | str, result: Result, every: int | None, thorough: bool = False
) -> None:
    """DamagedFileError where a finished run's metrics.jsonl or eval.jsonl are not those of its
    result, or the scores of an evaluation not those of its line. `every`: the iterations from one
    evaluation to the next; None where that is not known.

    Thousands of runs are checked at a time: metrics.jsonl, the large one, is read where it was
    changed after the result was written, or where the result does not say what it was, or when
    `thorough`; scores are read likewise. A result without a digest of its own is one of an earlier
    version, or was written by hand: its totals are compared with the lines.
    """
    is_sealed = RESULT in result.digests
    for name in (EVALUATIONS, METRICS):
        file, said = f"{folder}/{name}", result.digests.get(name)
        at_a_glance = name == METRICS and is_sealed and not thorough
        if at_a_glance and said is not None and _is_older(folder, said):
            continue
        content = read_bytes(file)
        if content is None:
            raise DamagedFileError(file, "is missing")
        if said is None:
            if name == METRICS:
                _check_count(file, content, result.iterations)
            elif every is not None:  # one at 0, every, 2 * every, ..., and one at the end
                _check_count(file, content, -(-result.iterations // every) + 1)
        elif measured(content) != said:
            raise DamagedFileError(file, _difference(content, said))
        if name == EVALUATIONS:
            lines = _first_lines(content)
            _check_rewards(folder, result, lines)
            if SCORES_DIGEST.encode() in content:
                _check_all_scores(folder, lines, thorough or not is_sealed)
        elif not is_sealed:
            _check_totals(folder, result, content)


def _is_older(folder: Path | str, said: Measured) -> bool:
    """Whether metrics.jsonl has its size, and was not changed after the result was written."""
    try:
        metrics, result = Path(folder, METRICS).stat(), Path(folder, RESULT).stat()
    except OSError:
        return False
    return metrics.st_size == said.bytes and metrics.st_mtime_ns <= result.st_mtime_ns


def scores_file(folder: Path | str, iteration: int) -> Path:
    """Where a run has the scores of its evaluation after so many iterations."""
    return Path(folder, SCORES, f"{iteration:06d}.parquet")


def scores_bytes(folder: Path | str, iteration: int, digest: str) -> bytes:
    """The content of that file. DamagedFileError where it has not this sha256."""
    file = scores_file(folder, iteration)
    content = read_bytes(file, _MOST_OF_SCORES)
    if content is None:
        raise DamagedFileError(file, "is missing")
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedFileError(file, "was changed after it was written")
    return content


def check_scores(folder: Path | str, line: Mapping[str, Any]) -> None:
    """DamagedFileError where the run in `folder` has not the scores from which this line of its
    eval.jsonl was computed. Of a line of an earlier version there are none."""
    digest = line.get(SCORES_DIGEST)
    if digest is not None:
        scores_bytes(folder, line["iteration"], digest)


def _check_all_scores(folder: Path | str, lines: Mapping[Any, bytes], thorough: bool) -> None:
    """`check_scores` of all lines; unless `thorough`, a regular file that was not changed after the
    result was written counts as what it was."""
    written = os.stat(f"{folder}/{RESULT}").st_mtime_ns  # noqa: PTH116
    for iteration, text in lines.items():
        if not isinstance(iteration, int):
            continue
        if not thorough:
            try:
                found = os.stat(scores_file(folder, iteration))  # noqa: PTH116
            except OSError:
                found = None
            if (
                found is not None
                and stat.S_ISREG(found.st_mode)
                and found.st_size
                and found.st_mtime_ns <= written
            ):
                continue
        check_scores(folder, loads(text))


def _difference(content: bytes, said: Measured) -> str:
    if len(content) < said.bytes:
        return f"lost {said.bytes - len(content)} of its {said.bytes} bytes"
    return "was changed after the run finished"


def _check_count(file: str, content: bytes, wanted: int) -> None:
    """DamagedFileError where lines are missing. Only their number counts: each of them is looked
    into when it is read. Of several lines of one iteration the first counts (`jsonlines`)."""
    lines = content.count(b"\n")
    if lines > wanted:
        lines = len(_first_lines(content))
    if lines != wanted:
        raise DamagedFileError(file, f"has {lines} whole lines, not {wanted}")


def _first_lines(content: bytes) -> dict[Any, bytes]:
    """The first whole line of each iteration; what is no such line counts as one of its own."""
    found: dict[Any, bytes] = {}
    for text in content.split(b"\n")[:-1]:
        try:
            iteration = loads(text)["iteration"]
        except (ValueError, TypeError, KeyError):
            iteration = text
        found.setdefault(iteration if isinstance(iteration, int) else text, text)
    return found


def _check_rewards(folder: Path | str, result: Result, lines: Mapping[Any, bytes]) -> None:
    """DamagedFileError where the result says other rewards than the evaluations."""
    known = [iteration for iteration in lines if isinstance(iteration, int)]
    first, last = (lines[f(known)] if known else b"" for f in (min, max))
    for text, key in ((first, "before"), (last, "after")):
        line = parse(EvaluationLine, f"{folder}/{EVALUATIONS}", text)
        for name, value in getattr(result, key).items():
            if (line.__pydantic_extra__ or {}).get(f"reward_{name}_mean") != value:
                raise DamagedFileError(
                    f"{folder}/{RESULT}",
                    f"{key}.{name} is {value}, of which {EVALUATIONS} says otherwise",
                )


def _check_totals(folder: Path | str, result: Result, content: bytes) -> None:
    """DamagedFileError where the result says other totals than the lines of metrics.jsonl."""
    texts = _first_lines(content).values()
    lines = [parse(MetricsLine, f"{folder}/{METRICS}", text) for text in texts]
    if len(lines) != result.iterations:
        raise DamagedFileError(
            f"{folder}/{RESULT}", f"iterations is {result.iterations}, {METRICS} has {len(lines)}"
        )
    for key in TOTALS:
        total = sum(getattr(line, key) for line in lines)
        total = total / len(lines) if key in MEANS else total
        if not math.isclose(getattr(result, key), total, rel_tol=1e-9):
            said = getattr(result, key)
            raise DamagedFileError(
                f"{folder}/{RESULT}", f"{key} is {said:.12g}, {METRICS} gives {total:.12g}"
            )


def needed_numbers(name: str) -> list[str]:
    """What every line of metrics.jsonl or eval.jsonl has, by the file's `name`."""
    return [key for key, field in LINES[name].model_fields.items() if field.is_required()]


def check_measured(file: Path, lines: list[dict[str, Any]]) -> None:
    """DamagedFileError where a line is none of metrics.jsonl or eval.jsonl."""
    kind = LINES[file.name]
    for number, line in enumerate(lines, 1):
        try:
            kind.model_validate(line)
        except ValidationError as error:
            raise DamagedFileError(f"{file}:{number}", in_words(error)) from None


def is_line(name: str, line: dict[str, Any]) -> bool:
    """Whether a line is one of metrics.jsonl or eval.jsonl, by the file's `name`."""
    try:
        LINES[name].model_validate(line)
    except ValidationError:
        return False
    return True


def shows_progress(line: dict[str, Any]) -> bool:
    """Whether a line has its iteration and seconds."""
    try:
        Progress.model_validate(line)
    except ValidationError:
        return False
    return True


def loads(text: bytes | str) -> Any:
    """As json.loads; ValueError, too, for what is nested deeper than Python can read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
