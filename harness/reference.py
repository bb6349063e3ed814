"""The reference of a sweep file's keys, made from the docstrings of `sweepfile`, views and probes.

python -m harness.reference > docs/sweep-reference.md
"""

import ast
import importlib.util
import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from harness.study import paper, sweepfile
from harness.study.views import DEFAULT, VIEWS
from mixgrpo import cli
from mixgrpo.reference import docstrings, row, table
from mixgrpo.settings import probes

_HEAD = """# Reference of the sweep file

Written by `python -m harness.reference` from `harness/study/sweepfile.py`. An unknown key is an
error that names the nearest one. [Sweeps](sweeps.md) has an example with everything in it, and says
in which order settings are laid on top of each other.
"""

_PROFILE = """What a profile says replaces the file's key of the same name as a whole, `arms`
included; its `set` and its `slurm` alone lie on top of the file's.
"""

_VIEWS = """What `views:` may name, and what is on every page without being named.
"""

_PROBES = """Measured on every finished run besides its training. Each has options:
`probes: {hybrid: {p_mix: [0.0, 0.8, 1.0]}}`.
"""

_PAPER = """`paper:` names one of these tables, `paper_rows:` rows of it. The numbers are those of
`harness/study/paper.py`: one run per row, without seeds or intervals.
"""

_NAMES = {str: "text", int: "number", float: "number", bool: "true or false", Any: "anything"}


def reference() -> str:
    """The reference as Markdown: the keys of a file and of a profile, and what they may name."""
    texts = docstrings(Path(inspect.getfile(sweepfile)).read_text(encoding="utf-8"))
    of_probes = docstrings(Path(inspect.getfile(probes)).read_text(encoding="utf-8"))
    known = texts["Part"] | texts["SweepFile"]
    file, profile = sweepfile.SweepFile.model_fields, sweepfile.Profile.model_fields
    first = [name for name, field in file.items() if field.is_required()]
    rows = [_key(name, file[name], known) for name in dict.fromkeys([*first, *file])]
    published = [
        f"| `{name}` | {one.title} | {', '.join(f'`{key}`' for key in one.rows)} |"
        for name, one in paper.TABLES.items()
    ]
    views = [
        f"| `{name}` | {'on every page' if name in DEFAULT else 'where named'} | {_about(target)} |"
        for name, target in VIEWS.items()
    ]
    measured = []
    for name, probe in probes.PROBES.items():
        meanings = of_probes[probe.options.__name__]
        measured += [
            f"### {name}",
            inspect.cleandoc(probe.options.__doc__ or ""),
            table([row(key, field, meanings) for key, field in probe.options.model_fields.items()]),
        ]
    parts = [
        _HEAD,
        "## Keys of the file",
        "\n".join(["| key | what it takes | meaning |", "|---|---|---|", *rows]),
        "## Keys of a profile",
        f"{', '.join(f'`{name}`' for name in profile)}.",
        _PROFILE,
        "## Views",
        _VIEWS,
        "\n".join(["| name | shown | what it is about |", "|---|---|---|", *views]),
        "## Probes",
        _PROBES,
        *measured,
        "## Published tables",
        _PAPER,
        "\n".join(["| name | what it compares | rows |", "|---|---|---|", *published]),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _key(name: str, field: Any, texts: dict[str, str]) -> str:
    form = _form(field.annotation) + (", must be given" if field.is_required() else "")
    return f"| `{name}` | {form} | {texts.get(name, '')} |"


def _about(target: str) -> str:
    """The first sentence of the module of a `module:function`, which is not imported."""
    module = importlib.util.find_spec(target.partition(":")[0])
    assert module is not None, target
    assert module.origin is not None, target
    text = ast.get_docstring(ast.parse(Path(module.origin).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _form(annotation: Any) -> str:
    """What a value looks like in YAML, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _form(inner[0])
    if origin in (Union, types.UnionType):
        kinds = dict.fromkeys(_form(kind) for kind in inner if kind is not types.NoneType)
        return " or ".join(kinds)
    if origin is tuple:
        return "list" if inner[0] is Any else f"list of {_form(inner[0])}s"
    if origin is dict:
        value = _form(inner[1])
        return "mapping" if value == "anything" else f"mapping to {value}s"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _NAMES[annotation]


def main() -> None:
    """Print the reference of a sweep file's keys as Markdown."""
    print(reference(), end="")


if __name__ == "__main__":
    cli.run(main)
