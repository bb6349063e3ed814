"""The dotted keys of a run configuration, such as `window.interval`, and hints at misspelt ones."""

import difflib
from functools import cache

from pydantic import BaseModel

from mixgrpo.errors import ConfigError, Place
from mixgrpo.settings.config import MAPPINGS, RunConfig
from mixgrpo.text.suggest import nearest_setting, plain, slurm_wish


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of a run configuration, without the sections."""
    keys: list[str] = []

    def walk(schema: type[BaseModel], prefix: str) -> None:
        for name in schema.model_fields:
            section = section_of(schema, name)
            if section is None:
                keys.append(prefix + name)
            else:
                walk(section, f"{prefix}{name}.")

    walk(RunConfig, "")
    return tuple(keys)


@cache
def _sections() -> frozenset[str]:
    return frozenset(key.rpartition(".")[0] for key in known_keys()) - {""}


def is_section(dotted: str) -> bool:
    """Whether a dotted key is a section with keys below it."""
    return dotted in _sections()


def check_key(dotted: str, place: Place) -> None:
    """ConfigError unless `dotted` is a field of the run configuration."""
    if is_section(dotted):
        inside = next(key for key in known_keys() if key.startswith(f"{dotted}."))
        raise ConfigError(
            f"is a section; set a key in it, such as {inside}", place=place, key=dotted
        )
    mapping = next((key for key in MAPPINGS if dotted.startswith(f"{key}.")), None)
    if mapping is not None:
        raise ConfigError(
            f"set {mapping} as a whole, {mapping}={{...}}; it replaces the earlier one",
            place=place,
            key=dotted,
        )
    if dotted not in known_keys():
        raise unknown_key(dotted, place)


def unknown_key(dotted: str, place: Place) -> ConfigError:
    """The error for a key that does not exist, with the key that was probably meant."""
    keys = known_keys()
    outer, _, last = dotted.rpartition(".")
    sections = _sections()
    if outer in ("", "slurm") and (wish := slurm_wish(dotted, keys)):
        fix = f"did you mean {wish}? Write it below `slurm:` of a sweep"
    elif outer and last in sections | {key for key in keys if "." not in key}:
        fix = f"{last} belongs at the top level, not below {outer}; indent it less"
    elif plain(dotted) in sections:
        fix = f"did you mean {plain(dotted)}?"
    else:
        near = nearest_setting(dotted, keys)
        section = difflib.get_close_matches(dotted, sections, n=1, cutoff=0.75)
        fix = f"did you mean {near or section[0]}?" if near or section else ""
        if near and not outer and "." in near and near.endswith(f".{last}"):
            fix += f" It belongs below {near.rpartition('.')[0]}, indented"
    return ConfigError("unknown key", place=place, key=dotted, fix=fix)


def section_of(schema: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The schema of the section `name` in `schema`; None for a plain setting."""
    info = schema.model_fields.get(name)
    annotation = info.annotation if info else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None
