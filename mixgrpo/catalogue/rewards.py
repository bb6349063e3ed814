"""The rewards by name, and the facts about each that need no loading."""

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


GROUP = "mixgrpo.rewards"
BUILT_IN = {
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
FILE_OPTIONS = ("checkpoint", "tokenizer", "clip")
"""Options of built-in rewards that may name a file or folder."""
SERVICE_OPTIONS = frozenset(
    {"urls", "api_key_env", "login_env", "at_once", "timeout", "retries", "batch", "threads"}
)
"""Options of built-in rewards that say where and how fast they are computed, not how they score."""
_CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "hps": {"checkpoint": "xswu/HPSv2", "tokenizer": _CLIP_TOKENIZER},
    "pickscore": {"checkpoint": "yuvalkirstain/PickScore_v1", "tokenizer": _CLIP_TOKENIZER},
    "imagereward": {
        "checkpoint": "THUDM/ImageReward",
        "tokenizer": "google-bert/bert-base-uncased",
    },
    "clipscore": {"checkpoint": "apple/DFN5B-CLIP-ViT-H-14-384", "tokenizer": _CLIP_TOKENIZER},
    "unifiedreward": {"model": "CodeGoat24/UnifiedReward-qwen-7b", "score": "alignment"},
    "aesthetic": {
        "checkpoint": "trl-lib/ddpo-aesthetic-predictor",
        "clip": "openai/clip-vit-large-patch14",
    },
}
"""Defaults of the options that say how a built-in reward scores; options that are not listed are
None. They are repeated here since the rewards' modules import torch."""


def reward_names() -> list[str]:
    return registry.names(GROUP, BUILT_IN)


def external_reward(name: str, settings: "RewardsConfig") -> EntryPoint | None:
    """The entry point of a reward from the user or another package; None for a built-in one."""
    return registry.external(GROUP, BUILT_IN, name, settings.classes.get(name))


def is_built_in(name: str) -> bool:
    return name in BUILT_IN


def setting_of(name: str, settings: "RewardsConfig") -> str:
    """The setting that names a reward."""
    if name in settings.classes:
        return f"rewards.classes.{name}"
    return f"rewards.train.{name}" if name in settings.train else f"rewards.held_out.{name}"


def shipped_weights(name: str) -> str:
    """A digest of a reward's weights that ship with this package; "" where there are none."""
    return contents(_SHIPPED[name]) if name in _SHIPPED else ""


def scoring_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how the reward `name` scores: {} where all are its defaults.

    Files and folders are replaced by digests of their contents. The options of an external reward
    all count, with the values that are given, since their meaning and defaults are not known here;
    its `checkpoint` is the only one that is read as a file.
    """
    files = {key: _content(name, key, value) for key, value in files_named(name, options).items()}
    if name not in BUILT_IN:
        return {**options, **files}
    defaults = _DEFAULTS.get(name, {})
    return {
        key: files.get(key, value)
        for key, value in options.items()
        if key not in SERVICE_OPTIONS and value != defaults.get(key)
    }


def files_named(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The options of a reward that may name a file or folder, which counts by its contents."""
    keys = FILE_OPTIONS if name in BUILT_IN else ("checkpoint",)
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
