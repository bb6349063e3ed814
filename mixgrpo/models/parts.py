"""The parts of a pipeline of diffusers on disk: found, checked and loaded one by one.

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
    """A pipeline's folder. `checkpoint` is what the user calls it."""

    def __init__(self, checkpoint: str, folder: Path, index: dict[str, Any]) -> None:
        self.checkpoint, self.folder, self.index = checkpoint, folder, index

    @classmethod
    def find(cls, checkpoint: str, revision: str | None, kind: str, parts: Sequence[str]) -> Self:
        """The pipeline of class `kind` in a folder, or in a repository of the Hugging Face hub.

        Of a repository only `parts` are downloaded. ConfigError where there is none, where it is of
        another class, and where a part of it is missing; a part that the index says is null is not.
        """
        patterns = [INDEX, *(f"{part}/{name}" for part in parts for name in PART_FILES)]
        folder = weights.folder(checkpoint, revision, "model.checkpoint", patterns)
        if not (folder / INDEX).is_file():
            raise ConfigError(f"model.checkpoint {checkpoint}: {_no_index(folder, kind)}")
        found = cls(checkpoint, folder, _json(checkpoint, folder / INDEX))
        own = found.index.get("_class_name")
        if own != kind:
            raise ConfigError(
                f"model.checkpoint {checkpoint}: is a {own}, and this model is made of a {kind}; "
                "set model.name to the model that it is, or name another checkpoint"
            )
        for part in parts:
            if found.has(part) and not any((folder / part).glob("*")):
                raise ConfigError(
                    f"model.checkpoint {checkpoint}: its folder {part} is missing or empty; "
                    + _get(checkpoint, part)
                )
        return found

    def has(self, part: str) -> bool:
        """Whether the index names a class for `part`."""
        named = self.index.get(part)
        return isinstance(named, list) and None not in named

    def settings(self, part: str) -> dict[str, Any]:
        """What config.json of `part` says (scheduler_config.json of the scheduler)."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        file = self.folder / part / name
        if not file.is_file():
            raise ConfigError(f"model.checkpoint {self.checkpoint}: has no file {part}/{name}")
        return _json(self.checkpoint, file)

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """`part` on the CPU, by its own class; without a dtype a tokenizer, else a model in eval
        mode. ConfigError where its files are not those of its class."""
        maker, place = self._class(part), self.folder / part
        if dtype is None:
            with _blamed(self.checkpoint, part):
                return maker.from_pretrained(place)
        library = self.index[part][0]
        named = {"dtype" if library == "transformers" else "torch_dtype": dtype}
        with _blamed(self.checkpoint, part):
            module, report = maker.from_pretrained(
                place, **named, use_safetensors=True, output_loading_info=True
            )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"model.checkpoint {self.checkpoint}: the weights of its {part} lack {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return module.eval()

    def empty(self, part: str) -> Any:
        """A model of diffusers as `part` is, without weights (on the meta device)."""
        with torch.device("meta"):
            return self._class(part).from_config(self.settings(part))

    def digest(self, parts: Sequence[str]) -> str:
        """What is loaded from the folders of `parts`, in 16 hex digits each."""
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
        found = getattr(importlib.import_module(library), str(name), None)
        if found is None:
            raise ConfigError(
                f"model.checkpoint {self.checkpoint}: {INDEX} says that its {part} is a {name}, "
                f"which the installed {library} does not have"
            )
        return found


@contextmanager
def _blamed(checkpoint: str, part: str) -> Iterator[None]:
    """Make one line of what loading a part raises because of its files."""
    from safetensors import SafetensorError

    begin = f"model.checkpoint {checkpoint}: its {part} cannot be loaded"
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        # Of a file that is not there these libraries raise one without a number.
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{begin} ({text}); {_get(checkpoint, part)}") from error
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{begin} ({text})") from error


def _get(checkpoint: str, part: str) -> str:
    """The command that gets a part that is not there."""
    local = Path(checkpoint).expanduser().is_dir()
    repository = "REPOSITORY" if local else checkpoint
    place = f" --local-dir {checkpoint}" if local else ""
    return f"`hf download {repository} --include '{part}/*'{place}` gets it"


def _no_index(folder: Path, kind: str) -> str:
    """What a folder without model_index.json is instead."""
    for place in (folder, folder / "transformer"):
        if (place / "config.json").is_file():
            return (
                f"holds a transformer alone ({place}); replace the folder `transformer` in a copy "
                f"of the {kind} that it was trained from, and name that copy"
            )
    return f"has no {INDEX}; name the folder of a {kind}, as save_pretrained writes it"


def _json(checkpoint: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"model.checkpoint {checkpoint}: {file} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"model.checkpoint {checkpoint}: {file} has no keys")
    return found
