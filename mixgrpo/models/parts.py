"""The parts of a diffusers pipeline on disk: located, checked and loaded one by one.

    model_index.json                     the pipeline's class, and the class of every part
    transformer/ vae/ text_encoder/ ...  a part: config.json and its weights, also sharded

Loading the whole pipeline at once would hold everything in memory together.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.files.contents import INDEX, PART_FILES, part_contents


class Pipeline:
    """A pipeline's folder. `checkpoint`: the folder or repository that the user named."""

    def __init__(self, checkpoint: str, folder: Path, index: dict[str, Any]) -> None:
        self.checkpoint, self.folder, self.index = checkpoint, folder, index

    @classmethod
    def find(cls, checkpoint: str, revision: str | None, kind: str, parts: Sequence[str]) -> Self:
        """The pipeline of class `kind` in a folder, or in a repository of the Hugging Face hub.

        Only `parts` of a repository are downloaded. ConfigError where there is no pipeline, where
        it has another class, and where a part is missing. A part that the index sets to null is not
        missing.
        """
        patterns = [INDEX, *(f"{part}/{name}" for part in parts for name in PART_FILES)]
        folder = weights.folder(checkpoint, revision, "model.checkpoint", patterns)
        if not (folder / INDEX).is_file():
            raise ConfigError(f"model.checkpoint {checkpoint}: {_no_index(folder, kind)}")
        pipeline = cls(checkpoint, folder, _read_json(checkpoint, folder / INDEX))
        actual = pipeline.index.get("_class_name")
        if actual != kind:
            raise ConfigError(
                f"model.checkpoint {checkpoint}: is a {actual}, and this model needs a {kind}; "
                "set model.name to the model that it is, or name another checkpoint"
            )
        for part in parts:
            if pipeline.has(part) and not any((folder / part).glob("*")):
                raise ConfigError(
                    f"model.checkpoint {checkpoint}: its folder {part} is missing or empty; "
                    + _download_hint(checkpoint, part)
                )
        return pipeline

    def has(self, part: str) -> bool:
        """Whether the index names a class for `part`."""
        named = self.index.get(part)
        return isinstance(named, list) and None not in named

    def settings(self, part: str) -> dict[str, Any]:
        """The contents of the config.json of `part` (scheduler_config.json for the scheduler)."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        file = self.folder / part / name
        if not file.is_file():
            raise ConfigError(f"model.checkpoint {self.checkpoint}: has no file {part}/{name}")
        return _read_json(self.checkpoint, file)

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """`part` on the CPU: without a dtype a tokenizer, else a model in eval mode. ConfigError
        where its files do not fit the class that the index names."""
        kind, folder = self._class(part), self.folder / part
        if dtype is None:
            with _one_line_errors(self.checkpoint, part):
                return kind.from_pretrained(folder)
        library = self.index[part][0]
        option = {"dtype" if library == "transformers" else "torch_dtype": dtype}
        with _one_line_errors(self.checkpoint, part):
            module, report = kind.from_pretrained(
                folder, **option, use_safetensors=True, output_loading_info=True
            )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"model.checkpoint {self.checkpoint}: the weights of its {part} lack {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return module.eval()

    def empty(self, part: str) -> Any:
        """The diffusers model `part` without weights, on the meta device."""
        with torch.device("meta"):
            return self._class(part).from_config(self.settings(part))

    def digest(self, parts: Sequence[str]) -> str:
        """A digest of the files of each of `parts`, of 16 hex digits."""
        return " ".join(
            f"{part} {part_contents(self.folder / part)[:16]}" for part in parts if self.has(part)
        )

    def _class(self, part: str) -> Any:
        library, name = self.index.get(part) or (None, None)
        if library not in ("diffusers", "transformers"):
            raise ConfigError(
                f"model.checkpoint {self.checkpoint}: {INDEX} has its {part} from {library}, "
                "neither diffusers nor transformers"
            )
        kind = getattr(importlib.import_module(library), str(name), None)
        if kind is None:
            raise ConfigError(
                f"model.checkpoint {self.checkpoint}: {INDEX} says that its {part} is a {name}, "
                f"which the installed {library} does not have"
            )
        return kind


@contextmanager
def _one_line_errors(checkpoint: str, part: str) -> Iterator[None]:
    """Turns what loading a part raises because of its files into a ConfigError of one line."""
    from safetensors import SafetensorError

    begin = f"model.checkpoint {checkpoint}: its {part} cannot be loaded"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        # For a missing file these libraries raise an OSError without a number.
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{begin} ({text}); {_download_hint(checkpoint, part)}") from error
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{begin} ({text})") from error


def _download_hint(checkpoint: str, part: str) -> str:
    """The command that downloads a missing part."""
    local = Path(checkpoint).expanduser().is_dir()
    repository = "REPOSITORY" if local else checkpoint
    option = f" --local-dir {checkpoint}" if local else ""
    return f"`hf download {repository} --include '{part}/*'{option}` gets it"


def _no_index(folder: Path, kind: str) -> str:
    """What a folder without model_index.json holds instead, and the fix."""
    for path in (folder, folder / "transformer"):
        if (path / "config.json").is_file():
            return (
                f"holds a transformer alone ({path}); replace the folder `transformer` in a copy "
                f"of the {kind} that it was trained from, and name that copy"
            )
    return f"has no {INDEX}; name the folder of a {kind}, as save_pretrained writes it"


def _read_json(checkpoint: str, file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"model.checkpoint {checkpoint}: {file} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.checkpoint {checkpoint}: {file} has no keys")
    return values
