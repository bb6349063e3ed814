"""What identifies the result of a run: a hash of everything that changes it.

Files count by their contents, not by their paths. Nothing here imports torch, so that the harness
can name thousands of runs in a moment.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mixgrpo.catalogue.models import model_weights
from mixgrpo.catalogue.rewards import scoring_options, shipped_weights
from mixgrpo.errors import ConfigError, UnidentifiedError
from mixgrpo.files.prompts import prompts_digest
from mixgrpo.settings.config import MAPPINGS, SCHEMA_VERSION, RunConfig
from mixgrpo.settings.usercode import CodeRecord, Modules, digest_of, user_code

_UNHASHED: dict[str, bool | set[str]] = {
    "health": True,
    "output": True,
    "rewards": {"timeout"},
    "prompts": {"embeddings"},
    "compute": {"offload"},
}
"""Settings that change no result."""


@cache
def _defaults() -> dict[str, Any]:
    return RunConfig().model_dump(mode="json", exclude=_UNHASHED)


def differences(config: RunConfig) -> dict[str, Any]:
    """The settings that change the result and differ from the defaults, by dotted key."""
    changed: dict[str, Any] = {}

    def walk(value: Any, base: Any, key: str) -> None:
        if isinstance(value, dict) and key not in MAPPINGS:
            for name, inner in value.items():
                walk(inner, base[name], f"{key}.{name}" if key else name)
        elif value != base:
            changed[key] = value

    walk(config.model_dump(mode="json", exclude=_UNHASHED), _defaults(), "")
    return changed


def length_alone(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs differ in their number of iterations and in no other hashed setting."""
    a, b = differences(one), differences(other)
    return {key for key in (*a, *b) if a.get(key) != b.get(key)} == {"iterations"}


def _digest(key: str, file: str | None) -> str:
    """A digest of the prompts in a file; "" where none is named. UnidentifiedError where it cannot
    be read."""
    try:
        return prompts_digest(Path(file)) if file else ""
    except ConfigError as error:
        raise UnidentifiedError(f"{key}: {error}") from None


def _moves_by_version_2(config: RunConfig) -> bool:
    """Whether the window moves differently than in version 1 of `at_end: released`."""
    w = config.window
    decays = w.strategy in ("linear-decay", "exp-decay")
    return w.at_end == "released" and (decays or (w.strategy == "constant" and w.stop is not None))


_MODEL_DEFAULTS = {"model.guidance": 3.5, "model.cfg": 1.0}
"""The value that none stands for, so that writing it out gives the same hash."""


_DIGITS = 8
"""Of a hash that people read and type."""


def config_hash(config: RunConfig) -> str:
    """Eight hex digits that identify the result of a run.

    It is taken over the differences from the defaults, the contents of the initial weights and of
    the rewards' weights, the user's code (`usercode`) and the schema version. So a new field whose
    default changes nothing keeps the hashes of finished runs; other weights or code under the same
    name change them. UnidentifiedError where prompts or code cannot be read.
    """
    return config_hashes(config, [config.seed])[0]


def settings_hash(config: RunConfig) -> str:
    """`config_hash` without the user's code: equal for runs that differ in that code only. It is
    also the hash that earlier versions gave to all runs."""
    return config_hashes(config, [config.seed], {})[0]


def code_record(config: RunConfig) -> CodeRecord:
    """The record of the user's code that is kept in a run's folder."""
    return CodeRecord(settings=settings_hash(config), code=user_code(config))


def config_hashes(
    config: RunConfig, seeds: Sequence[int], code: Mapping[str, Modules] | None = None
) -> list[str]:
    """`config_hash` of the same configuration with each of these seeds; `code`: digests of the
    user's code; none: those of the code as it is now."""
    return [digest[:_DIGITS] for digest in _digests(config, seeds, code)]


def config_digest(config: RunConfig) -> str:
    """`config_hash` with all of its 64 digits, where two runs must never be taken for one."""
    return _digests(config, [config.seed])[0]


def _digests(
    config: RunConfig, seeds: Sequence[int], code: Mapping[str, Modules] | None = None
) -> list[str]:
    rewards = config.rewards
    identity = differences(config)
    # Files count by their contents, below, and not by their paths.
    for key in ("model.checkpoint", "prompts.train", "prompts.held_out"):
        identity.pop(key, None)
    if "rewards.held_out" in identity:
        identity["rewards.held_out"] = sorted(rewards.held_out)
    for key, value in _MODEL_DEFAULTS.items():
        if identity.get(key) == value:
            del identity[key]
    used = {*rewards.train, *rewards.held_out}
    classes, options = (identity.pop(f"rewards.{key}", {}) for key in ("classes", "options"))
    of_user = {
        "rewards.classes": {name: classes[name] for name in classes if name in used},
        "rewards.options": {
            name: scoring
            for name in options
            if name in used and (scoring := scoring_options(name, options[name]))
        },
    }
    identity |= {key: by_name for key, by_name in of_user.items() if by_name}
    if _moves_by_version_2(config):
        identity["window.at_end"] = ["released", 2]
    files = {
        "model": model_weights(config.model.name, config.model.checkpoint),
        **{name: shipped_weights(name) for name in sorted(used)},
        "prompts.train": _digest("prompts.train", config.prompts.train),
        "prompts.held_out": _digest("prompts.held_out", config.prompts.held_out),
    }
    known = {name: digest for name, digest in files.items() if digest}
    if code is None:
        code = user_code(config)
    known |= {f"code of {what}": digest_of(modules) for what, modules in code.items()}
    identity.pop("seed", None)
    hashes = []
    for seed in seeds:
        of_seed = identity if seed == _defaults()["seed"] else identity | {"seed": seed}
        text = json.dumps([SCHEMA_VERSION, of_seed, known], sort_keys=True)
        hashes.append(hashlib.sha256(text.encode()).hexdigest())
    return hashes
