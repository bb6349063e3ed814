"""A reward: scores images against their prompts. Chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mixgrpo import registry
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


def reward_names() -> list[str]:
    return registry.names(_GROUP, _SCENES)


def load_reward(name: str) -> Reward:
    """The reward `name`. An entry point of `mixgrpo.rewards` names a callable that makes one."""
    found = registry.load(_GROUP, _SCENES, name)
    return FunctionReward(name, found) if name in _SCENES else found()


def reward_weights(name: str) -> str:
    """The sha256 of the weights that a built-in reward scores with; "" where it has none."""
    return registry.contents(_SHIPPED[name]) if name in _SHIPPED else ""
