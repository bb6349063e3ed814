"""Commands that messages tell a user to run: quoted for a shell, with the options they need."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

RUNS, REPORTS = Path("runs"), Path("reports")
"""Where the commands look without --runs and --reports."""


class Chosen(Protocol):
    """A sweep or a search, as it was read from its file."""

    @property
    def file(self) -> Path: ...
    @property
    def profile(self) -> str: ...
    @property
    def overrides(self) -> Sequence[str]: ...


def command(module: str, *words: object) -> str:
    """`python -m MODULE WORDS...`, quoted."""
    return shlex.join(["python", "-m", module, *map(str, words)])


def command_for(
    module: str, chosen: Chosen, *words: object, runs: Path = RUNS, reports: Path = REPORTS
) -> str:
    """A command on the file, profile and settings that were chosen, in these folders."""
    options: list[object] = ["--profile", chosen.profile] if chosen.profile else []
    for text in chosen.overrides:
        options += ["--set", text]
    options += ["--runs", runs] if runs != RUNS else []
    options += ["--reports", reports] if reports != REPORTS else []
    return command(module, chosen.file, *options, *words)
