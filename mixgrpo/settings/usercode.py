"""What identifies the user's code that a run executes: its rewards, its model, its optimizer.

User code is a reward of `rewards.classes`, a reward or a model from another package's entry point,
and an optimizer that does not come from an installed package. It is identified by its source
(`source.digests`), an entry point also by the name and version of its distribution. Built-in
rewards and models are identified by their names.
"""

import hashlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mixgrpo.catalogue.models import external_model
from mixgrpo.catalogue.modules import imported, is_installed
from mixgrpo.catalogue.rewards import external_reward
from mixgrpo.catalogue.source import digests
from mixgrpo.errors import UnidentifiedError
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import MOST_OF_A_RECORD
from mixgrpo.files.regular import read_regular
from mixgrpo.settings.config import RunConfig

FILE = "code.json"
"""The record of the user's code in a run's folder; absent for a run without any."""

Modules = dict[str, str]
"""Digest by the name of a module, or version by the name of a distribution."""


class CodeRecord(BaseModel):
    """The user's code that made a run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    settings: str
    """The run's hash without user code: equal for runs that differ in that code only."""
    code: dict[str, Modules]
    """The digests of its modules, by what the code is, such as `reward red`."""


def user_code(config: RunConfig) -> dict[str, Modules]:
    """The digests of a run's user code, by what it is; {} for a run without any.

    UnidentifiedError, naming the setting, where a module does not exist.
    """
    code = {what: _point_digests(point, key) for what, (point, key) in _points(config).items()}
    if (module := _optimizer_module(config)) is not None:
        code[f"optimizer {config.optimizer.name}"] = digests(module) or {}
    # Modules of this package have no digests.
    return {what: modules for what, modules in code.items() if modules}


def undetected_imports(config: RunConfig) -> list[str]:
    """A warning for each part of the user code that has imported modules that its digests do not
    cover, for instance through a changed `sys.path` or by computed names.

    Call it after the code was loaded, and again after it ran within
    `imports_noted(all_values(config))`: what is imported then may belong to any part.
    """
    values, code = _values(config), user_code(config)
    if len(values) > 1:
        together = " or ".join(values)
        code[together] = {name: one for part in code.values() for name, one in part.items()}
        values[together] = all_values(config)
    texts = []
    for what, value in values.items():
        others = {k: v for k, v in imported(value).items() if k not in code.get(what, {})}
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            names = ", ".join(f"{name} ({file})" for name, file in list(others.items())[:3])
            texts.append(
                f"{what}: its code imports {names}{more} in a way that is seen only when it runs, "
                "so that a change there does not make it another run; use an import statement, "
                "and a folder of PYTHONPATH"
            )
    return texts


def all_values(config: RunConfig) -> str:
    """The name under which `modules.imports_noted` notes imports of any part of the user code."""
    return " or ".join(_values(config).values())


def _values(config: RunConfig) -> dict[str, str]:
    """The import path of each part of the user code, by what it is."""
    values = {what: point.value for what, (point, _) in _points(config).items()}
    if _optimizer_module(config) is not None:
        values[f"optimizer {config.optimizer.name}"] = config.optimizer.name
    return values


def _points(config: RunConfig) -> dict[str, tuple[EntryPoint, str]]:
    """The entry points of the user's rewards and model, by what they are, each with the setting
    that error messages begin with."""
    points = {}
    rewards, model = config.rewards, config.model.name
    for name in sorted({*rewards.train, *rewards.held_out}):
        if (point := external_reward(name, rewards)) is not None:
            named = name in rewards.classes
            key = f"rewards.classes.{name}: " if named else f"reward {name}: its entry point "
            points[f"reward {name}"] = point, key
    if (point := external_model(model)) is not None:
        points[f"model {model}"] = point, f"model.name {model}: its entry point "
    return points


def _optimizer_module(config: RunConfig) -> str | None:
    """The module of an optimizer that does not come from an installed package; else None."""
    name = config.optimizer.name
    module = name.rpartition(":" if ":" in name else ".")[0]
    return module if module and not is_installed(module) else None


def digest_of(modules: Modules) -> str:
    """One digest of all modules."""
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, record: CodeRecord) -> None:
    """Write which user code a run has into its folder, or remove the file for one without any."""
    if record.code:
        write_json(folder / FILE, record.model_dump())
    else:
        (folder / FILE).unlink(missing_ok=True)


def read_record(folder: Path) -> CodeRecord | None:
    """Which user code a run has; None where there is no record, or it cannot be read."""
    try:
        return CodeRecord.model_validate_json(read_regular(folder / FILE, MOST_OF_A_RECORD))
    except (OSError, ValidationError):
        return None


def changes(before: dict[str, Modules], now: dict[str, Modules]) -> str:
    """What differs, in words, such as `reward red (myrewards)`; "" where nothing does."""
    texts = []
    for what in dict.fromkeys((*before, *now)):
        old, new = before.get(what, {}), now.get(what, {})
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            texts.append(f"{what} ({', '.join(names[:3])}{more})")
    return ", ".join(texts)


def _point_digests(point: EntryPoint, key: str) -> Modules:
    """The digests of the code that an entry point, or a class's import path, names."""
    module = point.value.partition(":")[0].strip()
    modules = digests(module)
    if modules is None:
        raise UnidentifiedError(
            f"{key}{point.value}: there is no module {module} as seen from {Path.cwd()}; start the "
            "command in the folder that has it, or add its folder to PYTHONPATH"
        )
    if point.dist is not None:
        modules = modules | {f"distribution {point.dist.name}": point.dist.version}
    return modules
