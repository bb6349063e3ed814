"""The reward `clipscore`: the raw cosine of a CLIP in open_clip's format, DFN5B's by default.

The default is the CLIP of Fang et al., "Data Filtering Networks" (arXiv 2309.17425).
"""

import json
from typing import Any

from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.rewards.clip import image_size, open_clip_model
from mixgrpo.rewards.cosine import TOKENIZER, Cosine, Tokenizer, open_clip_text
from mixgrpo.rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class CLIPScore:
    """The cosine of image and prompt, by the architecture and preprocessing of the checkpoint.

    As open_clip 3.3.0 scores with `hf-hub:apple/DFN5B-CLIP-ViT-H-14-384`, which is a ViT-H-14 with
    QuickGELU at 378 pixels whose images are squashed to a square.
    """

    name = "clipscore"

    def __init__(
        self,
        *,
        checkpoint: str = "apple/DFN5B-CLIP-ViT-H-14-384",
        revision: str | None = None,
        tokenizer: str = TOKENIZER,
        batch: int = 16,
    ) -> None:
        """`checkpoint`: a folder with open_clip_config.json and its weights, or a hub id.

        `batch`: images at once.
        """
        needed_by = f"reward {self.name}"
        checkpoint = checkpoint.removeprefix("hf-hub:")
        for name in FILES:  # one after the other: a repository may have both
            folder = weights.folder(checkpoint, revision, needed_by, [CONFIG, name])
            file = folder / name
            if file.is_file():
                break
        for found, what in ((file, " or ".join(FILES)), (folder / CONFIG, CONFIG)):
            if not found.is_file():
                raise ConfigError(f"{needed_by}: {checkpoint} has no file {what}")
        try:
            config = json.loads((folder / CONFIG).read_text())
        except ValueError as error:
            raise ConfigError(f"{needed_by}: {folder / CONFIG} is no JSON ({error})") from error
        self.module = open_clip_model(file, config.get("model_cfg", {}), needed_by)
        self._cosine = Cosine(
            self.module,
            Tokenizer(tokenizer, self.module, needed_by, open_clip_text),
            _preprocess(
                image_size(self.module),
                config.get("preprocess_cfg", {}),
                f"{needed_by}: {folder / CONFIG}",
            ),
            batch,
        )

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The raw cosine [B] of images [B, 3, H, W] in [0, 1] and B prompts."""
        return self._cosine(images, prompts)


def _preprocess(size: int, config: dict[str, Any], place: str) -> Preprocess:
    """The preprocessing of open_clip (open_clip/transform.py, image_transform) for a checkpoint."""
    resize = config.get("resize_mode", "shortest")
    interpolation = config.get("interpolation", "bicubic")
    if resize not in ("shortest", "longest", "squash"):
        raise ConfigError(f"{place}: resize_mode {resize} is unknown")
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"{place}: interpolation {interpolation} is unknown")
    mean, std = (tuple(config.get(k, v)) for k, v in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return Preprocess(size, resize, interpolation, mean, std)
