"""A store of prompt embeddings on disk: each prompt is encoded once, by the first who needs it.

    <folder>/<digest of identity>/identity.json              what the embeddings depend on
    <folder>/<digest of identity>/<time>-<random>.safetensors  a shard: some prompts' tensors

A shard's header lists its prompts, and the index is the union of all headers: there is no file
that two writers could overwrite. Any number of processes and machines may add at the same time.
Nothing is changed or removed except incomplete files of killed writers.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.files.atomic import flush, write_bytes, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FOLDER_VARIABLE = "MIXGRPO_EMBEDDINGS"
"""The environment variable that names the folder of all embeddings."""

_FORMAT = "mixgrpo-embeddings-1"
_DIGESTS = "sha256"
"""Metadata of a shard, as JSON: the first 16 hex digits of every tensor's digest."""
_SUFFIX = ".safetensors"
_ABANDONED_S = 3600.0
"""Age in seconds from which an incomplete shard has no writer any more: writing takes seconds."""

_Row = dict[str, "Tensor"]


def embeddings_folder(named: str | None = None) -> Path:
    """The folder of all embeddings: `named`, else $MIXGRPO_EMBEDDINGS, else in ~/.cache.

    ConfigError where it lies in a home folder (~) that is not known.
    """
    name = named or os.environ.get(FOLDER_VARIABLE) or "~/.cache/mixgrpo/embeddings"
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            f"prompts.embeddings {name}: the home folder is not known; name a folder in full"
        ) from None


class EmbeddingStore:
    """The embeddings of one identity: of one set of text encoders, used in one way.

    `identity` says what the embeddings depend on (encoders and their revision, lengths, dtype), in
    words or as digests; each identity has its store. ConfigError where `folder` cannot be a folder.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.folder, self.identity = folder / digest, identity
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"prompts.embeddings {folder}: {path} is no folder; name another")
        self._seen: set[tuple[str, int, int]] = set()
        """Files that were read, each as name, mtime in ns and size."""
        self._shard: dict[str, str] = {}
        """The name of each known prompt's shard, by the prompt's key."""

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts` that no shard has, each once, in their order.

        The disk is read only for prompts that are not known yet: a folder of many shards is slow.
        """
        unknown = self._unknown(prompts)
        if unknown:
            self._refresh()
        return self._unknown(unknown)

    def add(self, prompts: Sequence[str], conditioning: "dict[str, Tensor]") -> None:
        """Write tensors by name, each with one row per prompt, as one shard, atomically.

        Floating-point values are stored as bfloat16, others as they are. RepeatableError naming a
        prompt whose values are not finite; OSError with the file's name for a full disk, which
        loses nothing that was stored before.
        """
        import torch
        from safetensors.torch import save

        if not prompts:
            return
        tensors: dict[str, Tensor] = {}
        for name, value in conditioning.items():
            if len(value) != len(prompts):
                raise ValueError(f"{name} has {len(value)} rows for {len(prompts)} prompts")
            rows = value.detach().cpu()
            if rows.is_floating_point():
                rows = rows.to(torch.bfloat16)
                for prompt, row in zip(prompts, rows, strict=True):
                    if not bool(row.isfinite().all()):
                        raise RepeatableError(
                            f"the embedding {name} of the prompt {prompt!r} is not finite; it and "
                            "the prompts encoded with it are not stored"
                        )
            for prompt, row in zip(prompts, rows, strict=True):
                # A clone: rows of a common or an expanded storage cannot be written.
                tensors[f"{_key(prompt)}/{name}"] = row.contiguous().clone()
        # Named by time, since the older of two shards with the same prompt is the one that is used;
        # the random part makes the name unique.
        file = self.folder / f"{time.time_ns():020d}-{os.urandom(8).hex()}{_SUFFIX}"
        digests = {entry: _digest(value) for entry, value in sorted(tensors.items())}
        content = save(tensors, {"format": _FORMAT, _DIGESTS: json.dumps(digests)})
        try:
            self._prepare_folder()
            write_bytes(file, content)
            flush(self.folder)
        except OSError as error:
            # The error of a full disk does not name the file.
            raise OSError(error.errno, error.strerror, str(error.filename or file)) from error

    def get(self, prompts: Sequence[str]) -> "dict[str, Tensor]":
        """The tensors by name, with a row for each of `prompts` in their order, repeated ones
        included; on the CPU, floating-point ones in bfloat16.

        RunError naming a prompt that is missing, or whose tensors differ from the other prompts' in
        name, shape or dtype.
        """
        import torch

        wanted = list(dict.fromkeys(prompts))
        self.missing(wanted)
        try:
            rows = self._read(wanted)
        except FileNotFoundError:  # a shard was removed; another one may have its prompts
            self._refresh()
            rows = self._read(wanted)
        names = set().union(*(row.keys() for row in rows.values()))
        tensors = {}
        for name in sorted(names):
            expected = _shape_and_dtype(rows[prompts[0]], name)
            for prompt in prompts:
                if expected is None or _shape_and_dtype(rows[prompt], name) != expected:
                    raise RunError(
                        f"{self.folder}: the embedding {name} of the prompt {prompt!r} does not "
                        f"have the shape of that of {prompts[0]!r}; remove the folder and encode "
                        "again"
                    )
            tensors[name] = torch.stack([rows[prompt][name] for prompt in prompts])
        return tensors

    def _unknown(self, prompts: Sequence[str]) -> list[str]:
        return [p for p in dict.fromkeys(prompts) if _key(p) not in self._shard]

    def _read(self, prompts: list[str]) -> dict[str, _Row]:
        """Rows by prompt; every shard is opened once, and only the wanted rows are read.

        FileNotFoundError where a shard was removed; RunError as for `get`.
        """
        from safetensors import SafetensorError, safe_open

        by_shard: dict[str, list[str]] = {}
        for prompt in prompts:
            shard = self._shard.get(_key(prompt))
            if shard is None:
                raise RunError(
                    f"{self.folder}: has no embedding of the prompt {prompt!r}; "
                    "python -m mixgrpo.embed encodes what is missing"
                )
            by_shard.setdefault(shard, []).append(prompt)
        rows: dict[str, _Row] = {prompt: {} for prompt in prompts}
        for shard, shard_prompts in by_shard.items():
            by_key = {_key(prompt): prompt for prompt in shard_prompts}
            try:
                with safe_open(self.folder / shard, framework="pt") as file:
                    # Shards of earlier versions have none.
                    digests = json.loads((file.metadata() or {}).get(_DIGESTS, "{}"))
                    for entry in file.keys():  # noqa: SIM118
                        key, _, name = entry.partition("/")
                        if key in by_key:
                            value = file.get_tensor(entry)
                            if digests.get(entry, digest := _digest(value)) != digest:
                                raise ValueError("it is not what was written")
                            rows[by_key[key]][name] = value
            except FileNotFoundError:
                raise
            except (OSError, ValueError, AttributeError, SafetensorError) as error:
                raise RunError(
                    f"{self.folder / shard}: cannot be read any more ({error}); remove it, and "
                    "its prompts are encoded again"
                ) from error
        return rows

    def _refresh(self) -> None:
        """Index the shards that were added since the last time. Corrupt ones are skipped."""
        from safetensors import SafetensorError, safe_open

        files = set()
        for path in self.folder.glob(f"[!.]*{_SUFFIX}"):  # none where there is no folder
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed in this moment
                continue
            files.add((path.name, stat.st_mtime_ns, stat.st_size))
        if self._seen - files:  # a shard was removed or replaced
            self._seen, self._shard = set(), {}
        for name, mtime, size in sorted(files - self._seen):
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    if (file.metadata() or {}).get("format") != _FORMAT:
                        raise ValueError("not written by this program, or by another version of it")
                    for entry in file.keys():  # noqa: SIM118
                        key = entry.partition("/")[0]
                        self._shard[key] = min(self._shard.get(key, name), name)
            except (OSError, ValueError, SafetensorError) as error:
                warnings.warn(
                    f"{self.folder / name}: not a complete shard of embeddings ({error}); it is "
                    "skipped and its prompts are encoded again",
                    stacklevel=1,  # so that it is shown once per process, whoever calls
                )
            self._seen.add((name, mtime, size))

    def _prepare_folder(self) -> None:
        """Make the folder, write its identity, and remove incomplete files of killed writers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        label = self.folder / "identity.json"
        if not label.exists():
            # Two machines may write it under the same process id; both write the same bytes.
            with suppress(FileNotFoundError):
                write_json(label, {"embeddings_of": self.identity, "format": _FORMAT})
        for partial in self.folder.glob(f".*{_SUFFIX}.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                    partial.unlink()


def _shape_and_dtype(row: _Row, name: str) -> "tuple[torch.Size, torch.dtype] | None":
    return (row[name].shape, row[name].dtype) if name in row else None


def _digest(value: "Tensor") -> str:
    """A digest of a tensor's bytes: .safetensors has no checksum."""
    import torch

    return hashlib.sha256(
        value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()[:16]


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
