"""A reward: scores images against their prompts. Chosen by name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixgrpo import registry
from mixgrpo.errors import ConfigError
from mixgrpo.scenes import CLARITY_WEIGHTS

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
EMBEDDED = {
    "composition": "mixgrpo.scenes.score:composition",
    "palette": "mixgrpo.scenes.score:palette",
    "strict": "mixgrpo.scenes.score:strict",
    "clarity": "mixgrpo.scenes.clarity:clarity",
}
"""Functions that judge pictures of the embedded task."""
_BUILT_IN = {
    **EMBEDDED,
    "hps": "mixgrpo.rewards.hps:HPS",
    "pickscore": "mixgrpo.rewards.pickscore:PickScore",
    "imagereward": "mixgrpo.rewards.imagereward:ImageReward",
    "clipscore": "mixgrpo.rewards.clipscore:CLIPScore",
    "unifiedreward": "mixgrpo.rewards.unifiedreward:UnifiedReward",
    "aesthetic": "mixgrpo.rewards.aesthetic:Aesthetic",
    "ocr": "mixgrpo.rewards.ocr:OCR",
}
_SHIPPED = {"clarity": CLARITY_WEIGHTS}
PLACES = frozenset(
    {"checkpoint", "urls", "api_key_env", "at_once", "timeout", "retries", "batch", "threads"}
)
"""Options of rewards that say where and how fast, not how they score. A checkpoint counts by what
is in it."""
_WANTED = "a class or a factory whose arguments all have defaults, and which returns an object "
_WANTED += "with name and score"


def reward_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def load_rewards(
    names: Iterable[str], settings: "RewardsConfig", offload: bool = False
) -> dict[str, Reward]:
    """The rewards of these names with their options and the limit on their time.

    `offload`: their networks wait in the memory of the CPU while they do not score.
    """
    from mixgrpo.rewards.limit import limited, offloaded

    found = {}
    for name in names:
        reward = load_reward(name, settings)
        found[name] = limited(offloaded(reward) if offload else reward, settings.timeout)
    return found


def load_reward(name: str, settings: "RewardsConfig | None" = None) -> Reward:
    """The reward `name`: a built-in one, one of `settings.classes`, or an entry point's of
    `mixgrpo.rewards`; the latter two name a callable that makes one, with `settings.options`.

    ConfigError where there is none, where making it fails, and where what is made is no reward or
    has another name: metrics and errors go by `name`.
    """
    options = dict(settings.options.get(name, {})) if settings else {}
    if name in EMBEDDED:
        if options:
            raise ConfigError(f"rewards.options.{name}: {name} takes none; leave them out")
        return FunctionReward(name, registry.load(_GROUP, _BUILT_IN, name))
    path = settings.classes.get(name) if settings else None
    _check_options(name, registry.load(_GROUP, _BUILT_IN, name, path), options)
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


def reward_weights(name: str, options: Mapping[str, Any]) -> str:
    """What identifies the weights that a built-in reward scores with; "" where it has its own.

    Of a file or folder its contents, as `registry.contents` has them; else a name on the hub.
    """
    if name in _SHIPPED:
        return registry.contents(_SHIPPED[name])
    checkpoint = options.get("checkpoint")
    return registry.contents(Path(str(checkpoint))) or str(checkpoint) if checkpoint else ""


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
