"""What a run asks of Slurm: the site's settings, the sweep's, an arm's, the command line's.

Nothing here changes what a run computes, so nothing here is part of its identity.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from harness.study.arms import Arm
from harness.study.profiles import Chosen
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError, Place, all_errors, shown
from mixgrpo.files.regular import is_there, read_regular
from mixgrpo.settings.config import Section
from mixgrpo.settings.configfile import read_override
from mixgrpo.settings.consistency import Conflict, all_conflicts
from mixgrpo.settings.yamlfile import MOST_BYTES, read_yaml
from mixgrpo.text.suggest import SLURM, did_you_mean

SITE_VARIABLE = "MIXGRPO_SLURM"
"""Names another file than ~/.config/mixgrpo/slurm.yaml."""


_KEY_OF_OPTION = {
    **{word: word for word in ("partition", "account", "qos", "constraint", "time", "nodes")},
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "mem": "memory_gb",
}
_RESERVED = (
    "job-name",
    "array",
    "output",
    "error",
    "open-mode",
    "signal",
    "wait",
    "wrap",
    "ntasks",
)
"""Options of sbatch that this program sets."""


def _one_line(value: str | int | bool) -> str | int | bool:
    if isinstance(value, str) and not (value.strip() and value.isprintable()):
        raise PydanticCustomError("one_line", "expected one line of text")
    return value


Word = Annotated[str, AfterValidator(_one_line)]
"""Text on one line of the script for sbatch."""

Count = Annotated[int, Field(ge=1, le=100_000)]


class Slurm(Section):
    """What one run, or one pack of runs, asks of Slurm. Keys are called as sbatch's options."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    time: Annotated[int, Field(ge=1, le=10_000_000)] = 240
    """Time limit in minutes, or as sbatch writes it: `4:00:00`, `1-00:00:00`. A run that needs
    longer is stopped with a checkpoint and queued again by itself."""
    gpus: Annotated[int, Field(ge=0, le=100_000)] = 1
    """GPUs per node."""
    shards: Count | None = None
    """Shares of a GPU (gres/shard) instead of `gpus`, where the site has them."""
    cpus: Count = 4
    """CPU cores per task, which are also its threads."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory per node in GB; the site's default where it is left out."""
    nodes: Count = 1
    tasks_per_node: Count = 1
    """Processes of a run on each node; with several GPUs, one for each of them."""
    sharded: bool = False
    """Whether the network is sharded over the processes (FSDP2) rather than copied to each."""
    pack: Count = 1
    """Runs that share one job, and its GPUs, as processes of their own."""
    at_once: Count | None = None
    """Most jobs of an array that run at the same time."""
    signal_s: Annotated[int, Field(ge=10, le=1_000_000)] = 120
    """Seconds before the time limit at which a run is told to checkpoint. An iteration and a
    checkpoint should fit."""
    setup: tuple[str, ...] = ()
    """Shell lines before the run, such as `module load cuda`."""
    sbatch: dict[Word, Annotated[str | int | bool, AfterValidator(_one_line)]] = Field(default={})
    """Any further parameter of sbatch, such as `{reservation: icml}`."""
    python: Word | None = None
    """The command that starts Python in the job, such as one inside a container."""
    max_array: Count | None = None
    """Most jobs in an array; asked of Slurm (MaxArraySize) where it is left out."""
    poll_s: Annotated[float, Field(gt=0, le=1e5)] = 30.0
    """Slurm is asked for the state of the jobs at most this often."""

    @field_validator("time", mode="before")
    @classmethod
    def _minutes(cls, value: Any) -> Any:
        return minutes(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way_to_share(self) -> "Slurm":
        conflicts: list[Conflict] = []

        def wrong(key: str, message: str) -> None:
            conflicts.append(Conflict(message, key))

        if self.pack > 1 and self.processes > 1:
            wrong("pack", "runs of several processes cannot share a job; leave pack out")
        if self.sharded and self.processes == 1:
            wrong("sharded", "needs several processes; raise tasks_per_node or nodes")
        if 0 < self.gpus < self.tasks_per_node and not self.shards:
            wrong(
                "tasks_per_node",
                f"{self.tasks_per_node} processes need as many GPUs; there are {self.gpus} per "
                "node (gpus)",
            )
        if 2 * self.signal_s > 60 * self.time:
            wrong(
                "signal_s",
                f"a signal {self.signal_s} s before the end leaves too little of {self.time} min "
                "(time); lower it, or allow more time",
            )
        for key in self.sbatch:
            word = key.replace("_", "-")
            if word in _KEY_OF_OPTION:
                wrong("sbatch", f"{key} has a key here; write {_KEY_OF_OPTION[word]}:")
            if word in _RESERVED:
                wrong("sbatch", f"{key} is set by this program; leave it out")
        if conflicts:
            raise all_conflicts(conflicts)
        return self

    @property
    def processes(self) -> int:
        """Processes of one run."""
        return self.nodes * self.tasks_per_node

    @property
    def gpus_per_run(self) -> float:
        """For the ledger; a fraction for packed runs. 0 with shards, whose size the site sets."""
        return 0.0 if self.shards else self.gpus * self.nodes / self.pack


def minutes(text: str) -> int:
    """Minutes of a time as sbatch writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S, rounded up.

    ValueError for another text.
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) > 3 or any(part < 0 for part in parts) or (dash and not days):
        raise ValueError("not a time")
    if dash:
        hours, mins, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:
        hours, (mins, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60) + mins + (seconds > 0)


def site_file() -> Path:
    """The user's file of defaults for the cluster."""
    named = os.environ.get(SITE_VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "mixgrpo" / "slurm.yaml"


def resources(
    sweep: Sweep, overrides: list[str] | None = None, site: bool = True
) -> dict[str, Slurm]:
    """What each arm asks for, by the arm's name. ConfigError names file, line, key and fix.

    The site's file (left out without `site`), the sweep's `slurm`, its profile's, the arm's and
    `KEY=VALUE` overrides lie on top of each other.
    """
    chosen = Chosen(sweep.file, sweep.profile or None)
    shared = _site() if site else {}
    for part, prefix in chosen.parts:
        _lay_on_top(
            shared,
            part.slurm or {},
            lambda key, p=prefix: chosen.document.place((*p, "slurm", key)),
        )
    return {arm.name: _of_arm(chosen, arm, shared, overrides or []) for arm in sweep.arms}


def layered(
    parts: Sequence[tuple[dict[str, Any], Callable[[str], Place]]], file: str, overrides: list[str]
) -> Slurm:
    """The site's settings, then `parts`, each with the function that locates a key in `file`, then
    overrides.

    For searches, which have no arms. ConfigError names file, line, key and fix.
    """
    given = _site()
    for part, locate in parts:
        _lay_on_top(given, part, locate)
    return _with_overrides(given, overrides, file)


def _site() -> dict[str, tuple[Any, Place]]:
    """The settings of the user's file, each with where it is written."""
    given: dict[str, tuple[Any, Place]] = {}
    site = site_file()
    if is_there(site) and not _is_empty(site):
        document = read_yaml(site)
        _lay_on_top(given, document.data, lambda key: document.place((key,)))
    elif not is_there(site) and os.environ.get(SITE_VARIABLE):
        raise ConfigError(f"no such file; {SITE_VARIABLE} names it", place=Place(str(site)))
    return given


def _is_empty(file: Path) -> bool:
    """Whether a file has nothing but comments."""
    try:
        lines = read_regular(file, MOST_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError):  # reading it as YAML says what is wrong
        return False
    return all(line.lstrip()[:1] in ("", "#") for line in lines)


def _of_arm(
    chosen: Chosen, arm: Arm, shared: dict[str, tuple[Any, Place]], overrides: list[str]
) -> Slurm:
    given = dict(shared)
    arms = chosen.get("arms")
    if arms is not None:
        name = arm.name.split(",")[0]  # a grid's values stand after it
        of_arm = (arms.value.get(name) or {}).get("slurm") or {}
        key = (*arms.key, name, "slurm")
        if not isinstance(of_arm, dict):
            raise chosen.error(key, f"expected keys with values, not {of_arm!r}")
        _lay_on_top(given, of_arm, lambda word: chosen.document.place((*key, word)))
    return _with_overrides(given, overrides, str(chosen.document.file))


def _with_overrides(given: dict[str, tuple[Any, Place]], overrides: list[str], file: str) -> Slurm:
    for text in overrides:
        word, value, place = read_override(text, "--slurm", "partition=gpu")
        _lay_on_top(given, {word: value}, lambda _, p=place: p)
    try:
        return Slurm.model_validate({word: value for word, (value, _) in given.items()})
    except ValidationError as error:
        raise all_errors(
            one for details in error.errors() for one in _explain(details, given, file)
        ) from None


def _lay_on_top(on: dict[str, tuple[Any, Place]], settings: dict[str, Any], locate: Any) -> None:
    """Lay settings on top, each with where it is written; mappings are merged key by key."""
    for word, value in settings.items():
        word = str(word)  # keys in YAML may be numbers
        before = on.get(word)
        if isinstance(value, dict) and before and isinstance(before[0], dict):
            value = before[0] | value
        elif isinstance(value, list):
            value = tuple(value)
        on[word] = (value, locate(word))


def _explain(
    error: ErrorDetails, given: dict[str, tuple[Any, Place]], file: str
) -> Iterator[ConfigError]:
    if error["loc"]:
        yield _explain_key(error, given)
        return
    for conflict in error["ctx"]["error"].conflicts:
        (word,) = conflict.keys
        place = given[word][1] if word in given else Place(file)
        yield ConfigError(str(conflict), place=place, key=f"slurm: {word}")


def _explain_key(error: ErrorDetails, given: dict[str, tuple[Any, Place]]) -> ConfigError:
    location, kind, value = error["loc"], error["type"], shown(error["input"])
    word = str(location[0])
    key, place = f"slurm: {word}", given[word][1]
    if kind == "extra_forbidden":
        hint = did_you_mean(word, Slurm.model_fields, SLURM)
        message = f"unknown key{hint}; other options of sbatch go below `sbatch:`"
    elif word == "time":
        message = f"{value} is not a time; write minutes or 4:00:00"
    elif kind == "tuple_type":
        message = f"expected a list, such as [a, b], not {value}"
    elif kind == "dict_type":
        message = f"expected keys with values, not {value}"
    else:
        key += f".{location[1]}" if word == "sbatch" and len(location) > 1 else ""
        message = f"{error['msg'].replace('Input should be', 'expected')}, not {value}"
    return ConfigError(message, place=place, key=key)
