"""The run configurations of a sweep's arms: bases, settings and overrides on top of each other."""

from typing import Any

from harness.study.arms import Arm, base_of, place_of
from harness.study.profiles import Chosen, Given
from mixgrpo.errors import ConfigError, Place, all_errors
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import add_overrides, located_errors
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.keys import known_keys
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.trust import check as check_trust


def arm_layers(chosen: Chosen, overrides: list[str], arms: list[Arm]) -> dict[str, Layers]:
    """The layers of every arm's configuration, by name, with `KEY=VALUE` texts on top."""
    shared = {
        arm.base: chosen.layers(base_of(chosen, arm)) for arm in {a.base: a for a in arms}.values()
    }
    stacks = {}
    for arm in arms:
        layers = stacks[arm.name] = shared[arm.base].copy()
        for key, value in arm.settings.items():
            layers.set(key, value, place_of(chosen, arm, key))
    varied = {key for arm in arms for key in arm.settings} | _varied(list(stacks.values()))
    for text in overrides:
        key = text.partition("=")[0].strip()
        place = Place(f"--set {text}")
        if key == "seed":
            raise ConfigError("the sweep file's `seeds:` sets the seeds", place=place)
        if key in varied:
            raise ConfigError(f"the arms differ in {key}; change the file", place=place)
    for layers in stacks.values():
        add_overrides(layers, overrides)
    return stacks


def arm_configs(stacks: dict[str, Layers], seed: int, trust: bool) -> dict[str, RunConfig]:
    """Every arm's configuration with this seed. ConfigError with the mistakes of all arms."""
    configs = {}
    wrong: dict[str, tuple[ConfigError, list[str]]] = {}
    for arm, layers in stacks.items():
        try:
            configs[arm] = layers.validate(seed)
            check_trust(configs[arm], layers.place, trust)
        except ConfigError as error:
            for one in error.errors:
                wrong.setdefault(str(one), (one, []))[1].append(arm)
    if wrong:
        raise all_errors(_for_arms(one, names, len(stacks)) for one, names in wrong.values())
    return configs


def _for_arms(error: ConfigError, names: list[str], count: int) -> ConfigError:
    """An error with the names of the arms that have it."""
    if len(names) == count > 1:
        which = "every arm"
    else:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        which = f"arm {names[0]}{more}"
    return ConfigError(
        f"{error.message} ({which})", place=error.place, key=error.key, fix=error.fix
    )


def _varied(stacks: list[Layers]) -> set[str]:
    """The keys in which layers differ, such as those of the presets of two arms."""
    default = Layers(RunConfig().model_dump(mode="json"))
    return {
        key
        for key in known_keys()
        if any(_value(one, key, default) != _value(stacks[0], key, default) for one in stacks)
    }


def _value(layers: Layers, dotted: str, default: Layers) -> Any:
    value: Any = layers.data
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            return None if layers is default else _value(default, dotted, default)
        value = value[part]
    return value


def check_distinct(
    chosen: Chosen, arms: list[Arm], configs: dict[str, RunConfig], layers: dict[str, Layers]
) -> None:
    """ConfigError where two arms have the same configuration."""
    first: dict[str, str] = {}
    for arm in arms:
        with located_errors(layers[arm.name]):
            identity = config_hash(configs[arm.name])
        if identity in first:
            key = (chosen.get("arms") or chosen.get("grid") or Given(None, ())).key
            raise chosen.error(
                key,
                f"the arms {first[identity]} and {arm.name} are the same configuration; "
                "change one or remove it",
            )
        first[identity] = arm.name
