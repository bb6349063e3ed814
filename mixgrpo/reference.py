"""The reference of all settings, from the docstrings of `config`.

python -m mixgrpo.reference > docs/settings.md
"""

import ast
import inspect
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mixgrpo import cli
from mixgrpo.settings import config

_HEAD = """# Settings of a run

Written by `python -m mixgrpo.reference` from `mixgrpo/settings/config.py`. A run's file is YAML
with these sections; `base: other.yaml` takes another file's settings first. On a command line,
`--set section.key=value` lays one on top. An unknown key is an error.
"""


def reference() -> str:
    """The reference as Markdown: one table per section, with defaults and meaning."""
    texts = docstrings(Path(inspect.getfile(config)).read_text())
    sections = []
    plain = []
    for name, field in config.RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows = [row(key, f, texts[kind.__name__]) for key, f in kind.model_fields.items()]
            about = inspect.getdoc(kind) if "__doc__" in vars(kind) else ""
            sections.append((name, about if about and kind.__doc__ else "", rows))
        else:
            plain.append(row(name, field, texts["RunConfig"]))
    parts = [_HEAD, table(plain)]
    for name, about, rows in sections:
        parts += [f"## {name}", *([about] if about else []), table(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def docstrings(source: str) -> dict[str, dict[str, str]]:
    """The docstring of each field of each class of a module, by class and field."""
    by_class: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = by_class[node.name] = {}
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                name, text = field.target, after.value
                if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                    texts[name.id] = " ".join(str(text.value).split())
    return by_class


def row(name: str, field: Any, texts: dict[str, str]) -> tuple[str, str, str]:
    """Key, default and meaning of a field. `texts`: the docstrings of its class, by field."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        default = list(default)
    shown = yaml.safe_dump(default, default_flow_style=True).removesuffix("\n...\n").strip()
    choices = _choices(field.annotation)
    meaning = texts.get(name, "")
    if choices:
        meaning = f"{meaning} One of {', '.join(f'`{c}`' for c in choices)}."
    return name, shown, meaning.strip()


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal."""
    values = getattr(annotation, "__args__", ())
    return [str(c) for c in values if isinstance(c, str | int) and not isinstance(c, bool)]


def table(rows: list[tuple[str, str, str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{default}` | {text} |" for name, default, text in rows]
    return "\n".join(lines)


def main() -> None:
    """Print the reference of all settings as Markdown."""
    print(reference(), end="")


if __name__ == "__main__":
    cli.run(main)
