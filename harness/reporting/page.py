"""What every report has: a page with its pictures inside, from the templates, and its files."""

import base64
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgrpo.errors import RunError
from mixgrpo.files.atomic import write_bytes
from mixgrpo.text.escape import visible

if TYPE_CHECKING:
    from harness.reporting.figures import Picture


def render(template: str, **values: Any) -> str:
    """A page from `templates/<template>`; the values are escaped, and none may be missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tight": _tight, "source": _source}
    return visible(environment.get_template(template).render(**values))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by their paths inside `folder`, each atomically. RunError where one cannot be
    written."""
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_parts(
    folder: Path, parts: "Iterable[tuple[dict[str, bytes], list[Picture]]]"
) -> "tuple[dict[str, bytes], list[Picture]]":
    """`write_files` part after part; return all files, and the pictures that come with them."""
    files: dict[str, bytes] = {}
    pictures: list[Picture] = []
    for part, drawn in parts:
        write_files(folder, part)
        files |= part
        pictures += drawn
    return files, pictures


def shown(file: Path) -> str:
    """A file as a reader can use it: relative to here, never a path of this machine."""
    with contextlib.suppress(ValueError):
        return file.resolve().relative_to(Path.cwd().resolve()).as_posix()
    return file.name


def _tight(text: str) -> str:
    """No line break inside `τ = 15` and `95 %`."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")


def _source(picture: "Picture") -> str:
    """The picture itself, where a page would have an address."""
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
