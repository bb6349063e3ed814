"""The scenes' model, tiny and random, as a file that the configuration can name."""

from pathlib import Path

import torch

from mixgrpo.maths.randomness import normal


def tiny_model(folder: Path) -> Path:
    """Write the model into `folder`; returns its file."""
    from mixgrpo.scenes.model import TINY, random_model, save_model

    file = folder / "model.safetensors"
    model = random_model(TINY, 0)
    # FLUX begins with a last layer of zeros, behind which nothing could be told apart.
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parameter.copy_(0.1 * normal(tuple(parameter.shape), "tiny", name))
    save_model(file, TINY, model.state_dict())
    return file
