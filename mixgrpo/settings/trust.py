"""Whose files may name code: those in the working folder, and others only with --trust.

A run folder or a configuration of somebody else's may name any class that can be imported, and
have it called. So code that a file names is run only where that file lies in the folder that the
command is started in; an entry point's name is harmless, since its package was installed. So it is
with where images, prompts and a secret of the environment are sent (`urls`, `api_key_env` and
`login_env` of a reward), and with what a sweep file has its jobs run (`slurm.setup`,
`slurm.python`, `slurm.sbatch`).
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mixgrpo.catalogue.modules import file_of
from mixgrpo.errors import ConfigError, Place, shown
from mixgrpo.files.regular import is_file
from mixgrpo.settings.config import RunConfig

Key = tuple[str | int, ...]

MAY_NAME_CODE = ("rewards.classes", "rewards.options", "optimizer.name")

RUN_BY_JOBS = ("setup", "python", "sbatch")
"""What jobs of Slurm run, and where, of what a sweep file asks for them."""

_SENDS = ("urls", "api_key_env", "login_env")


def named_code(config: RunConfig) -> dict[Key, str]:
    """What a configuration names that runs code or sends something away, by key."""
    rewards = config.rewards
    found: dict[Key, str] = {("rewards", "classes", k): v for k, v in rewards.classes.items()}
    for name, options in rewards.options.items():
        for option in _SENDS:
            if options.get(option) is not None:
                found["rewards", "options", name] = f"{option}: {options[option]}"
    optimizer = config.optimizer.name
    if optimizer != "adamw" and not optimizer.startswith("torch.optim."):
        found["optimizer", "name"] = optimizer
    return found


def check(config: RunConfig, place: Callable[[Key], Place], trust: bool) -> None:
    """ConfigError where a file that is not the user's own names code.

    `place`: where a key was set; what is no file, such as an option of the command line, is the
    user's own word. With `trust` nothing is refused.
    """
    for key, value in {} if trust else named_code(config).items():
        at = place(key)
        if is_file(at.file) and not is_own(Path(at.file)):
            raise _refusal(at, key, value)


def check_jobs(
    file: Path, asked: Iterable[tuple[Key, object]], place: Callable[[Key], Place], trust: bool
) -> None:
    """ConfigError where a sweep or search file that is not the user's own says what jobs run beside
    the run itself. `asked`: what it asks of Slurm, each with its key in the file."""
    if trust or is_own(file):
        return
    for key, wishes in asked:
        for word in RUN_BY_JOBS:
            if isinstance(wishes, Mapping) and wishes.get(word):
                at = (*key, word)
                raise _refusal(place(at), at, wishes[word])


def check_folder(config: RunConfig, folder: Path, trust: bool) -> None:
    """ConfigError where a run's folder names code, and either is not in the working folder or has
    the code itself."""
    for key, value in {} if trust else named_code(config).items():
        code = file_of(value.partition(":")[0]) if key[:2] == ("rewards", "classes") else None
        if not is_own(folder) or (code is not None and code.is_relative_to(folder.resolve())):
            raise _refusal(Place(str(folder / "config.yaml")), key, value)


def is_own(path: Path) -> bool:
    """Whether a file or folder lies in the working folder, all links followed."""
    return path.resolve().is_relative_to(Path.cwd().resolve())


def _refusal(place: Place, key: Key, value: object) -> ConfigError:
    return ConfigError(
        f"names {shown(value)}, and code is run that files in the working folder ({Path.cwd()}) "
        "name, and no other",
        place=place,
        key=".".join(map(str, key)),
        fix="if you know whose it is, add --trust",
    )
