"""What identifies the user's own code: the source of what scores, predicts and optimises.

A run's own code is a reward of `rewards.classes`, a reward or a model of another package's entry
point, and an optimizer that is not an installed package's. What counts of it is its source
(`modules.digests`), and of an entry point also the name and the version of its distribution.
Built-in rewards and models are known by their names.
"""

import hashlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mixgrpo.catalogue.models import own_model
from mixgrpo.catalogue.modules import digests, imported, is_installed
from mixgrpo.catalogue.rewards import own_reward
from mixgrpo.errors import UnidentifiedError
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import MOST_OF_A_RECORD
from mixgrpo.files.regular import read_regular
from mixgrpo.settings.config import RunConfig

FILE = "code.json"
"""In the folder of a run with own code: which code that was."""

Modules = dict[str, str]
"""By the name of a module, or of a distribution, what identifies it."""


class CodeRecord(BaseModel):
    """Which code of the user's own made a run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    settings: str
    """The run's hash with all own code left out: the same in runs whose code alone differs."""
    code: dict[str, Modules]
    """By what it is, such as `reward red`: the digests of its modules."""


def own_code(config: RunConfig) -> dict[str, Modules]:
    """The digests of a run's own code, by what it is: {} for a run that has none.

    UnidentifiedError where a module is not to be found, naming the setting.
    """
    found = {what: _of_point(point, key) for what, (point, key) in _points(config).items()}
    if (module := _optimizers_module(config)) is not None:
        found[f"optimizer {config.optimizer.name}"] = digests(module) or {}
    # Of this package's own modules nothing counts.
    return {what: modules for what, modules in found.items() if modules}


def unseen(config: RunConfig) -> list[str]:
    """A warning for each part of a run's own code that has imported what its digests do not cover,
    as by a changed `sys.path` or by names that are computed. To be asked after it was loaded, and
    after something was computed with `all_of` noted, which may be the work of any part."""
    values, code = _values(config), own_code(config)
    if len(values) > 1:
        together = " or ".join(values)
        code[together] = {name: one for part in code.values() for name, one in part.items()}
        values[together] = all_of(config)
    texts = []
    for what, value in values.items():
        others = {k: v for k, v in imported(value).items() if k not in code.get(what, {})}
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            names = ", ".join(f"{name} ({file})" for name, file in list(others.items())[:3])
            texts.append(
                f"{what}: its code imports {names}{more} in a way that is seen only when it runs, "
                "so that a change there makes no other run; import it by an import statement, "
                "from a folder of PYTHONPATH"
            )
    return texts


def all_of(config: RunConfig) -> str:
    """What `modules.imports_noted` notes as that of a run's own code, whichever part runs."""
    return " or ".join(_values(config).values())


def _values(config: RunConfig) -> dict[str, str]:
    """By what it is, what names each part of a run's own code."""
    values = {what: point.value for what, (point, _) in _points(config).items()}
    if _optimizers_module(config) is not None:
        values[f"optimizer {config.optimizer.name}"] = config.optimizer.name
    return values


def _points(config: RunConfig) -> dict[str, tuple[EntryPoint, str]]:
    """Where a run's own rewards and model are, by what it is, and the setting, to begin errors."""
    found = {}
    rewards, model = config.rewards, config.model.name
    for name in sorted({*rewards.train, *rewards.held_out}):
        if (point := own_reward(name, rewards)) is not None:
            named = name in rewards.classes
            key = f"rewards.classes.{name}: " if named else f"reward {name}: its entry point "
            found[f"reward {name}"] = point, key
    if (point := own_model(model)) is not None:
        found[f"model {model}"] = point, f"model.name {model}: its entry point "
    return found


def _optimizers_module(config: RunConfig) -> str | None:
    """The module of an optimizer that is no installed package's; None without one."""
    name = config.optimizer.name
    module = name.rpartition(":" if ":" in name else ".")[0]
    return module if module and not is_installed(module) else None


def digest_of(modules: Modules) -> str:
    """One digest of all of them."""
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, record: CodeRecord) -> None:
    """Note in a run's folder which code it is of; nothing for a run without any."""
    if record.code:
        write_json(folder / FILE, record.model_dump())
    else:
        (folder / FILE).unlink(missing_ok=True)


def read_record(folder: Path) -> CodeRecord | None:
    """Which code a run is of; None where that is not noted, or cannot be read."""
    try:
        return CodeRecord.model_validate_json(read_regular(folder / FILE, MOST_OF_A_RECORD))
    except (OSError, ValidationError):
        return None


def changes(before: dict[str, Modules], now: dict[str, Modules]) -> str:
    """What differs, in words: `reward red (module myrewards)`; "" where nothing does."""
    texts = []
    for what in dict.fromkeys((*before, *now)):
        old, new = before.get(what, {}), now.get(what, {})
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            texts.append(f"{what} ({', '.join(names[:3])}{more})")
    return ", ".join(texts)


def _of_point(point: EntryPoint, key: str) -> Modules:
    """The digests of what an entry point, or a class's import path, stands for."""
    module = point.value.partition(":")[0].strip()
    found = digests(module)
    if found is None:
        raise UnidentifiedError(
            f"{key}{point.value}: no module {module} is found from {Path.cwd()}; start the "
            "command where it lies, or add its folder to PYTHONPATH"
        )
    if point.dist is not None:
        found = found | {f"distribution {point.dist.name}": point.dist.version}
    return found
