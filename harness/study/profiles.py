"""A sweep or search file with one of its profiles laid over it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.study.mistakes import check_setting, error_at
from harness.study.sweepfile import Settings, read_file
from mixgrpo.errors import ConfigError, ErrorList, Place
from mixgrpo.settings.configfile import load_layers
from mixgrpo.settings.keys import is_section
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.yamlfile import Document, Key
from mixgrpo.text.suggest import did_you_mean

DEFAULT_PROFILE = "laptop"


def choose_profile(document: Document, known: Mapping[str, Any], profile: str | None) -> str:
    """The chosen profile, or the default one. ConfigError for one that is not `known`."""
    if profile is None:
        return DEFAULT_PROFILE if DEFAULT_PROFILE in known else next(iter(known), "")
    if profile not in known:
        hint = did_you_mean(profile, known) if known else "; the file has no profiles"
        place = document.place(("profiles",))
        raise ConfigError(f"no such profile: {profile}{hint}", place=place)
    return profile


@dataclass(frozen=True)
class Given:
    """A value and its key in the file, for errors."""

    value: Any
    key: Key


def asked_of_slurm(parts: Iterable[tuple[Any, Key]]) -> Iterator[tuple[Key, object]]:
    """What parts of a file ask of Slurm, for all arms and for one, each with its key."""
    for part, prefix in parts:
        yield (*prefix, "slurm"), part.slurm
        for name, arm in (getattr(part, "arms", None) or {}).items():
            yield (*prefix, "arms", name, "slurm"), (arm or {}).get("slurm")


class FileParts:
    """A sweep or search file with one of its profiles laid over it."""

    def __init__(self, document: Document, file: Any, profile: str | None, word: str) -> None:
        """`file`: the checked content of `document`. `word`: what errors call such a file."""
        self.document, self.schema, self.word = document, type(file), word
        self._profiles = file.profiles
        self.profile = choose_profile(document, self._profiles, profile)
        self.parts: list[tuple[Any, Key]] = [(file, ())]
        if self.profile:
            self.parts.append((self._profiles[self.profile], ("profiles", self.profile)))

    def get(self, field: str) -> Given | None:
        """The profile's value of a field, or else the file's."""
        for part, prefix in reversed(self.parts):
            value = getattr(part, field)
            if value is not None:
                return Given(value, (*prefix, field))
        return None

    def error(self, key: Key, message: str) -> ConfigError:
        """An error about a key of the file."""
        return error_at(self.document, key, message)

    def variant(self, overrides: Sequence[str]) -> str:
        """The suffix of the report's name for this profile with these `KEY=VALUE` texts."""
        default = choose_profile(self.document, self._profiles, None)
        variant = f"-{self.profile}" if self.profile != default else ""
        if overrides:
            digest = hashlib.sha256(repr(sorted(overrides)).encode()).hexdigest()
            variant += f"-set-{digest[:6]}"
        return variant

    def flat(self, settings: Mapping[Any, Any], key: Key, prefix: str = "") -> Settings:
        """Settings, nested or dotted, by dotted key. ConfigError for unknown keys."""
        flat: Settings = {}
        errors = ErrorList()
        for name, value in settings.items():
            dotted, here = f"{prefix}{name}", (*key, name)
            with errors.collected():
                if is_section(dotted) and isinstance(value, dict):
                    inner = self.flat(value, here, f"{dotted}.")
                else:
                    self.check_setting(dotted, here)
                    inner = {dotted: value}
                for twice in inner.keys() & flat.keys():
                    raise self.error(here, f"{twice} is given twice; keep one")
                flat |= inner
        errors.raise_all()
        return flat

    def settings(self) -> dict[str, Given]:
        """`set` of the file and, on top, of the profile, by dotted key."""
        settings: dict[str, Given] = {}
        errors = ErrorList()
        for part, prefix in self.parts:
            key = (*prefix, "set")
            with errors.collected():
                for name, value in self.flat(part.set or {}, key).items():
                    settings[name] = Given(value, key)
        errors.raise_all()
        return settings

    def layers(self, base: Given | None) -> Layers:
        """The layers of a configuration: a base, then `set` of the file and of the profile."""
        layers = self._base_layers(base) if base else Layers()
        for name, given in self.settings().items():
            layers.set(name, given.value, self.setting_place(given.key, name))
        return layers

    def _base_layers(self, base: Given) -> Layers:
        path = Path(self.document.file).parent / base.value
        try:
            return load_layers(path)
        except ConfigError as error:
            # An error about the whole base file is reported where this file names it.
            if error.place == Place(str(path)):
                raise self.error(base.key, str(error)) from None
            raise

    def check_setting(self, dotted: str, key: Key) -> None:
        """ConfigError unless `dotted` is a setting that arms may set."""
        check_setting(self.document, dotted, key, self.schema, self.word)

    def setting_place(self, prefix: Key, dotted: str) -> Place:
        """Where a setting is written below `prefix`, dotted, nested or both."""
        rest, key = dotted.split("."), prefix
        while rest:
            for n in range(len(rest), 0, -1):
                if (*key, ".".join(rest[:n])) in self.document.lines:
                    key, rest = (*key, ".".join(rest[:n])), rest[n:]
                    break
            else:
                break
        return self.document.place(key)


class Chosen(FileParts):
    """A sweep file with one of its profiles laid over it."""

    def __init__(self, path: Path, profile: str | None) -> None:
        document, self.file = read_file(path)
        super().__init__(document, self.file, profile, "sweep")
