"""Prompts to tensors by a pipeline's own text encoders, each prompt once.

The encoders of FLUX and SD3 are as large as a network that is trained. They are loaded when a
prompt comes that is not kept yet, work through all such prompts in batches, and are freed.
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
KEPT_TOGETHER = 64
"""Prompts of one file of embeddings: 268 MB of FLUX's, in bfloat16."""
NEGATIVE = "negative_"
"""What begins the names of the tensors that guidance leads away from."""


@dataclass(frozen=True)
class Reading:
    """How one encoder reads prompts."""

    encoder: str
    limit: int
    """Tokens that it reads."""
    lengths: list[int]
    """Tokens of each prompt."""


@dataclass(frozen=True)
class TextSide:
    """What is a family's own about its text encoders."""

    parts: tuple[str, ...]
    """Encoders and tokenizers, by their folders."""
    embed: Callable[[Any, list[str], int, str], Conditioning]
    """(pipeline with the text parts alone, prompts, tokens, device) -> a row per prompt."""
    readings: Callable[[Any, list[str], int], list[Reading]]
    """(the same pipeline, prompts, tokens) -> how each encoder reads them."""


class PromptEncoder:
    """Encodes with the text parts of `pipeline`, `tokens` tokens of a prompt.

    `folder`: where embeddings are kept; none keeps nothing, and every call loads the encoders.
    `negative`: a prompt whose embedding comes with every other one's.
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
        """What the embeddings depend on: the contents of the encoders' folders, not their place."""
        self._store = EmbeddingStore(folder, self.identity) if folder else None
        self._prepared: set[str] = set()
        """What was to be encoded ahead, by this process or by one beside it."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """A row per prompt, on the device. ConfigError without prompts.

        After `prepare` it warns where encoders have to be loaded all the same.
        """
        wanted = self._all(prompts)
        if self._store is None:
            rows = self._fresh(wanted)
        else:
            missing = self._store.missing(wanted)
            if missing and self._prepared:
                self._say_late(self._store, missing)
            if missing:
                self._encode(missing, self._store.add, lambda _: None)
            rows = self._store.get(wanted)
        rows = {name: value.to(self._device) for name, value in rows.items()}
        where = {prompt: row for row, prompt in enumerate(wanted)}
        taken = [where[prompt] for prompt in prompts]
        found = {
            name: value if taken == list(range(len(value))) else value[taken]
            for name, value in rows.items()
        }
        if self._negative is not None:
            for name, value in rows.items():
                row = value[where[self._negative]]
                found[NEGATIVE + name] = row.expand(len(prompts), *row.shape)
        return found

    def prepare(
        self, prompts: Sequence[str], say: Callable[[str], None], share: tuple[int, int] = (0, 1)
    ) -> None:
        """Encode and keep what is not kept yet of the k-th of n shares of `prompts`, (k, n).

        It warns where prompts that were prepared before are not there.
        """
        wanted = self._all(prompts)
        if self._store is None:
            return
        # Shared out before looking, so that no rank's share depends on what others have done.
        missing = self._store.missing(wanted[share[0] :: share[1]])
        late = [prompt for prompt in missing if prompt in self._prepared]
        if late:
            self._say_late(self._store, late)
        self._prepared |= set(wanted)
        if missing:
            self._encode(missing, self._store.add, say)

    def lacking(self, prompts: Sequence[str]) -> list[str]:
        """Those of `prompts`, and the negative one, that are not kept as far as this process sees.

        None where nothing is kept at all.
        """
        if self._store is None or not prompts:
            return []
        return self._store.missing(self._all(prompts))

    def _say_late(self, store: EmbeddingStore, prompts: list[str]) -> None:
        warnings.warn(
            f"{store.folder}: lacks {len(prompts)} prompts after all were encoded ahead, the first "
            f"of them {prompts[0]!r}, so that text encoders are loaded again; set "
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
            for begin in range(0, len(prompts), KEPT_TOGETHER):
                shard = prompts[begin : begin + KEPT_TOGETHER]
                rows = []
                for start in range(0, len(shard), BATCH):
                    batch = shard[start : start + BATCH]
                    rows.append(self._side.embed(encoders[0], batch, self._tokens, self._device))
                    for reading in self._side.readings(encoders[0], batch, self._tokens):
                        place = (reading.encoder, reading.limit)
                        longer = sum(length > reading.limit for length in reading.lengths)
                        cut[place] = cut.get(place, 0) + longer
                keep(shard, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
                say(f"encoded {begin + len(shard)} of {len(prompts)} prompts")
        said = [f"{name} cuts {n} at {limit} tokens" for (name, limit), n in cut.items() if n]
        if said:
            warnings.warn(
                f"of {len(prompts)} prompts encoded now, {'; '.join(said)}; shorten them"
                " (model.text_tokens is the length of the longest encoder)",
                stacklevel=3,
            )

    @contextmanager
    def _encoders(self) -> Iterator[list[Any]]:
        """The pipeline's class with its text parts alone, on the device while it is needed.

        In a list that is emptied in the end: a name of the caller's own would keep it alive.
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
            # Asked for its width, which zeros take the place of an absent encoder in.
            loaded["transformer"] = self._pipeline.empty("transformer")
        maker = getattr(diffusers, self._pipeline.index["_class_name"])
        others = {
            part: None
            for part in ("scheduler", "vae", "transformer", *self._side.parts)
            if part not in loaded
        }
        made = [maker(**loaded, **others)]
        loaded.clear()
        try:
            yield made
        finally:
            made.clear()
            gc.collect()
            torch.cuda.empty_cache()  # does nothing where there is no such device


def token_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, with those that the tokenizer puts around it."""
    return [len(row) for row in tokenizer(texts, truncation=False, verbose=False).input_ids]


def plain(rows: dict[str, Tensor]) -> Conditioning:
    """Rows without a graph, on the CPU, where all of a file's worth of them have room."""
    return {name: value.detach().cpu() for name, value in rows.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that diffusers logs for every batch with a prompt that is cut."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
