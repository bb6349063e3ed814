"""The reward `likeness`: how close a picture's mean colour is to the one its prompt asks for."""

from torch import Tensor

from painter import colours


class Likeness:
    name = "likeness"  # as the entry point

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """1 - distance [B], higher is better; images [B, 3, H, W] in [0, 1], B prompts."""
        wanted = colours(prompts).to(images.device)
        return 1 - (images.mean((2, 3)) - wanted).abs().mean(1)
