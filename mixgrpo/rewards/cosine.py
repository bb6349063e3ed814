"""The cosine of an image and its prompt in a CLIP, which several rewards are.

What `Tokenizer` does is open_clip's tokenisation with the vocabulary of a folder or a hub's
repository.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.rewards.cut import Cut
from mixgrpo.rewards.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel

TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Its vocabulary is that of OpenAI's CLIP, which open_clip has as well."""


def open_clip_text(prompt: str) -> str:
    """A prompt as open_clip and OpenAI's CLIP clean it before they split it into tokens.

    Among others, curly quotes become straight ones.
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()).lower()


class Tokenizer:
    """Prompts to CLIP's tokens; what is longer than the context is cut.

    How many prompts were cut so far is warned of whenever it has doubled.
    """

    def __init__(
        self,
        checkpoint: str,
        model: "CLIPModel",
        needed_by: str,
        clean: Callable[[str], str] = str,
    ) -> None:
        """The vocabulary in a folder or a hub's repository, for `model`.

        ConfigError where it is none, or one of other size than the model's.
        """
        from transformers import CLIPTokenizer

        patterns = ["tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt"]
        folder = weights.folder(checkpoint, None, needed_by, patterns)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ConfigError(f"{needed_by}: {checkpoint} has no file tokenizer.json or vocab.json")
        self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        embeddings = model.text_model.embeddings
        self._length = embeddings.position_embedding.num_embeddings
        self._end = embeddings.token_embedding.num_embeddings - 1
        if self._tokenizer.eos_token_id != self._end:
            raise ConfigError(
                f"{needed_by}: the tokenizer {checkpoint} ends a prompt with token "
                f"{self._tokenizer.eos_token_id}, and the model with {self._end}; name the model's "
                "own tokenizer"
            )
        self._clean, self._cut = clean, Cut(needed_by, self._length)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Tokens [B, L], begun and ended, then filled with further ends, which nothing reads.

        The end stays the last token of a prompt that is cut, as in open_clip.
        """
        cleaned = [self._clean(prompt) for prompt in prompts]
        tokens: list[list[int]] = self._tokenizer(cleaned, verbose=False)["input_ids"]
        self._cut.add(p for p, row in zip(prompts, tokens, strict=True) if len(row) > self._length)
        tokens = [[*row[: self._length - 1], self._end] for row in tokens]
        longest = max(map(len, tokens))
        return torch.tensor([row + [self._end] * (longest - len(row)) for row in tokens])


@dataclass(frozen=True)
class Cosine:
    """The cosine of CLIP's embeddings of an image and its prompt."""

    module: "CLIPModel"
    tokenizer: Tokenizer
    preprocess: Preprocess
    batch: int
    """Images at once."""

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """[B] of images [B, 3, H, W] in [0, 1] and B prompts, on the images' device."""
        module = self.module
        torch.nn.Module.to(module, images.device)
        unique = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(unique).to(images.device)
        texts = [module.get_text_features(some).pooler_output for some in tokens.split(self.batch)]
        text = torch.cat(texts)[[unique.index(prompt) for prompt in prompts]]
        image = torch.cat(
            [
                module.get_image_features(self.preprocess(some)).pooler_output
                for some in images.split(self.batch)
            ]
        )
        return functional.cosine_similarity(image, text)
