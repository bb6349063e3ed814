"""A reward: scores images against their prompts. Chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mixgrpo import registry
from mixgrpo.errors import ConfigError
from mixgrpo.scenes import CLARITY_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


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
_SCENES = {
    "composition": "mixgrpo.scenes.score:composition",
    "palette": "mixgrpo.scenes.score:palette",
    "strict": "mixgrpo.scenes.score:strict",
    "clarity": "mixgrpo.scenes.clarity:clarity",
}
_SHIPPED = {"clarity": CLARITY_WEIGHTS}
_WANTED = "a class or a factory without arguments that returns an object with name and score"


def reward_names() -> list[str]:
    return registry.names(_GROUP, _SCENES)


def load_reward(name: str) -> Reward:
    """The reward `name`. An entry point of `mixgrpo.rewards` names a callable that makes one.

    ConfigError where there is none, where making it fails, and where what is made is no reward or
    has another name: metrics and errors go by `name`.
    """
    if name in _SCENES:
        return FunctionReward(name, registry.load(_GROUP, _SCENES, name))
    made = registry.make(_GROUP, _SCENES, name, _WANTED)
    if not callable(getattr(made, "score", None)):
        raise ConfigError(
            f"reward {name}: its entry point makes an object of {type(made).__name__} without a "
            f"method score; it must be {_WANTED}"
        )
    own = getattr(made, "name", None)
    if own != name:
        called = "has no name" if own is None else f"is named {own}"
        raise ConfigError(
            f"reward {name}: its entry point makes one that {called}; give it the name {name}"
        )
    reward: Reward = made
    return reward


def reward_weights(name: str) -> str:
    """The sha256 of the weights that a built-in reward scores with; "" where it has none."""
    return registry.contents(_SHIPPED[name]) if name in _SHIPPED else ""
