"""Reads the result of a finished run, and checks that it is whole and that run's."""

from pathlib import Path

from harness.study.spec import Run
from mixgrpo.errors import RunError
from mixgrpo.files.records import (
    MOST_OF_A_RECORD,
    RESULT,
    DamagedFileError,
    Result,
    Version,
    check_lines,
    parse,
    parse_result,
    read_bytes,
)
from mixgrpo.settings.config import SCHEMA_VERSION

FIX = "run the sweep again: it makes again what is damaged"
"""What to do about a damaged result, and about damaged lines."""


def read_result(folder: Path, run: Run | None = None) -> Result | None:
    """The result of a finished run, checked against its lines; None while it is not finished.

    `run`: the one that is to lie there; none where any will do.

    DamagedFileError where the result or the lines are damaged: the sweep makes them again. Likewise
    for the result of another run. RunError for a result of another version.
    """
    file = f"{folder}/{RESULT}"
    try:
        text = read_bytes(file, MOST_OF_A_RECORD)
        if text is None:
            return None
        version = parse(Version, file, text).schema_
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{folder}: was written by another version (schema {version}; this one reads "
                f"{SCHEMA_VERSION}); move the folder away to run it again, or use the version that "
                "wrote it"
            )
        result = parse_result(file, text)
        check_lines(folder, result, run.config.evaluation.every if run else None)
    except DamagedFileError as damaged:
        raise DamagedFileError(damaged.file, damaged.why, FIX) from None
    if run is not None and result.hash != run.hash:
        raise DamagedFileError(
            file,
            f"is the result of another run ({result.hash})",
            "move this run's folder away and run the sweep again",
        )
    if run is not None and result.seed != run.config.seed:
        raise DamagedFileError(file, f"seed is {result.seed}, not {run.config.seed}", FIX)
    return result
