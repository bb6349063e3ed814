"""What a reward is to the trainer: it scores images against their prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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


def for_training(reward: Reward, scores: "Tensor") -> "Tensor":
    """Scores on the scale that is trained on, where a reward reports them on another."""
    own = getattr(reward, "for_training", None)
    return scores if own is None else own(scores)


def check_prompts(reward: Reward, prompts: list[str]) -> None:
    """ConfigError for a prompt that a reward with a method `check` could not judge."""
    own = getattr(reward, "check", None)
    if own is not None:
        own(prompts)
