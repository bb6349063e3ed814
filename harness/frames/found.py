"""The runs in a folder as a sweep, made of what their own configurations say."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.settings import settings_key
from harness.runs.state import unlisted_runs
from harness.study.arms import Arm
from harness.study.spec import Run, Sweep
from mixgrpo.errors import ConfigError
from mixgrpo.files.records import RESULT, DamagedFileError
from mixgrpo.files.regular import read_regular
from mixgrpo.runs.folder import CONFIG, claimed
from mixgrpo.runs.location import locate
from mixgrpo.settings import usercode
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.layers import as_tuples

_NAME = re.compile(r"(?P<arm>.+)-seed\d+(-[0-9a-f]{8})?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_MOST_BYTES = 10**6


@dataclass(frozen=True)
class FoundRun(Run):
    """A run whose folder may have any name."""

    entry: str
    """The name of its folder, or of the link to it."""
    code: str
    """The user's own code that made it; empty for none."""

    @property
    def folder_name(self) -> str:
        return self.entry


@dataclass(frozen=True)
class Found:
    """The runs in a folder."""

    sweep: Sweep
    runs_dir: Path
    """The folder that holds the sweep's."""
    code: dict[str, str]
    """By arm, the user's own code that made its runs."""
    left_out: list[str]
    """What is damaged."""


def find_runs(folder: Path) -> Found:
    """The runs in `folder` as a sweep.

    Reads every run's config.yaml and follows links to the store; nothing that it names is imported.
    ConfigError where there is no folder, or no run in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"load_runs: {folder}: no such folder")
    folder = folder.absolute()
    entries = unlisted_runs(set(), folder)
    if (folder / CONFIG).exists():
        entries, folder = [folder], folder.parent
    left_out: list[str] = []
    found = []
    for entry in entries:
        try:
            found.append(_read(entry))
        except (DamagedFileError, OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            left_out.append(f"{entry}: its configuration cannot be read: {reason}")
    runs = _newest_alone(_by_arms(found), folder, left_out)
    if not runs:
        hint = "; ".join(left_out) or f"name the folder of one sweep{_inside(folder)}"
        raise ConfigError(f"load_runs: {folder}: no runs there; {hint}")
    code = {run.arm: run.code for run in runs}
    return Found(_as_sweep(folder.name, runs), folder.parent, code, left_out)


def _inside(folder: Path) -> str:
    """The first folder in this one that holds runs, as an example; "" where none does."""
    for inner in sorted(folder.iterdir()):
        if inner.name[0] != "." and unlisted_runs(set(), inner):
            return f", such as {inner}"
    return ""


def _read(entry: Path) -> FoundRun:
    place = locate(entry)
    data: Any = yaml.load(read_regular(place / CONFIG, _MOST_BYTES), _LOADER)
    config = RunConfig.model_validate(as_tuples(data))
    identity = claimed(place)
    if identity is None:
        raise ValueError(f"{place / CONFIG} does not begin with the run's hash")
    name = _NAME.fullmatch(entry.name)
    record = usercode.read_record(place)
    code = repr(sorted(record.code.items())) if record else ""
    arm = name["arm"] if name else entry.name
    return FoundRun(arm, config.seed, config, identity, entry.name, code)


def _by_arms(found: Iterable[FoundRun]) -> list[FoundRun]:
    """The runs under the names of their arms: the name that most of an arm's folders have, with a
    number where two arms would share it. Sorted as people would, by arm, then by seed."""
    arms: dict[tuple[str, str], list[FoundRun]] = {}
    for run in found:
        arms.setdefault((settings_key(run.config), run.code), []).append(run)
    named: dict[str, list[FoundRun]] = {}
    for runs in arms.values():
        names = [run.arm for run in runs]
        first = name = max(dict.fromkeys(names), key=names.count)
        number = 1
        while name in named:
            number += 1
            name = f"{first} ({number})"
        named[name] = runs
    return [
        replace(run, arm=name)
        for name in sorted(named, key=_natural)
        for run in sorted(named[name], key=lambda run: run.seed)
    ]


def _natural(name: str) -> list[tuple[float, str]]:
    """Sorts `interval=5` before `interval=15`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if part[:1].isdigit() else (-1.0, part) for part in parts]


def _newest_alone(runs: list[FoundRun], folder: Path, left_out: list[str]) -> list[FoundRun]:
    """Without the older ones of runs that have arm and seed in common: they had other weights or
    prompts under the same names, which no configuration shows, or are copies."""
    newest: dict[str, FoundRun] = {}
    for run in runs:
        other = newest.setdefault(run.name, run)
        if other is not run:
            older, newer = sorted((other, run), key=lambda one: _when(folder / one.entry))
            newest[run.name] = newer
            left_out.append(
                f"{folder / older.entry}: has the settings and the seed of {newer.entry}, which is "
                "newer; name its folder alone to load it"
            )
    return list(newest.values())


def _when(entry: Path) -> float:
    """When a run finished; 0 while it has not."""
    file = locate(entry) / RESULT
    return file.stat().st_mtime if file.exists() else 0.0


def _as_sweep(name: str, runs: list[FoundRun]) -> Sweep:
    """The measure is the first reward that all runs train on; none where they share none."""
    trained = [list(run.config.rewards.train) for run in runs]
    measure = next((r for r in trained[0] if all(r in of_run for of_run in trained)), "")
    arms = {run.arm: Arm(run.arm, run.arm, {}) for run in runs}
    return Sweep(
        name=name,
        question="",
        file=Path(),
        profile="",
        arms=tuple(arms.values()),
        seeds=tuple(sorted({run.seed for run in runs})),
        runs=tuple(runs),
        reference="",
        measure=measure,
        paper=None,
        paper_rows={},
        notes="",
    )
