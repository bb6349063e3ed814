"""A sweep and its runs, as `harness.study.load` reads them from a sweep file.

Each run has the hash that identifies its result. Nothing here knows what has run.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from harness.study.arms import Arm as Arm
from harness.study.margin import DEFAULT, Margin
from harness.study.names import run_folder
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.layers import Layers


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    config: RunConfig
    hash: str

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"

    @property
    def folder_name(self) -> str:
        return run_folder(self.arm, self.seed, self.hash)


@dataclass(frozen=True)
class Budget:
    """What a sweep may take."""

    hours: float
    unit: Literal["core", "GPU"]

    def __str__(self) -> str:
        return f"{self.hours:g} {self.unit} hours"


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says, with one profile chosen."""

    name: str
    question: str
    """One sentence, the title of the report."""
    file: Path
    profile: str
    """The profile chosen; empty where the file has none."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    """With looks: up to those of the last look."""
    runs: tuple[Run, ...]
    """Ordered by seed, so that the finished runs compare all arms at any time."""
    reference: str
    """Name of the arm with which every other one is compared; with `within`, that of the first
    value."""
    measure: str
    """The reward that answers the question, evaluated on held-out prompts."""
    paper: str | None
    """The published table that has rows for the arms, or for some of them."""
    paper_rows: dict[str, str]
    """Row of that table by arm name."""
    notes: str
    """A remark about the profile, shown in the report."""
    margin: Margin = DEFAULT
    """The difference in the measure that is worth nothing."""
    overrides: tuple[str, ...] = ()
    """`KEY=VALUE` texts that were laid on top of every arm."""
    within: Mapping[str, str] = field(default_factory=dict)
    """With `within`: by arm, the name of the arm that it is compared with."""
    within_label: str = ""
    """With `within`: what figures and sentences call the arm that an arm is compared with."""
    variant: str = ""
    """The suffix of the report's name for another profile than the default, and for overrides."""
    views: tuple[str, ...] = ()
    """Further views on the report's page (`harness.study.views`)."""
    answered_by: str = ""
    """The one of these views that answers the question; empty where the comparison of
    the arms does."""
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is measured on every finished run besides its training (`mixgrpo.settings.probes`):
    options by name, the defaults filled in."""
    looks: tuple[int, ...] = ()
    """Seeds until it is decided (`harness.planning.standing`): how many of `seeds` each look has;
    empty for fixed seeds."""
    budget: Budget | None = None
    """With looks: what ends it before the last one."""
    layers: Mapping[str, Layers] = field(default_factory=dict, repr=False, compare=False)
    """By arm, its settings, each with where it is written."""

    @property
    def references(self) -> dict[str, str]:
        """By arm, the name of the arm that it is compared with; for a reference its own name."""
        return {arm.name: self.within.get(arm.name, self.reference) for arm in self.arms}

    @property
    def reference_label(self) -> str:
        """What figures and sentences call the arm that an arm is compared with."""
        labels = {arm.name: arm.label for arm in self.arms}
        return self.within_label or labels[self.reference]

    @property
    def report_name(self) -> str:
        """The report's folder: no other profile or trial replaces the default one's report."""
        return self.name + self.variant


def same_schedules(sweep: Sweep) -> list[tuple[str, ...]]:
    """Groups of arms that are configured differently and yet compute the same.

    Their windows are at the same steps in every iteration and all else is equal: with 300
    iterations and tau = 25, an exponentially shrinking interval does not shrink yet.
    """
    seed = sweep.seeds[0]
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in sweep.runs:
        if run.seed == seed:
            groups.setdefault(_schedule(run.config), []).append(run.arm)
    return [tuple(arms) for arms in groups.values() if len(arms) > 1]


_MOST_STAYS = 10_000


def _schedule(config: RunConfig) -> tuple[Any, ...]:
    window = config.make_window()
    path: tuple[Any, ...] = tuple(islice(window.stays(config.iterations), _MOST_STAYS))
    if len(path) == _MOST_STAYS:  # too many to compare
        path = (window, config.iterations)
    rest = config.model_dump(mode="json", exclude={"window", "health", "output"})
    return (window.size, config.trained_per_image, path, repr(rest))


def only(sweep: Sweep, names: Sequence[str], option: str = "--only") -> Sweep:
    """The part of a sweep with these arms and single runs; all of it if none is named.

    A run is named as `harness.status` shows it, or by its folder. ConfigError for an unknown name.
    """
    if not names:
        return sweep
    arms = {arm.name for arm in sweep.arms}
    by_name = {name: run for run in sweep.runs for name in (run.folder_name, run.name)}
    whole = arms.intersection(names)
    single = set()
    for name in names:
        if name in arms:
            continue
        if name not in by_name:
            near = difflib.get_close_matches(name, [*arms, *(run.name for run in sweep.runs)])
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"runs are named as harness.status shows them, such as {sweep.runs[0].name}"
            )
            raise ConfigError(f"{option} {name}: no such arm or run; {hint}")
        single.add(by_name[name].folder_name)
    return replace(
        sweep,
        runs=tuple(r for r in sweep.runs if r.arm in whole or r.folder_name in single),
    )


def single_runs(sweep: Sweep, names: Sequence[str], option: str) -> list[Run]:
    """The runs of these names. ConfigError for an unknown one, and for an arm's name."""
    for name in names:
        chosen = only(sweep, [name], option).runs
        if name in {arm.name for arm in sweep.arms}:
            raise ConfigError(
                f"{option} {name}: is an arm; name one of its runs, such as {chosen[0].name}"
            )
    return list(only(sweep, names, option).runs) if names else []
