"""What identifies files and folders of weights: what is in them, not where they are.

Planning a sweep asks for it, so that nothing here is heavy: large files of folders are sampled, and
what was read is remembered while it stays the same.
"""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import BinaryIO

from mixgrpo.errors import ConfigError
from mixgrpo.files.regular import NOT_REGULAR, open_regular, read_regular

INDEX = "model_index.json"
"""The file that makes a folder a pipeline of diffusers: the class of every part."""

MOST_BYTES_OF_INDEX = 1_000_000

MOST_FILES = 1000
"""In a folder of weights: a pipeline of diffusers has some dozens."""

PART_FILES = (
    *("*.json", "*.txt", "*.model"),
    *("model.safetensors", "model-*.safetensors"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors"),
)
"""What is loaded of a part's folder; the half-precision copies beside them (model.fp16.safetensors)
are not."""

READ_WHOLE = 256 << 20
"""Bytes up to which a file of a folder is read whole; a larger one is sampled."""
_SPOT = 4096
"""Bytes that are read from the middle of every tensor of a larger one."""
_SAMPLES, _SAMPLE = 16, 1 << 16
"""How many parts of another larger file are read, and bytes of each."""

_LONGEST_HEADER = 100_000_000
"""Bytes that the library safetensors reads at most."""

_Spots = list[tuple[int, int]]
"""Places in a file, as (begin, length)."""


def contents(place: Path) -> str:
    """What identifies a file or folder by what is in it, or "" where there is neither.

    The sha256 of a file. Of a folder, which may be tens of gigabytes: the names of its files and
    the sha256 of each; of one above `READ_WHOLE` its size and the sha256 of a sample. Of
    .safetensors the sample is the header and a piece of every tensor, since training may change
    some layers alone; of others it is 16 pieces from beginning to end. Hidden files and folders
    (.cache) are no part of it; links are followed.

    ConfigError for a pipe or a device, and for a folder of more than `MOST_FILES`: to read from all
    files of a disk takes hours.
    """
    try:
        place = place.expanduser()
        if not place.is_dir():
            if place.exists() and not place.is_file():
                raise ConfigError(f"{place}: {NOT_REGULAR}; name a file or folder of weights")
            return _sha256(*_state(place))
        return _together(place, _files(place))
    except (OSError, RuntimeError, ValueError):  # no such home; no possible name of a file
        return ""


def pipeline_contents(place: Path) -> str:
    """`contents` of a pipeline of diffusers: what is loaded of it, and nothing beside (README,
    the same weights in other formats). Anything else as `contents` has it."""
    try:
        place = place.expanduser()
        index = json.loads(read_regular(place / INDEX, MOST_BYTES_OF_INDEX))
        parts = sorted(k for k, v in index.items() if isinstance(v, list) and None not in v)
        files = [place / INDEX]
        for part in parts:
            files += _part_files(place / part)
        return _together(place, files)
    except (OSError, RuntimeError, ValueError, AttributeError):
        return contents(place)


def part_contents(folder: Path) -> str:
    """What identifies one part of a pipeline of diffusers, by the files that are loaded."""
    return _together(folder, _part_files(folder))


def _part_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and any(fnmatchcase(path.name, pattern) for pattern in PART_FILES)
        and path.is_file()
    )


def _files(folder: Path) -> list[Path]:
    """All files in `folder` and the folders below, in order. ConfigError for too many."""
    found: list[Path] = []
    entries = 0

    def walk(inner: Path, above: frozenset[Path]) -> None:
        """`above`: folders that a link may not lead back into."""
        nonlocal entries
        real = inner.resolve()
        if real in above:
            return
        for path in sorted(inner.iterdir()):
            entries += 1
            if entries > MOST_FILES:
                raise ConfigError(
                    f"{folder}: has more than {MOST_FILES:,} files and folders; is this a folder "
                    "of weights?"
                )
            if path.name.startswith("."):
                continue
            if path.is_dir():
                walk(path, above | {real})
            elif path.is_file():
                found.append(path)

    # A link to a folder above would bring in everything beside this one.
    walk(folder, frozenset(folder.resolve().parents))
    return found


def _together(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        state = _state(file)
        of_file = _sha256(*state) if state[2] <= READ_WHOLE else _sampled(*state)
        digest.update(f"{name}\0{of_file}\0".encode())
    return digest.hexdigest()


def _state(file: Path) -> tuple[Path, int, int]:
    """The file itself, and what tells that it was changed."""
    stat = file.stat()
    return file.resolve(), stat.st_mtime_ns, stat.st_size


@cache
def _sha256(file: Path, _mtime_ns: int, _size: int) -> str:
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _sampled(file: Path, _mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256(f"{size}\0".encode())
    with open_regular(file) as stream:
        for begin, length in _tensors(stream, size) or _pieces(size):
            stream.seek(begin)
            digest.update(stream.read(length))
    return digest.hexdigest()


def _tensors(stream: BinaryIO, size: int) -> _Spots:
    """The header of .safetensors and the middle of every tensor; [] where the file is none.

    The format: https://huggingface.co/docs/safetensors, eight bytes with the header's length, the
    header as JSON, the tensors' bytes at `data_offsets` behind it.
    """
    data = 8 + int.from_bytes(stream.read(8), "little")
    if data > min(size, _LONGEST_HEADER):
        return []
    spots = [(0, data)]
    try:
        header = json.loads(stream.read(data - 8))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size - data:
                return []
            length = min(_SPOT, end - begin)
            spots.append((data + begin + (end - begin - length) // 2, length))
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
    return sorted(spots)


def _pieces(size: int) -> _Spots:
    """Spread over the file from its beginning to its end."""
    last = max(0, size - _SAMPLE)
    return [(last * k // (_SAMPLES - 1), _SAMPLE) for k in range(_SAMPLES)]
