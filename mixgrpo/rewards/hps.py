"""The reward `hps`: Human Preference Score v2.1 (Wu et al., arXiv 2306.09341)."""

from torch import Tensor

from mixgrpo.files import hub as weights
from mixgrpo.rewards.clip import image_size, open_clip_model
from mixgrpo.rewards.cosine import TOKENIZER, Cosine, Tokenizer, open_clip_text
from mixgrpo.rewards.preprocess import Preprocess

FILE = "HPS_v2.1_compressed.pt"
ARCHITECTURE = {
    "embed_dim": 1024,
    "vision_cfg": {
        "image_size": 224,
        "layers": 32,
        "width": 1280,
        "head_width": 80,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 1024,
        "heads": 16,
        "layers": 24,
    },
}
"""open_clip's ViT-H-14 (open_clip/model_configs/ViT-H-14.json)."""


class HPS:
    """The cosine of image and prompt in a CLIP that was tuned on people's choices.

    As in the authors' package hpsv2 1.2.0 (github.com/tgxs002/HPSv2, hpsv2/img_score.py): the image
    as a tensor is resized so that its longer side has 224 pixels, black is added around it, and the
    prompt is read by open_clip's tokenizer. With torchvision before 0.17 that resizing was not
    antialiased; here it is. The authors compute in half precision, this in float32.
    """

    name = "hps"

    def __init__(
        self,
        *,
        checkpoint: str = "xswu/HPSv2",
        revision: str | None = None,
        tokenizer: str = TOKENIZER,
        batch: int = 16,
    ) -> None:
        """`checkpoint`: a file, a folder with HPS_v2.1_compressed.pt, or a hub id.

        `batch`: images at once.
        """
        needed_by = f"reward {self.name}"
        file = weights.file(checkpoint, FILE, revision, needed_by)
        self.module = open_clip_model(file, ARCHITECTURE, needed_by)
        self._cosine = Cosine(
            self.module,
            Tokenizer(tokenizer, self.module, needed_by, open_clip_text),
            Preprocess(image_size(self.module), resize="longest", clamp=False),
            batch,
        )

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The raw cosine [B] of images [B, 3, H, W] in [0, 1] and B prompts."""
        return self._cosine(images, prompts)
