"""The reward `imagereward`: ImageReward-v1.0 (arXiv:2304.05977; github.com/THUDM/ImageReward).

What its authors do with an image and a prompt: the shorter side becomes 224 pixels, bicubic, the
middle is kept and normalised as for CLIP; BERT's uncased tokens behind [CLS], cut and padded to 35;
the network's answer r as (r - 0.16717362830052426) / 1.0333394966054072, which has mean 0 and
variance 1 over their data.
"""

import pickle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.rewards.blip import Judge
from mixgrpo.rewards.cut import Cut
from mixgrpo.rewards.preprocess import Preprocess

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import BertTokenizer

TOKENS = 35
"""Of a prompt, [CLS] and [SEP] among them."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072


class ImageReward:
    """`checkpoint`: ImageReward.pt, a folder that holds it, or a hub id; `revision` of the latter.

    `tokenizer`: vocab.txt of bert-base-uncased, in the same ways. `batch`: images at once.
    """

    name = "imagereward"

    def __init__(
        self,
        *,
        checkpoint: str = "THUDM/ImageReward",
        revision: str | None = None,
        tokenizer: str = "google-bert/bert-base-uncased",
        batch: int = 32,
    ) -> None:
        """ConfigError where the weights are not to be had, or are not ImageReward's."""
        vocabulary = weights.file(tokenizer, "vocab.txt", needed_by="reward imagereward")
        file = weights.file(checkpoint, "ImageReward.pt", revision, "reward imagereward")
        try:
            self.module = Judge(_loaded(file))
        except ConfigError as error:
            raise ConfigError(
                f"reward imagereward: {file} is not ImageReward's checkpoint: {error}"
            ) from error
        self._tokenizer = _tokenizer(vocabulary)
        if len(self._tokenizer) != self.module.vocabulary:
            raise ConfigError(
                f"reward imagereward: {vocabulary} and two tokens more are {len(self._tokenizer)}, "
                f"and the weights know {self.module.vocabulary}; take bert-base-uncased's vocab.txt"
            )
        self._preprocess = Preprocess(self.module.image_size)
        self._batch = batch
        self._cut = Cut("reward imagereward", TOKENS)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in [0, 1]; of a long prompt the beginning is read.

        How many prompts were cut so far is warned of whenever it has doubled.
        """
        self.module.to(images.device)
        tokens, mask = (tensor.to(images.device) for tensor in self._tokens(prompts))
        parts = [
            self.module(self._preprocess(pixels), some, seen)
            for pixels, some, seen in zip(
                images.split(self._batch),
                tokens.split(self._batch),
                mask.split(self._batch),
                strict=True,
            )
        ]
        return (torch.cat(parts) - MEAN) / STD

    def _tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens [B, 35], and a mask that is 0 where they are padding."""
        whole = self._tokenizer(prompts)["input_ids"]
        self._cut.add(p for p, ids in zip(prompts, whole, strict=True) if len(ids) > TOKENS)
        cut = self._tokenizer(
            prompts, max_length=TOKENS, truncation=True, padding="max_length", return_tensors="pt"
        )
        return cut["input_ids"], cut["attention_mask"]


def _loaded(file: "Path") -> dict[str, Tensor]:
    """The tensors in a checkpoint, by name. ConfigError where it is none."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"torch cannot load it ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"it holds a {type(found).__name__}")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _tokenizer(vocabulary: "Path") -> "BertTokenizer":
    """BERT's uncased tokenizer with the two tokens that BLIP adds."""
    from transformers import BertTokenizer

    words = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
    made = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    made.add_special_tokens({"bos_token": "[DEC]", "extra_special_tokens": ["[ENC]"]})
    return made
