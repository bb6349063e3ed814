"""Reads the result of a finished run, and checks that it is whole and that run's."""

import re
from pathlib import Path

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


def read_result(folder: Path, every: int | None = None) -> Result | None:
    """The result of a finished run, checked against its lines; None while it is not finished.

    `every`: after how many iterations each it was evaluated, needed for results that do not record
    their number of lines (`mixgrpo.files.records.check_lines`).

    DamagedFileError where the result or the lines are damaged: the sweep makes them again. RunError
    for a result of another version.
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
        check_lines(folder, result, every)
    except DamagedFileError as damaged:
        raise DamagedFileError(damaged.file, damaged.why, FIX) from None
    seed = re.search(r"-seed(\d+)-[0-9a-f]{8}$", folder.name)
    if seed is not None and int(seed[1]) != result.seed:
        raise DamagedFileError(file, f"seed is {result.seed}, not {seed[1]}", FIX)
    hash_in_name = folder.name.rpartition("-")[2]
    if re.fullmatch("[0-9a-f]{8}", hash_in_name) and hash_in_name != result.hash:
        raise DamagedFileError(
            file,
            f"is the result of another run ({result.hash})",
            "move this run's folder away and run the sweep again",
        )
    return result
