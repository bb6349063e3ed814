"""Loads the rewards that a configuration names."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mixgrpo.catalogue import registry
from mixgrpo.catalogue.rewards import BUILT_IN, FILE_OPTIONS, GROUP, setting_of
from mixgrpo.catalogue.scenes import REWARDS
from mixgrpo.compute.foreign import settings_restored
from mixgrpo.errors import ConfigError, ErrorList, shown
from mixgrpo.files.hub import check_local
from mixgrpo.rewards.protocol import FunctionReward, Reward
from mixgrpo.rewards.unifiedreward import check_options as check_unifiedreward

if TYPE_CHECKING:
    from mixgrpo.settings.config import RewardsConfig


_WANTED = "a class or a factory whose arguments all have defaults, and which returns an object "
_WANTED += "with name and score"


def load_rewards(
    names: Iterable[str], settings: "RewardsConfig", offload: bool = False
) -> dict[str, Reward]:
    """The rewards of these names with their options and the limit on their time.

    `offload`: their networks wait in the memory of the CPU while they do not score.
    """
    from mixgrpo.rewards.limit import limited, offloaded

    found: dict[str, Reward] = {}
    errors = ErrorList()  # all that is to be got, at once
    for name in names:
        with errors.collected(), settings_restored():
            reward = load_reward(name, settings)
            found[name] = limited(offloaded(reward) if offload else reward, settings.timeout)
    errors.raise_all()
    return found


def check_reward(name: str, settings: "RewardsConfig", here: bool = True) -> None:
    """ConfigError for what `load_reward` would refuse, as far as it is known without making the
    reward: its code is imported and not called. `here`: the run has this process's environment."""
    options = dict(settings.options.get(name, {}))
    if name in REWARDS:
        _check_function(name, options)
        return
    path = settings.classes.get(name)
    with _named_by(setting_of(name, settings), name):
        maker = registry.load(GROUP, BUILT_IN, name, path)
        if path is not None:
            _check_class(name, path, maker)
    _check_options(name, maker, options)
    if name in BUILT_IN:
        for option in FILE_OPTIONS:
            if isinstance(options.get(option), str):
                check_local(str(options[option]), f"rewards.options.{name}: {option}")
        if name == "unifiedreward":
            check_unifiedreward(options, here)
        return
    with _named_by(setting_of(name, settings), name):
        registry.check(GROUP, BUILT_IN, name, _WANTED, path=path, options=options)
        own = getattr(maker, "name", name)
        if isinstance(own, str) and own != name:
            raise ConfigError(f"{name}: its class is named {own}; give it the name {name}")


@contextmanager
def _named_by(key: str, name: str) -> Iterator[None]:
    """Errors that begin with a reward's name begin with the setting that names it."""
    try:
        yield
    except ConfigError as error:
        text = str(error).removeprefix("reward ").removeprefix(f"{name}: ")
        raise ConfigError(f"{key}: {text}") from None


def _check_function(name: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ConfigError(f"rewards.options.{name}: {name} takes none; leave them out")


def load_reward(name: str, settings: "RewardsConfig | None" = None) -> Reward:
    """The reward `name`: a built-in one, one of `settings.classes`, or an entry point's of
    `mixgrpo.rewards`; the latter two name a callable that makes one, with `settings.options`.

    ConfigError where there is none, where making it fails, and where what is made is no reward or
    has another name: metrics and errors go by `name`.
    """
    options = dict(settings.options.get(name, {})) if settings else {}
    if name in REWARDS:
        _check_function(name, options)
        return FunctionReward(name, registry.load(GROUP, BUILT_IN, name))
    path = settings.classes.get(name) if settings else None
    found = registry.load(GROUP, BUILT_IN, name, path)
    if path is not None:
        _check_class(name, path, found)
    _check_options(name, found, options)
    made = registry.make(GROUP, BUILT_IN, name, _WANTED, path=path, options=options)
    maker = path or "its entry point"
    if not callable(getattr(made, "score", None)):
        raise ConfigError(
            f"reward {name}: {maker} makes an object of {type(made).__name__} without a method "
            f"score; it must be {_WANTED}"
        )
    own = getattr(made, "name", None)
    if own != name:
        called = "has no name" if own is None else f"is named {own}"
        raise ConfigError(
            f"reward {name}: {maker} makes one that {called}; give it the name {name}"
        )
    reward: Reward = made
    return reward


def _check_class(name: str, path: str, found: Any) -> None:
    """ConfigError for an import path that leads to no reward's class.

    Before it is called: a file of somebody else's may name anything there is.
    """
    lacking = [] if inspect.isclass(found) else ["is no class"]
    if not lacking and not callable(getattr(found, "score", None)):
        lacking.append("has no method score")
    if not lacking and not (hasattr(found, "name") or "name" in inspect.get_annotations(found)):
        lacking.append(f"has no name; give the class the attribute name = {name!r}")
    if lacking:
        raise ConfigError(
            f"reward {name}: {path} {lacking[0]}; a reward of rewards.classes is a class with name "
            "and score (docs/rewards.md)"
        )


def _check_options(name: str, maker: Any, options: Mapping[str, Any]) -> None:
    """ConfigError for an option that the reward does not have."""
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):  # no callable, or one of C's: said or seen when it is called
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in options:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            known = ", ".join(parameters) or "none"
            raise ConfigError(
                f"rewards.options.{name}: unknown option {key}; {hint}(it takes: {known})"
            )
        if name in BUILT_IN:
            _check_value(f"rewards.options.{name}: {key}", options[key], parameters[key].annotation)


_COUNTS = ("batch", "threads")


def _check_value(key: str, value: Any, annotation: Any) -> None:
    """ConfigError where an option of a built-in reward has a value of another type."""
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].replace("Input should be", "expected")
        # An address may hold a password.
        given = "" if key.endswith("urls") else f", not {shown(value)}"
        raise ConfigError(f"{key}: {said}{given}") from None
    if key.rpartition(" ")[2] in _COUNTS and value is not None and value < 1:
        raise ConfigError(f"{key}: expected 1 or more, not {value}")
