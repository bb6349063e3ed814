"""PickScore: the number, its two scales, the checkpoint's names."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixgrpo.errors import ConfigError
from mixgrpo.rewards import clip, hps
from mixgrpo.rewards.pickscore import PickScore

from .tiny_clip import (
    MEAN,
    STD,
    VIT_H,
    cosines,
    names_and_shapes,
    no_hub,
    pictures,
    random_state,
    resized,
    transformers_state,
    write_tokenizer,
    write_transformers,
)


def reward(folder: Path, **options: Any) -> PickScore:
    tokenizer = write_tokenizer(folder / "tokenizer")
    checkpoint = write_transformers(folder / "model", random_state())
    return PickScore(checkpoint=checkpoint, tokenizer=tokenizer, **options)


def test_the_score_is_a_hundredth_of_the_authors_and_training_maps_18_to_26(
    tmp_path: Path,
) -> None:
    made = reward(tmp_path)
    images, prompts = pictures(3, 48, 96), ["the cat", "a castle by the sea", "the the the"]
    middle = resized(images, 32, 64)[..., 16:48].clamp(0, 1)
    state = random_state()
    wanted = math.exp(3.0) * cosines(state, (middle - MEAN) / STD, prompts)
    scores = made.score(images, prompts)
    torch.testing.assert_close(scores, wanted / 100, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.for_training(scores), (wanted - 18) / 8, atol=1e-4, rtol=0)
    trained = made.for_training(torch.tensor([0.18, 0.22, 0.26]))
    torch.testing.assert_close(trained, torch.tensor([0.0, 0.5, 1.0]), atol=1e-6, rtol=0)


def test_one_by_one_and_in_batches_the_scores_are_the_same(tmp_path: Path) -> None:
    made = reward(tmp_path, batch=2)
    images, prompts = pictures(3, 40, 40), ["the", "the cat sat on it", "ca"]
    alone = [made.score(images[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(made.score(images, prompts), torch.cat(alone), atol=2e-6, rtol=0)


def test_the_real_checkpoint_has_the_names_and_shapes_of_transformers_vit_h_14() -> None:
    from transformers import CLIPModel

    with torch.device("meta"):
        model = CLIPModel(clip.config(hps.ARCHITECTURE, "reward pickscore"))
        empty = {name: torch.empty(s) for name, s in names_and_shapes(VIT_H).items()}
        wanted = {name: tuple(t.shape) for name, t in transformers_state(empty).items()}
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert found == wanted
    assert sum(map(math.prod, found.values())) == 986_109_441


def test_a_checkpoint_of_another_architecture_is_named_by_a_key(tmp_path: Path) -> None:
    made = write_transformers(tmp_path / "model", random_state())
    file = Path(made) / "model.safetensors"
    state = load_file(file)
    del state["visual_projection.weight"]
    save_file(state, file)
    with pytest.raises(ConfigError, match=r"^reward pickscore: .* lacks visual_projection.weight$"):
        PickScore(checkpoint=made)
    (Path(made) / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ConfigError, match=r"is no CLIP: its config.json has the model_type blip"):
        PickScore(checkpoint=made)


def test_missing_weights_are_one_error_that_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(monkeypatch, tmp_path)
    command = "`hf download yuvalkirstain/PickScore_v1 config.json model.safetensors --revision v1`"
    with pytest.raises(ConfigError, match=f"^reward pickscore: .*run {command} where"):
        PickScore(revision="v1")
    made = write_transformers(tmp_path / "model", random_state())
    tokenizer = "`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K --include .*`"
    with pytest.raises(ConfigError, match=f"^reward pickscore: .*run {tokenizer} where"):
        PickScore(checkpoint=made)
    (Path(made) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no file model.safetensors$"):
        PickScore(checkpoint=made)
