"""Limits around a reward: what it can tell of prompts ahead of the run passes through them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.rewards.limit import limited, offloaded


class Plain:
    """A reward with a network, which takes any prompt."""

    name = "plain"

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.zeros(len(images))


class Picky(Plain):
    """Refuses a prompt."""

    def check(self, prompts: list[str]) -> None:
        if "bad" in prompts:
            raise ValueError("bad")


def wrapped(reward: Plain) -> list[Any]:
    return [limited(reward, 5.0), offloaded(reward), limited(offloaded(reward), 5.0)]


def test_prompts_are_checked_by_the_reward_itself() -> None:
    for picky in wrapped(Picky()):
        picky.check(["good", "better"])
        with pytest.raises(ValueError, match="bad"):
            picky.check(["good", "bad"])


def test_a_reward_that_checks_nothing_takes_any_prompt() -> None:
    for plain in wrapped(Plain()):
        plain.check(["bad"])
