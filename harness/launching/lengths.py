"""Runs in a sweep's folder that differ from a run of the file only in their number of iterations.

A changed number of iterations makes another run in another folder, and the old one stays. If
nothing before its last checkpoint depends on that number, the new run starts from that checkpoint.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from harness.launching.adopt import makers_of
from harness.runs import environment
from harness.runs.codechange import read_accepted
from harness.runs.folder import checkpoints_of
from harness.runs.result import read_result
from harness.runs.state import sweep_folder
from harness.study.spec import Run, Sweep
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.records import DamagedFileError
from mixgrpo.files.regular import read_regular
from mixgrpo.runs.location import locate
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config, load_config
from mixgrpo.settings.continuation import common_iterations, why_not_continued
from mixgrpo.settings.identity import config_hash, length_alone
from mixgrpo.settings.yamlfile import MOST_BYTES

_LENGTH = re.compile(r"^iterations: (\d+)$", re.MULTILINE)
_UNHASHED = re.compile(r"^(?:health|output):\n(?: .*\n)*", re.MULTILINE)


@dataclass(frozen=True)
class OtherLength:
    """A run that differs from a run of the file only in its length."""

    run: Run
    """As its folder records it."""
    wanted: Run
    """The run of the file: the same arm and seed."""
    folder: Path

    @property
    def remark(self) -> str:
        """A description for a list of run folders."""
        return (
            f"{self.wanted.name} with {self.run.config.iterations} iterations, not "
            f"{self.wanted.config.iterations}"
        )

    @cached_property
    def why_not(self) -> str:
        """Why the run of the file cannot start from any of its checkpoints; empty where it can."""
        return _why_not(self.folder, self.run, self.wanted.config)


@dataclass(frozen=True)
class Beginning:
    """A checkpoint of a run of another length, from which a new run starts."""

    source: Path
    """The folder of that run."""
    iterations: int

    @property
    def text(self) -> str:
        return f"continues {self.source.name} after its {self.iterations} iterations"


def beginnings(
    sweep: Sweep, runs_dir: Path, starting: Iterable[Run]
) -> tuple[dict[str, Beginning], list[str]]:
    """The checkpoints from which new runs start, by the names of their folders; and, a line per
    reason, why others start from zero though a run of another length exists."""
    starts: dict[str, Beginning] = {}
    reasons: dict[str, dict[str, OtherLength]] = {}
    for other in other_lengths(sweep, runs_dir, starting):
        name = other.wanted.folder_name
        if other.why_not:
            reasons.setdefault(other.why_not, {})[name] = other
            continue
        common = common_iterations(other.run.config, other.wanted.config)
        point = max(m for m in checkpoints_of(other.folder) if m <= common)
        if name not in starts or point > starts[name].iterations:
            starts[name] = Beginning(other.folder, point)
    lines = []
    for why, by_name in reasons.items():
        others = [other for name, other in by_name.items() if name not in starts]
        if others:
            more = f" and {len(others) - 1} more runs start" if len(others) > 1 else " starts"
            first = others[0].run
            lines.append(
                f"{others[0].wanted.name}{more} from zero, not from {first.folder_name} with its "
                f"{first.config.iterations} iterations: {why}"
            )
    return starts, lines


def other_lengths(sweep: Sweep, runs_dir: Path, wanted: Iterable[Run]) -> list[OtherLength]:
    """The runs in the sweep's folder that are other lengths of the `wanted` runs of the file."""
    folder = sweep_folder(sweep, runs_dir)
    listed = {run.folder_name for run in sweep.runs}
    others: dict[str, list[str]] = {}
    for name in _names(folder):
        if name not in listed:
            others.setdefault(_stem(name), []).append(name)
    return [
        OtherLength(
            Run(run.arm, run.seed, config, name.rpartition("-")[2]), run, locate(folder / name)
        )
        for run in wanted
        for name in others.get(_stem(run.folder_name), ())
        if (config := _config_of(folder / name, run.config))
    ]


def _stem(name: str) -> str:
    """The name of a run's folder without its hash."""
    return name.rpartition("-")[0]


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _config_of(folder: Path, wanted: RunConfig) -> RunConfig | None:
    """The configuration of the run in `folder` if it differs from `wanted` only in its length.

    Few files are parsed, for there may be thousands: the hash in the folder's name covers all
    settings except those that change no result.
    """
    try:
        text = read_regular(locate(folder) / "config.yaml", MOST_BYTES).decode()
        iterations = int(_LENGTH.findall(text)[0])
        if iterations == wanted.iterations:
            return None
        config = wanted.model_copy(update={"iterations": iterations})
        if not (folder.name.endswith(config_hash(config)) and _unhashed(text) == _dumped(wanted)):
            config = load_config(locate(folder) / "config.yaml")
    except (OSError, ConfigError, ValueError, LookupError, DamagedFileError):
        return None  # not a run, or one of another version
    return config if config.seed == wanted.seed and length_alone(config, wanted) else None


def _unhashed(text: str) -> str:
    """The text of the sections health and output, which the hash does not cover."""
    return "".join(_UNHASHED.findall(text))


def _dumped(config: RunConfig) -> str:
    return _dumped_once(config.model_dump_json(include={"health", "output"}))


@lru_cache
def _dumped_once(settings: str) -> str:
    return _unhashed(dump_config(RunConfig.model_validate_json(settings)))


def _why_not(folder: Path, there: Run, wanted: RunConfig) -> str:
    if why := why_not_continued(there.config, there.hash, wanted):
        return why
    common = common_iterations(there.config, wanted)
    if not any(point <= common for point in checkpoints_of(folder)):
        return f"it has no checkpoint of at most {common} iterations"
    try:
        read_accepted(folder, read_result(folder, there))
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
