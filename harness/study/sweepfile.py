"""The keys that a sweep file may have, and reading it.

What is wrong with a key is said by `harness.study.mistakes`; what the keys mean together is checked
by `harness.study.load`.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt

from harness.study.mistakes import checked, misplaced_setting, unknown_key
from harness.text import command
from mixgrpo.errors import ConfigError, Place
from mixgrpo.files.regular import is_folder
from mixgrpo.settings.config import Name, RunConfig, Section
from mixgrpo.settings.yamlfile import Document, Key, read_yaml
from mixgrpo.text.suggest import SWEEP

MOST_RUNS = 50_000
"""Arms times seeds of a sweep, and trials times seeds of a search."""

Settings = dict[str, Any]

Scalar = str | int | float

Seeds = Annotated[StrictInt, Field(ge=1)] | tuple[Annotated[StrictInt, Field(ge=0, lt=2**31)], ...]


class Part(Section):
    """What the file may say at the top and in a profile."""

    base: str | None = None
    """A run configuration, as a path relative to this file."""
    set: Settings | None = None
    """Settings of all arms on top of the base, dotted (`window.size: 4`) or nested. A profile's lie
    on top of the file's."""
    grid: dict[str, tuple[Any, ...]] | None = None
    """Lists of values by dotted key; their product is the arms. Every sweep has `grid` or `arms`;
    with both, every arm is combined with every point of the grid."""
    arms: dict[Name, Settings | None] | None = None
    """Settings by arm name. Beside them an arm may have a `label` for figures, a `base` of its own
    instead of the above, and a `slurm` of its own on top of the others."""
    seeds: Settings | Seeds | None = None
    """How many (`5` means 0 to 4), or which (`[3, 7]`), or as many as it takes:
    `{looks: [5, 8, 12, 16, 24, 32], until: decided}`, with a `budget: {core_hours: 2}` or
    `{gpu_hours: 2}` if wanted. Every sweep has seeds; fewer than three conclude nothing."""
    reference: str | Settings | None = None
    """An arm's name, or settings that only one arm has. The first arm by default."""
    measure: Name | None = None
    """The reward that answers; by default the first one that is trained on."""
    margin: Scalar | None = None
    """The difference that is worth nothing: in the measure's units (`0.02`), or as a part of what
    the reference gains by training (`20 %`, the default). Arms are equal where the interval of
    their difference lies within it."""
    paper_rows: dict[Scalar, Scalar] | None = None
    """Row of the published table by arm name or grid value; by default they are the same."""
    notes: str | None = None
    """A remark that the report shows."""
    probes: dict[Name, Settings | None] | None = None
    """What is measured on every finished run besides its training, by name, each with its options:
    `hybrid`, `solver-error`."""
    slurm: Settings | None = None
    """What jobs ask of Slurm, on top of the site's own settings. It changes no run's identity."""


class Profile(Part):
    pass


class SweepFile(Part):
    name: Name
    """Names the folders `runs/<name>/` and `reports/<name>/`."""
    question: Annotated[str, Field(min_length=1)]
    """One sentence, the title of the report."""
    paper: Name | None = None
    """The published table that stands beside the measured numbers."""
    within: str | None = None
    """A key that the arms differ in, such as `model.checkpoint`: each arm is then compared with the
    arm of the same value that `reference` fits, and never across values."""
    views: tuple[Name, ...] = ()
    """What the page shows beside the usual: `drift`, `turn`, `speedup`, `stability`,
    `interaction`, `hybrid`, `solver-error`."""
    answered_by: Name | None = None
    """The view, one of `views`, that answers the question, where that is not which arm
    scores best."""
    profiles: dict[Name, Profile] = Field(default={}, min_length=1)
    """Variants of the sweep by name. Without `--profile` the one called laptop is taken, or else
    the first."""


def read_file(path: Path) -> tuple[Document, SweepFile]:
    """The YAML document and its checked content. ConfigError with all mistakes."""
    place = Place(str(path))
    if is_folder(path):  # a name may be too long, which is said when it is read
        raise ConfigError("is a folder; name the sweep file", place=place)
    document = read_yaml(path)
    if is_run_configuration(document):
        raise ConfigError(
            "is a run configuration, not a sweep file; name it as `base:` in a sweep file, or "
            f"train it with {command('mixgrpo.train', path)} --out DIR",
            place=place,
        )
    if "space" in keys_of_parts(document):
        raise ConfigError(
            f"is a search file; run it with {command('harness.search', path)} (and look at it "
            "with --status, --report)",
            place=place,
        )
    return document, checked(document, SweepFile, "sweep", SWEEP, _unknown_key)


def is_run_configuration(document: Document) -> bool:
    """Whether a file has keys of a run configuration, and none that only a sweep file has."""
    keys = document.data.keys()
    if keys & (SweepFile.model_fields.keys() - {"base"}):
        return False
    return bool(keys & {"base", *RunConfig.model_fields})


def keys_of_parts(document: Document) -> set[object]:
    """The keys at the top of a file and in its profiles."""
    profiles = document.data.get("profiles")
    parts = [document.data, *(profiles.values() if isinstance(profiles, dict) else [])]
    return {key for part in parts if isinstance(part, dict) for key in part}


def _unknown_key(document: Document, key: Key) -> ConfigError:
    name = str(key[-1])
    fields = Profile.model_fields if key[0] == "profiles" else SweepFile.model_fields
    return unknown_key(document, key, fields, SWEEP, misplaced_setting(name, {*fields, *SWEEP}))
