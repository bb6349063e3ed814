"""Arguments and options that the command lines of the harness share."""

from pathlib import Path
from typing import Annotated

import typer

FileArgument = Annotated[Path, typer.Argument(help="Sweep file (YAML).")]
ProfileOption = Annotated[
    str | None,
    typer.Option(help="Profile of the file; `laptop` where it has one.", metavar="NAME"),
]
RunsOption = Annotated[Path, typer.Option(help="Folder of all run folders.", metavar="DIR")]
ReportsOption = Annotated[Path, typer.Option(help="Folder of all reports.", metavar="DIR")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting on top of all that the file has.", metavar="KEY=VALUE"),
]
UntilDecidedOption = Annotated[
    bool,
    typer.Option(
        "--until-decided", help="Seeds until every arm is decided, if the file has fixed ones."
    ),
]
