"""Encodes prompts by a pipeline's text encoders, each prompt once.

The encoders of FLUX and SD3 are as large as the network that is trained. They are loaded only for
prompts whose embeddings are not stored yet, encode all of these in batches, and are freed.
"""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.models.embeddings import EmbeddingStore
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.protocol import Conditioning

BATCH = 16
"""Prompts encoded at once."""
PER_FILE = 64
"""Prompts of one file of embeddings: 268 MB of FLUX's, in bfloat16."""
NEGATIVE = "negative_"
"""Prefix of the names of the tensors of the negative prompt."""


@dataclass(frozen=True)
class Reading:
    """How many tokens of some prompts one encoder reads."""

    encoder: str
    limit: int
    """Tokens that the encoder reads at most."""
    lengths: list[int]
    """Tokens of each prompt."""


@dataclass(frozen=True)
class TextSide:
    """How a family of models encodes text."""

    parts: tuple[str, ...]
    """The folders of encoders and tokenizers."""
    embed: Callable[[Any, list[str], int, str], Conditioning]
    """(pipeline with the text parts only, prompts, tokens, device) -> a row per prompt."""
    readings: Callable[[Any, list[str], int], list[Reading]]
    """(the same pipeline, prompts, tokens) -> how each encoder reads them."""


class PromptEncoder:
    """Encodes `tokens` tokens of each prompt with the text encoders of `pipeline`.

    folder: where embeddings are stored; none: nothing is stored and every call loads the encoders.
    negative: a prompt whose embedding is returned with all others.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        side: TextSide,
        tokens: int,
        dtype: torch.dtype,
        device: str,
        folder: Path | None = None,
        negative: str | None = None,
    ) -> None:
        self._pipeline, self._side, self._tokens = pipeline, side, tokens
        self._dtype, self._device, self._negative = dtype, device, negative
        self.identity = (
            f"{pipeline.index['_class_name']}, {pipeline.digest(side.parts)}, {tokens} tokens, "
            f"{str(dtype).removeprefix('torch.')}"
        )
        """What the embeddings depend on: the contents of the encoders' folders, not their paths."""
        self._store = EmbeddingStore(folder, self.identity) if folder else None
        self._prepared: set[str] = set()
        """Prompts that `prepare` was asked for, whichever rank had to encode them."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning with a row per prompt, on the device. ConfigError without prompts.

        Warns where encoders have to be loaded although `prepare` was called.
        """
        wanted = self._all(prompts)
        if self._store is None:
            rows = self._fresh(wanted)
        else:
            missing = self._store.missing(wanted)
            if missing and self._prepared:
                self._warn_of_missing(self._store, missing)
            if missing:
                self._encode(missing, self._store.add, lambda _: None)
            rows = self._store.get(wanted)
        rows = {name: value.to(self._device) for name, value in rows.items()}
        row_of = {prompt: row for row, prompt in enumerate(wanted)}
        order = [row_of[prompt] for prompt in prompts]
        conditioning = {
            name: value if order == list(range(len(value))) else value[order]
            for name, value in rows.items()
        }
        if self._negative is not None:
            for name, value in rows.items():
                row = value[row_of[self._negative]]
                conditioning[NEGATIVE + name] = row.expand(len(prompts), *row.shape)
        return conditioning

    def prepare(
        self, prompts: Sequence[str], say: Callable[[str], None], share: tuple[int, int] = (0, 1)
    ) -> None:
        """Encode and store those of the k-th of n shares of `prompts`, (k, n), that are not stored
        yet. Warns where prompts that were prepared before are missing."""
        wanted = self._all(prompts)
        if self._store is None:
            return
        # Divided before the store is read, so that no rank's share depends on what others stored.
        missing = self._store.missing(wanted[share[0] :: share[1]])
        gone = [prompt for prompt in missing if prompt in self._prepared]
        if gone:
            self._warn_of_missing(self._store, gone)
        self._prepared |= set(wanted)
        if missing:
            self._encode(missing, self._store.add, say)

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts`, and the negative one, that this process does not see in the store; []
        without a store."""
        if self._store is None or not prompts:
            return []
        return self._store.missing(self._all(prompts))

    def _warn_of_missing(self, store: EmbeddingStore, prompts: list[str]) -> None:
        warnings.warn(
            f"{store.folder}: lacks {len(prompts)} prompts after all were encoded, the first of "
            f"them {prompts[0]!r}, so that text encoders are loaded again; set "
            "prompts.embeddings to a folder that all processes share",
            stacklevel=3,
        )

    def _all(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt once, and the negative one."""
        if not prompts:
            raise ConfigError("there are no prompts to encode; name a file that has some")
        return list(
            dict.fromkeys([*prompts, *([] if self._negative is None else [self._negative])])
        )

    def _fresh(self, prompts: list[str]) -> Conditioning:
        parts: list[Conditioning] = []
        self._encode(prompts, lambda _, rows: parts.append(rows), lambda _: None)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def _encode(
        self,
        prompts: list[str],
        keep: Callable[[list[str], Conditioning], None],
        say: Callable[[str], None],
    ) -> None:
        cut: dict[tuple[str, int], int] = {}
        with _quiet(), self._encoders() as encoders:
            for begin in range(0, len(prompts), PER_FILE):
                shard = prompts[begin : begin + PER_FILE]
                rows = []
                for start in range(0, len(shard), BATCH):
                    batch = shard[start : start + BATCH]
                    rows.append(self._side.embed(encoders[0], batch, self._tokens, self._device))
                    for reading in self._side.readings(encoders[0], batch, self._tokens):
                        encoder = (reading.encoder, reading.limit)
                        longer = sum(length > reading.limit for length in reading.lengths)
                        cut[encoder] = cut.get(encoder, 0) + longer
                keep(shard, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
                say(f"encoded {begin + len(shard)} of {len(prompts)} prompts")
        cuts = [f"{name} cuts {n} at {limit} tokens" for (name, limit), n in cut.items() if n]
        if cuts:
            warnings.warn(
                f"of {len(prompts)} prompts encoded now, {'; '.join(cuts)}; shorten them"
                " (model.text_tokens is the length of the longest encoder)",
                stacklevel=3,
            )

    @contextmanager
    def _encoders(self) -> Iterator[list[Any]]:
        """The pipeline with its text parts only, on the device within this context.

        It is returned in a list that is emptied at the end: a variable of the caller would keep the
        encoders in memory.
        """
        import diffusers

        loaded: dict[str, Any] = {}
        for part in self._side.parts:
            if self._pipeline.has(part):
                is_model = part.startswith("text_encoder")
                loaded[part] = self._pipeline.load(part, self._dtype if is_model else None)
                if is_model:
                    loaded[part].requires_grad_(False).to(self._device)
        if len(loaded) < len(self._side.parts):
            # The pipeline reads its width, to put zeros in place of an absent encoder's output.
            loaded["transformer"] = self._pipeline.empty("transformer")
        maker = getattr(diffusers, self._pipeline.index["_class_name"])
        others = {
            part: None
            for part in ("scheduler", "vae", "transformer", *self._side.parts)
            if part not in loaded
        }
        pipelines = [maker(**loaded, **others)]
        loaded.clear()
        try:
            yield pipelines
        finally:
            pipelines.clear()
            gc.collect()
            torch.cuda.empty_cache()  # does nothing where there is no such device


def token_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, with those that the tokenizer puts around it."""
    return [len(row) for row in tokenizer(texts, truncation=False, verbose=False).input_ids]


def plain(rows: dict[str, Tensor]) -> Conditioning:
    """Rows without a graph, on the CPU, whose memory holds all rows of a file."""
    return {name: value.detach().cpu() for name, value in rows.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the lines that diffusers logs for every batch with a truncated prompt."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
