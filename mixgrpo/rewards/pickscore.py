"""The reward `pickscore`: PickScore v1 (Kirstain et al., arXiv 2305.01569)."""

from torch import Tensor

from mixgrpo.rewards.clip import clip_model, image_size
from mixgrpo.rewards.cosine import TOKENIZER, Cosine, Tokenizer
from mixgrpo.rewards.preprocess import Preprocess


class PickScore:
    """exp(logit scale) x cosine of image and prompt, which is about 20, reported as a hundredth.

    As on the authors' page (huggingface.co/yuvalkirstain/PickScore_v1), whose processor is that of
    laion/CLIP-ViT-H-14-laion2B-s32B-b79K: the shorter side becomes 224 pixels, the middle is kept,
    and a prompt is not cleaned before it is split into tokens.
    """

    name = "pickscore"

    def __init__(
        self,
        *,
        checkpoint: str = "yuvalkirstain/PickScore_v1",
        revision: str | None = None,
        tokenizer: str = TOKENIZER,
        batch: int = 16,
    ) -> None:
        """`checkpoint`: a folder of transformers' CLIPModel, or a hub id.

        `batch`: images at once.
        """
        needed_by = f"reward {self.name}"
        self.module = clip_model(checkpoint, revision, needed_by)
        self._cosine = Cosine(
            self.module,
            Tokenizer(tokenizer, self.module, needed_by),
            Preprocess(image_size(self.module)),
            batch,
        )

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """s / 100 [B] of images [B, 3, H, W] in [0, 1] and B prompts."""
        cosine = self._cosine(images, prompts)
        return self.module.logit_scale.exp() * cosine / 100

    def for_training(self, scores: Tensor) -> Tensor:
        """(s - 18) / 8 of scores s / 100, in which PickScore's usual range is about [0, 1]."""
        return (100 * scores - 18) / 8
