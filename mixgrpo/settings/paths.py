"""Paths that command lines and settings name.

Before anything is computed it is checked that outputs can be written; inputs become absolute.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mixgrpo.catalogue.rewards import files_named
from mixgrpo.catalogue.scenes import SIZES
from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import followed, is_stream
from mixgrpo.files.regular import is_there
from mixgrpo.settings.config import RunConfig


def check_file(option: str, path: Path, makes_folder: bool = False) -> None:
    """ConfigError where `path`, which `option` names, cannot be written as a file.

    A device or a pipe can. `makes_folder`: the command makes the file's folder if it is missing.
    """
    try:
        if is_stream(path):
            return
        target, _ = followed(path)
        if target.is_dir():
            raise ConfigError(f"{option} {path}: is a folder; name a file in it")
        if not (makes_folder or target.parent.is_dir()):
            raise ConfigError(f"{option} {path}: {target.parent} is not a folder; name one that is")
    except OSError as error:  # a loop of links, a folder that may not be entered, a long name
        raise ConfigError(f"{option} {path}: {error.strerror}; name another file") from None
    check_folder(option, target.parent)


def check_weights_file(option: str, path: Path) -> None:
    """ConfigError where weights, and a description beside them, cannot be written to `path`."""
    if is_stream(path):
        raise ConfigError(f"{option} {path}: weights are written to a regular file; name one")
    check_file(option, path, makes_folder=True)


def check_folder(option: str, path: Path) -> None:
    """ConfigError where `path`, which `option` names, is neither a folder that can be written to
    nor one that can be made."""
    path = path.absolute()
    try:
        nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not nearest.is_dir():
            raise ConfigError(f"{option}: {nearest} is not a folder; name another one")
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; name another folder") from None
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: {nearest} cannot be written to; name another folder")


@contextmanager
def removed_if_refused(folder: Path, begun: Sequence[str]) -> Iterator[None]:
    """Within this context a ConfigError removes `folder` where it did not exist before, unless a
    file in it matches one of the glob patterns `begun`, which say that work has begun."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    except ConfigError:
        if folder in made and not any(next(folder.glob(one), None) for one in begun):
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made[1:]:
                with suppress(OSError):  # another command may have written there
                    parent.rmdir()
        raise


def check_outside(path: Path, run: Path) -> None:
    """ConfigError where `path` lies in the folder `run`, which is only read."""
    if path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{path}: lies in the run's folder, which is only read; name another")


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths for the files that it names.

    Code of the user may change the working directory (`os.chdir`) before they are read. Names on
    the hub and names of shipped weights stay, and so do files that only the user's code reads.
    """

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name and is_there(name) else name

    model, prompts, rewards = config.model, config.prompts, config.rewards
    if model.name != "scenes" or model.checkpoint not in SIZES:
        model = model.model_copy(update={"checkpoint": absolute(model.checkpoint)})
    files = {"train": absolute(prompts.train), "held_out": absolute(prompts.held_out)}
    prompts = prompts.model_copy(update=files)
    options = {
        name: given | {key: absolute(value) for key, value in files_named(name, given).items()}
        for name, given in rewards.options.items()
    }
    rewards = rewards.model_copy(update={"options": options})
    return config.model_copy(update={"model": model, "prompts": prompts, "rewards": rewards})
