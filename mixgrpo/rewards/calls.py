"""Calls rewards: each is given data of its own, and what it returns is copied and checked.

A reward may write into the images and prompts it is given, keep them, and return one buffer again
and again: no other reward and no metric sees that.
"""

from typing import NoReturn

import torch
from torch import Tensor

from mixgrpo.compute.foreign import in_words, settings_restored
from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.rewards import protocol
from mixgrpo.rewards.protocol import Reward

_MEND = (
    "fix the reward and run the same command again (harness.sweep and harness.search: with "
    "--retry failed)"
)


def score(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores [B] in float64 on the CPU of images [B, 3, H, W]. Errors name the reward and a prompt.

    RunError where the reward cannot be reached (OSError); its own ConfigError or RepeatableError;
    RepeatableError where it raises anything else, or returns what are no scores. A failed reward
    is never replaced by a number: a zero would enter the advantages as if the images were bad.
    """
    about = f"reward {reward.name} on {len(prompts)} images, the first of {prompts[0]!r}"
    try:
        with settings_restored():
            returned: object = reward.score(images.detach().clone(), list(prompts))
        values = _copied(returned, (len(prompts),))
    except Interrupted:
        raise
    except BaseException as error:
        _blame(about, error)
    bad = (~values.float().isfinite()).nonzero()  # the squares of larger ones are Inf
    if len(bad):
        at = int(bad[0])
        raise RepeatableError(
            f"reward {reward.name}: {_not_usable(values[at])} for {prompts[at]!r}; {_MEND}"
        )
    return values


def for_training(reward: Reward, scores: Tensor) -> Tensor:
    """Scores [P, N] on the scale that is trained on, where a reward reports them on another.

    Errors are those of `score`.
    """
    about = f"reward {reward.name}, for_training"
    try:
        with settings_restored():
            returned: object = protocol.for_training(reward, scores.clone())
        values = _copied(returned, tuple(scores.shape))
    except Interrupted:
        raise
    except BaseException as error:
        _blame(about, error)
    bad = values[~values.float().isfinite()]
    if len(bad):
        raise RepeatableError(f"{about}: {_not_usable(bad[0])}; {_MEND}")
    return values


def _not_usable(value: Tensor) -> str:
    """What is wrong with a score that float32 does not hold."""
    if value.isfinite():
        return f"returned {float(value):.3g}, a number beyond 3.4e38 (float32),"
    return "returned NaN or Inf"


def check_prompts(reward: Reward, prompts: list[str]) -> None:
    """ConfigError for a prompt that a reward with a method `check` could not judge."""
    try:
        with settings_restored():
            protocol.check_prompts(reward, list(prompts))
    except (ConfigError, RunError, Interrupted):
        raise
    except BaseException as error:
        raise ConfigError(f"reward {reward.name}: its check fails: {in_words(error)}") from error


def _copied(returned: object, shape: tuple[int, ...]) -> Tensor:
    """A copy, in float64 on the CPU, of real numbers in this shape; _Wrong for anything else."""
    if not isinstance(returned, Tensor):
        raise _Wrong(f"returned a {type(returned).__name__}, not a tensor")
    if tuple(returned.shape) != shape:
        raise _Wrong(f"returned shape {tuple(returned.shape)}, not {shape}")
    if returned.is_complex():
        raise _Wrong("returned complex numbers, not real ones")
    if returned.layout is not torch.strided or returned.is_meta:
        kind = "without values" if returned.is_meta else f"of {returned.layout}"
        raise _Wrong(f"returned a tensor {kind}, not a plain one")
    return returned.detach().to("cpu", torch.float64, copy=True)


class _Wrong(Exception):
    """What was returned are no scores, in words."""


def _blame(about: str, error: BaseException) -> NoReturn:
    """Raise the error of the reward that raised `error`."""
    for kind in (ConfigError, RepeatableError):
        if isinstance(error, kind):  # it says what is to be done
            raise kind(f"{about}: {error}") from error
    if isinstance(error, _Wrong):
        raise RepeatableError(f"{about}: {error}; {_MEND}") from None
    if isinstance(error, OSError):
        text = f"{about}: {in_words(error)}; once it answers, run the same command again"
        raise RunError(text) from error
    raise RepeatableError(f"{about}: {in_words(error)}; {_MEND}") from error
