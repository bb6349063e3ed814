"""The aesthetic predictor: the number, the head's and the tower's names."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.rewards.aesthetic import Aesthetic, Predictor

from .tiny_clip import (
    MEAN,
    STD,
    VIT_L,
    image_features,
    names_and_shapes,
    no_hub,
    pictures,
    random_state,
    resized,
    transformers_state,
    write_transformers,
)

PROMPTS = ["one", "two", "three"]


def head(width: int) -> dict[str, tuple[int, ...]]:
    """What sac+logos+ava1-l14-linearMSE.pth holds, on an embedding of `width`."""
    found: dict[str, tuple[int, ...]] = {}
    sizes = [width, 1024, 128, 64, 16, 1]
    for number, entering, leaving in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        found[f"layers.{number}.weight"] = (leaving, entering)
        found[f"layers.{number}.bias"] = (leaving,)
    return found


def random_head() -> dict[str, Tensor]:
    return {
        name: normal(shape, "head", name) / shape[-1] ** 0.5 for name, shape in head(24).items()
    }


def reward(folder: Path, **options: Any) -> Aesthetic:
    torch.save(random_head(), folder / "aesthetic-model.pth")
    tower = write_transformers(folder / "clip", random_state(), quick=True)
    return Aesthetic(checkpoint=str(folder), clip=tower, **options)


def test_the_score_is_the_authors_on_the_normalised_embedding(tmp_path: Path) -> None:
    made = reward(tmp_path, batch=2)
    images = pictures(3, 48, 96)
    middle = (resized(images, 32, 64)[..., 16:48].clamp(0, 1) - MEAN) / STD
    x = image_features(random_state(), middle, quick=True)
    x = x / x.square().sum(1, keepdim=True).sqrt()
    weights = random_head()
    for number in (0, 2, 4, 6, 7):
        x = x @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    scores = made.score(images, PROMPTS)
    assert x.max() - x.min() > 0.01
    torch.testing.assert_close(scores, x.squeeze(1), atol=1e-5, rtol=0)
    alone = [made.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), scores, atol=2e-6, rtol=0)


def test_the_module_is_frozen_with_its_dropout_off(tmp_path: Path) -> None:
    module = reward(tmp_path).module
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_the_real_files_have_the_names_and_shapes_of_vit_l_14_and_its_head() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    # huggingface.co/openai/clip-vit-large-patch14, config.json, vision_config
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        patch_size=14,
        image_size=224,
        projection_dim=768,
    )
    with torch.device("meta"):
        predictor = Predictor(CLIPVisionModelWithProjection(config), 768)
        empty = {name: torch.empty(s) for name, s in names_and_shapes(VIT_L).items()}
        tower = transformers_state({n: t for n, t in empty.items() if "visual" in n})
    wanted = {f"tower.{name}": tuple(t.shape) for name, t in tower.items()} | head(768)
    found = {name: tuple(p.shape) for name, p in predictor.named_parameters()}
    assert found == wanted
    assert sum(map(math.prod, head(768).values())) == 927_969  # the file has 3.71 MB
    assert sum(p.numel() for p in predictor.tower.parameters()) == 303_966_208


def test_another_head_and_another_tower_are_named_by_a_key(tmp_path: Path) -> None:
    tower = write_transformers(tmp_path / "clip", random_state(), quick=True)
    file = tmp_path / "linear.pth"  # of version 1 of the predictor
    torch.save({"weight": torch.zeros(1, 24), "bias": torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match=r"^reward aesthetic: .*linear.pth .*lacks layers.0.weig"):
        Aesthetic(checkpoint=str(file), clip=tower)
    torch.save({**random_head(), "layers.0.weight": torch.zeros(1024, 768)}, file)
    with pytest.raises(ConfigError, match=r"layers.0.weight is \[1024, 768\] and must be \[1024, "):
        Aesthetic(checkpoint=str(file), clip=tower)


def test_missing_weights_are_one_error_that_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(monkeypatch, tmp_path)
    for options, name in (
        ({}, "trl-lib/ddpo-aesthetic-predictor"),
        ({"checkpoint": str(tmp_path / "head.pth")}, "openai/clip-vit-large-patch14"),
    ):
        torch.save(random_head(), tmp_path / "head.pth")
        with pytest.raises(ConfigError, match=f"^reward aesthetic: .*run `hf download {name}[ `]"):
            Aesthetic(**options)
