"""The reward `aesthetic`: LAION's improved aesthetic predictor, sac+logos+ava1-l14-linearMSE."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixgrpo.files import hub as weights
from mixgrpo.rewards.clip import check_state, frozen, image_size, image_tower, read_state
from mixgrpo.rewards.preprocess import Preprocess

FILE = "aesthetic-model.pth"


class Predictor(nn.Module):
    """A CLIP's image tower and the head on it; linear layers without any activation between."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        """`width`: of the tower's embedding, 768 in ViT-L/14."""
        super().__init__()
        self.tower = tower
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores [B] of preprocessed images [B, 3, size, size]."""
        embedding = self.tower(pixels).image_embeds
        scores: Tensor = self.layers(functional.normalize(embedding, dim=-1))
        return scores.squeeze(-1)


class Aesthetic:
    """How much people would like the image, from about 1 to 10; prompts are not read.

    As in github.com/christophschuhmann/improved-aesthetic-predictor (simple_inference.py): OpenAI's
    CLIP ViT-L/14 on the middle of the image at 224 pixels, its embedding scaled to length 1.
    """

    name = "aesthetic"

    def __init__(
        self,
        *,
        checkpoint: str = "trl-lib/ddpo-aesthetic-predictor",
        revision: str | None = None,
        clip: str = "openai/clip-vit-large-patch14",
        batch: int = 16,
    ) -> None:
        """`checkpoint`: the file sac+logos+ava1-l14-linearMSE.pth, or a folder or a hub id where it
        is named aesthetic-model.pth. `clip`: a folder of transformers' CLIPModel, or a hub id.
        `batch`: images at once.
        """
        needed_by = f"reward {self.name}"
        file = weights.file(checkpoint, FILE, revision, needed_by)
        tower = image_tower(clip, None, needed_by)
        self.module = Predictor(tower, tower.visual_projection.out_features)
        state = read_state(file, needed_by)
        head = self.module.layers.state_dict(prefix="layers.")
        wanted = {name: tuple(t.shape) for name, t in head.items()}
        check_state(state, wanted, f"{needed_by}: {file}")
        self.module.load_state_dict(state, strict=False)
        frozen(self.module)
        self._preprocess, self._batch = Preprocess(image_size(tower)), batch

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in [0, 1]."""
        module = self.module.to(images.device)
        return torch.cat([module(self._preprocess(some)) for some in images.split(self._batch)])
