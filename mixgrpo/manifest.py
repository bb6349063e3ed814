"""What a checkpoint's manifest says: its files with their hashes, and what made them.

Apart from `checkpoint`, so that it is read without torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mixgrpo.errors import RunError

FORMAT = 1
NAME = "manifest.json"
PARTIAL = ".partial"
"""The end of the name of a checkpoint that is being written."""


def place_of(root: Path, iteration: int) -> Path:
    """The folder of a checkpoint under `root`."""
    return root / f"{iteration:06d}"


def read(place: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `place`. OSError, ValueError, LookupError or TypeError for
    a corrupt one, RunError for another version's."""
    manifest: dict[str, Any] = json.loads((place / NAME).read_text())
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{place}: a checkpoint of format {manifest['format']}, this version reads {FORMAT}; "
            "finish the run with the version that began it, or remove its folder"
        )
    if int(manifest["iteration"]) != int(place.name):
        raise ValueError(f"its manifest is of iteration {manifest['iteration']}")
    return manifest


def check(file: Path, digest: str) -> None:
    """ValueError where a file is not what its manifest says."""
    if digest_of(file) != digest:
        raise ValueError(f"{file.name} is not what was written")


def digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
