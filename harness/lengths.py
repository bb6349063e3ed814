"""Runs of a sweep's folder that are runs of the file but for how long they are.

A changed number of iterations makes another run in another folder; the one that was there stays.
Wherever nothing before its last checkpoint depends on that number, the new run starts from there.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import environment
from harness.adopt import makers_of
from harness.spec import Run, Sweep
from harness.store import checkpoints_of, read_result, sweep_folder
from mixgrpo.common import common_iterations
from mixgrpo.config import RunConfig
from mixgrpo.configfile import load_config
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.identity import config_hash, differences
from mixgrpo.records import DamagedFileError


@dataclass(frozen=True)
class OtherLength:
    """A run of another length, beside the one of the file."""

    run: Run
    """As its folder has it."""
    wanted: Run
    """The run of the file: the same arm and seed."""
    why_not: str
    """Why the run of the file cannot start from any of its checkpoints; empty where it can."""

    @property
    def remark(self) -> str:
        """What it is, for a list of run folders."""
        return (
            f"{self.wanted.name} with {self.run.config.iterations} iterations, not "
            f"{self.wanted.config.iterations}"
        )


def other_lengths(sweep: Sweep, runs_dir: Path, wanted: Iterable[Run]) -> list[OtherLength]:
    """The runs of other lengths that lie in the sweep's folder, for these runs of the file."""
    folder = sweep_folder(sweep, runs_dir)
    own = {run.folder_name for run in sweep.runs}
    others: dict[str, list[str]] = {}
    for name in _names(folder):
        if name not in own:
            others.setdefault(name.rpartition("-")[0], []).append(name)
    return [found for run in wanted for found in _of(folder, run, others.get(run.name, ()))]


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _of(folder: Path, wanted: Run, names: Iterable[str]) -> Iterator[OtherLength]:
    for name in names:
        try:
            config = load_config(folder / name / "config.yaml")
        except (OSError, ConfigError, ValueError):
            continue  # it is no run, or one of another version
        if config.seed != wanted.seed or not _differ_in_length(config, wanted.config):
            continue
        run = Run(wanted.arm, wanted.seed, config, name.rpartition("-")[2])
        yield OtherLength(run, wanted, _why_not(folder / name, config, wanted.config))


def _differ_in_length(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations differ in their iterations and in nothing else that counts."""
    a, b = differences(one), differences(other)
    return {key for key in (*a, *b) if a.get(key) != b.get(key)} == {"iterations"}


def _why_not(folder: Path, there: RunConfig, wanted: RunConfig) -> str:
    if wanted.optimizer.schedule != "constant":
        return (
            f"the learning rate depends on the number of iterations (optimizer.schedule: "
            f"{wanted.optimizer.schedule})"
        )
    try:
        unchanged = folder.name.endswith(f"-{config_hash(there)}")
    except ConfigError as error:
        return str(error)
    if not unchanged:
        return "its weights, prompts or rewards were others than they are now"
    common = common_iterations(there, wanted)
    if common == 0:
        return "it was measured with other settings of health or output.samples"
    if not any(point <= common for point in checkpoints_of(folder)):
        return f"it has no checkpoint of at most {common} iterations"
    try:
        read_result(folder)
        makers = makers_of(folder)
    except DamagedFileError as damaged:
        return f"{damaged.file}: {damaged.why}"
    except RunError as error:
        return str(error)
    if not makers:
        return "it does not say which code and machine made it"
    if any(maker.get("code") != environment.code() for _, maker in makers):
        return "it was made by other code of this program"
    return ""
