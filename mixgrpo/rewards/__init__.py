"""A reward: scores images against their prompts. Chosen by name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixgrpo import registry
from mixgrpo.contents import contents
from mixgrpo.errors import ConfigError, ErrorList
from mixgrpo.foreign import settings_restored
from mixgrpo.scenes import CLARITY_WEIGHTS, REWARDS
from mixgrpo.weights import check_local

if TYPE_CHECKING:
    from torch import Tensor

    from mixgrpo.config import RewardsConfig


class Reward(Protocol):
    """A named score of images against prompts; higher is better."""

    @property
    def name(self) -> str: ...

    def score(self, images: "Tensor", prompts: list[str]) -> "Tensor":
        """Scores [B] of images [B, 3, H, W] in [0, 1] and their B prompts."""
        ...


@dataclass(frozen=True)
class FunctionReward:
    """A reward that is nothing but a function."""

    name: str
    score: "Callable[[Tensor, list[str]], Tensor]"


_GROUP = "mixgrpo.rewards"
_BUILT_IN = {
    **REWARDS,
    "hps": "mixgrpo.rewards.hps:HPS",
    "pickscore": "mixgrpo.rewards.pickscore:PickScore",
    "imagereward": "mixgrpo.rewards.imagereward:ImageReward",
    "clipscore": "mixgrpo.rewards.clipscore:CLIPScore",
    "unifiedreward": "mixgrpo.rewards.unifiedreward:UnifiedReward",
    "aesthetic": "mixgrpo.rewards.aesthetic:Aesthetic",
    "ocr": "mixgrpo.rewards.ocr:OCR",
}
_SHIPPED = {"clarity": CLARITY_WEIGHTS}
_IN_FILES = ("checkpoint", "tokenizer", "clip")
"""Options of built-in rewards that may name a file or folder."""
PLACES = frozenset(
    {"urls", "api_key_env", "login_env", "at_once", "timeout", "retries", "batch", "threads"}
)
"""Options of built-in rewards that say where and how fast, not how they score."""
_CLIP_WORDS = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hps": {"checkpoint": "xswu/HPSv2", "tokenizer": _CLIP_WORDS},
    "pickscore": {"checkpoint": "yuvalkirstain/PickScore_v1", "tokenizer": _CLIP_WORDS},
    "imagereward": {
        "checkpoint": "THUDM/ImageReward",
        "tokenizer": "google-bert/bert-base-uncased",
    },
    "clipscore": {"checkpoint": "apple/DFN5B-CLIP-ViT-H-14-384", "tokenizer": _CLIP_WORDS},
    "unifiedreward": {"model": "CodeGoat24/UnifiedReward-qwen-7b", "score": "alignment"},
    "aesthetic": {
        "checkpoint": "trl-lib/ddpo-aesthetic-predictor",
        "clip": "openai/clip-vit-large-patch14",
    },
}
"""What the options are that say how a built-in reward scores, where none are given: here again,
since their modules import torch. Those that are not named are None."""
_WANTED = "a class or a factory whose arguments all have defaults, and which returns an object "
_WANTED += "with name and score"


def reward_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def own_reward(name: str, settings: "RewardsConfig") -> EntryPoint | None:
    """Where the code of a reward is that this package does not bring; None for one that it does."""
    return registry.others(_GROUP, _BUILT_IN, name, settings.classes.get(name))


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


def is_built_in(name: str) -> bool:
    return name in _BUILT_IN


def check_reward(name: str, settings: "RewardsConfig") -> None:
    """ConfigError for what `load_reward` would refuse, as far as it is known without making the
    reward: its code is imported and not called."""
    options = dict(settings.options.get(name, {}))
    if name in REWARDS:
        _check_function(name, options)
        return
    path = settings.classes.get(name)
    with _named_by(setting_of(name, settings), name):
        maker = registry.load(_GROUP, _BUILT_IN, name, path)
        if path is not None:
            _check_class(name, path, maker)
    _check_options(name, maker, options)
    if name in _BUILT_IN:
        for option in _IN_FILES:
            if isinstance(options.get(option), str):
                check_local(str(options[option]), f"rewards.options.{name}: {option}")
        return
    with _named_by(setting_of(name, settings), name):
        registry.check(_GROUP, _BUILT_IN, name, _WANTED, path=path, options=options)
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


def setting_of(name: str, settings: "RewardsConfig") -> str:
    """The setting that names a reward."""
    if name in settings.classes:
        return f"rewards.classes.{name}"
    return f"rewards.train.{name}" if name in settings.train else f"rewards.held_out.{name}"


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
        return FunctionReward(name, registry.load(_GROUP, _BUILT_IN, name))
    path = settings.classes.get(name) if settings else None
    found = registry.load(_GROUP, _BUILT_IN, name, path)
    if path is not None:
        _check_class(name, path, found)
    _check_options(name, found, options)
    made = registry.make(_GROUP, _BUILT_IN, name, _WANTED, path=path, options=options)
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


def for_training(reward: Reward, scores: "Tensor") -> "Tensor":
    """Scores on the scale that is trained on, where a reward reports them on another."""
    own = getattr(reward, "for_training", None)
    return scores if own is None else own(scores)


def check_prompts(reward: Reward, prompts: list[str]) -> None:
    """ConfigError for a prompt that a reward with a method `check` could not judge."""
    own = getattr(reward, "check", None)
    if own is not None:
        own(prompts)


def shipped_weights(name: str) -> str:
    """What identifies the weights that are part of this package; "" where a reward has none."""
    return contents(_SHIPPED[name]) if name in _SHIPPED else ""


def scoring_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how the reward `name` scores: {} where all are its defaults.

    Files and folders stand by their contents, not their names. What the options of a reward of
    one's own say is not known: all count as they are, `checkpoint` apart, also where one is given
    its default.
    """
    files = {key: _content(value) for key, value in files_named(name, options).items()}
    if name not in _BUILT_IN:
        return {**options, **files}
    defaults = _DEFAULTS.get(name, {})
    return {
        key: files.get(key, value)
        for key, value in options.items()
        if key not in PLACES and value != defaults.get(key)
    }


def files_named(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The options of a reward that may name a file or folder, which counts by what is in it."""
    keys = _IN_FILES if name in _BUILT_IN else ("checkpoint",)
    defaults = _DEFAULTS.get(name, {})
    return {
        key: value
        for key, value in options.items()
        if key in keys and isinstance(value, str) and value != defaults.get(key)
    }


def _content(value: str) -> str:
    """What is in the file or folder of that name; the name where it is one on the hub."""
    return (contents(Path(value)) or value) if value else value


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
