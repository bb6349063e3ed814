"""Whether a place that a command line names can be written: asked before anything is computed."""

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

    A device or a pipe can. `makes_folder`: the command makes the file's folder where it is missing.
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
        raise ConfigError(f"{option} {path}: weights are kept in a regular file; name one")
    check_file(option, path, makes_folder=True)


def check_folder(option: str, path: Path) -> None:
    """ConfigError where `path`, which `option` names, is no folder that can be written to and
    cannot become one."""
    path = path.absolute()
    try:
        nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise ConfigError(f"{option}: {nearest} is not a folder; name another place")
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}; name another folder") from None
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: {nearest} cannot be written to; name another folder")


@contextmanager
def nothing_left(folder: Path, begun: Sequence[str]) -> Iterator[None]:
    """Removes `folder` again where it was not there before and what is done inside is refused
    (ConfigError), unless something in it fits one of the patterns `begun`."""
    places = (folder, *folder.parents)
    made = [place for place in places if not os.path.lexists(place)]
    try:
        yield
    except ConfigError:
        if folder in made and not any(next(folder.glob(one), None) for one in begun):
            shutil.rmtree(folder, ignore_errors=True)
            for place in made[1:]:
                with suppress(OSError):  # another command may have written there
                    place.rmdir()
        raise


def check_outside(place: Path, run: Path) -> None:
    """ConfigError where `place` lies in the folder of `run`, which is only read."""
    if place.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{place}: lies in the run's folder, which is only read; name another")


def anchored(config: RunConfig) -> RunConfig:
    """The configuration with the files that it names by absolute paths.

    What is read after code of users has run would else be sought where that went (`os.chdir`).
    Names on the hub and of what is shipped stay, and whatever code of users reads itself.
    """

    def fixed(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name and is_there(name) else name

    model, prompts, rewards = config.model, config.prompts, config.rewards
    if model.name != "scenes" or model.checkpoint not in SIZES:
        model = model.model_copy(update={"checkpoint": fixed(model.checkpoint)})
    files = {"train": fixed(prompts.train), "held_out": fixed(prompts.held_out)}
    prompts = prompts.model_copy(update=files)
    options = {
        name: {**given, **{key: fixed(value) for key, value in files_named(name, given).items()}}
        for name, given in rewards.options.items()
    }
    rewards = rewards.model_copy(update={"options": options})
    return config.model_copy(update={"model": model, "prompts": prompts, "rewards": rewards})
