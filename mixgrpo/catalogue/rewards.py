"""The rewards by name, and what is known of each without loading it."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgrpo.catalogue import registry
from mixgrpo.catalogue.scenes import CLARITY_WEIGHTS, REWARDS
from mixgrpo.errors import ConfigError
from mixgrpo.files.contents import contents

if TYPE_CHECKING:
    from mixgrpo.settings.config import RewardsConfig


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


def reward_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def own_reward(name: str, settings: "RewardsConfig") -> EntryPoint | None:
    """Where the code of a reward is that this package does not bring; None for one that it does."""
    return registry.others(_GROUP, _BUILT_IN, name, settings.classes.get(name))


def is_built_in(name: str) -> bool:
    return name in _BUILT_IN


def setting_of(name: str, settings: "RewardsConfig") -> str:
    """The setting that names a reward."""
    if name in settings.classes:
        return f"rewards.classes.{name}"
    return f"rewards.train.{name}" if name in settings.train else f"rewards.held_out.{name}"


def shipped_weights(name: str) -> str:
    """What identifies the weights that are part of this package; "" where a reward has none."""
    return contents(_SHIPPED[name]) if name in _SHIPPED else ""


def scoring_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how the reward `name` scores: {} where all are its defaults.

    Files and folders stand by their contents, not their names. What the options of a reward of
    one's own say is not known: all count as they are, `checkpoint` apart, also where one is given
    its default.
    """
    files = {key: _content(name, key, value) for key, value in files_named(name, options).items()}
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


def _content(reward: str, option: str, value: str) -> str:
    """What is in the file or folder of that name; the name where it is one on the hub."""
    try:
        return (contents(Path(value)) or value) if value else value
    except ConfigError as error:
        raise ConfigError(f"rewards.options.{reward}: {option}: {error}") from None
