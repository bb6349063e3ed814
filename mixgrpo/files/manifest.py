"""What a checkpoint's manifest says: its files with their hashes, and what made them.

Apart from `checkpoint`, so that it is read without torch.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from mixgrpo.errors import RunError
from mixgrpo.files.records import MOST_OF_A_RECORD
from mixgrpo.files.regular import open_regular, read_regular

FORMAT = 1
NAME = "manifest.json"
PARTIAL = ".partial"
"""The end of the name of a checkpoint that is being written."""


def is_plain_name(name: str) -> bool:
    """Whether a name read from a file names something in its folder, and nothing elsewhere."""
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


def _plain_name(name: str) -> str:
    if not is_plain_name(name) or name == NAME:
        raise ValueError(f"{name!r} is no plain file name")
    return name


class _Format(BaseModel):
    format: int


class Manifest(_Format):
    """What manifest.json of a checkpoint says."""

    iteration: int
    files: dict[Annotated[str, AfterValidator(_plain_name)], str]
    """The sha256 of each file, by its name."""
    made_on: dict[str, Any]
    """What the bytes depend on beside the configuration, such as threads."""
    digests: dict[str, str] | None = None
    """Digests of the lines measured before (`Measured.digests`); earlier versions did not say."""


def is_checkpoint_name(name: str) -> bool:
    """Whether an entry of checkpoints/ has the name of a checkpoint: its iteration."""
    return name.isascii() and name.isdigit()


def checkpoints(root: Path) -> list[Path]:
    """What under `root` has a checkpoint's name, in the order of the iterations."""
    found = (place for place in root.glob("[0-9]*") if is_checkpoint_name(place.name))
    return sorted(found, key=lambda place: int(place.name))


def place_of(root: Path, iteration: int) -> Path:
    """The folder of a checkpoint under `root`."""
    return root / f"{iteration:06d}"


def read(place: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `place`. OSError or ValueError for a corrupt one, RunError
    for another version's."""
    text = read_regular(place / NAME, MOST_OF_A_RECORD)
    found = _Format.model_validate_json(text).format
    if found != FORMAT:
        raise RunError(
            f"{place}: a checkpoint of format {found}, this version reads {FORMAT}; "
            "finish the run with the version that began it, or remove its folder"
        )
    manifest = Manifest.model_validate_json(text)
    if manifest.iteration != int(place.name):
        raise ValueError(f"its manifest is of iteration {manifest.iteration}")
    return manifest.model_dump()


def check(file: Path, digest: str) -> None:
    """ValueError where a file is not what its manifest says, or is a link to elsewhere."""
    check_inside(file, file.parent)
    if digest_of(file) != digest:
        raise ValueError(f"{file.name} is not what was written")


def check_inside(file: Path, folder: Path) -> None:
    """ValueError where a file of a folder is a link that leads out of it."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} is a link that leads out of {folder}")


def digest_of(file: Path) -> str:
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
