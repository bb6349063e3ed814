"""CLIP score: open_clip's folder decides architecture and preprocessing."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards import clip
from mixgrpo.rewards.clipscore import CLIPScore

from .tiny_clip import (
    MEAN,
    STD,
    TINY,
    VIT_H,
    cosines,
    names_and_shapes,
    no_hub,
    pictures,
    random_state,
    resized,
    write_tokenizer,
)

DFN5B: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 378,
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
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}
"""The open_clip_config.json of apple/DFN5B-CLIP-ViT-H-14-384."""
PROMPTS = ["the cat", "a castle by the sea", "the the the"]


def write(folder: Path, quick: bool = True, **preprocess: Any) -> str:
    """A folder in open_clip's format, as `push_to_hf_hub` leaves one."""
    folder.mkdir()
    torch.save(random_state(), folder / "open_clip_pytorch_model.bin")
    config = {
        "model_cfg": {**TINY, "quick_gelu": quick},
        "preprocess_cfg": {**DFN5B["preprocess_cfg"], **preprocess},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def wanted(pixels: Tensor, quick: bool) -> Tensor:
    return cosines(random_state(), pixels, PROMPTS, quick)


def test_the_score_is_open_clips_cosine_with_quick_gelu_and_squashed_images(
    tmp_path: Path,
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    made = CLIPScore(checkpoint=write(tmp_path / "model"), tokenizer=tokenizer)
    images = pictures(3, 48, 96)
    squashed = (resized(images, 32, 32).clamp(0, 1) - MEAN) / STD
    exact = wanted(squashed, quick=True)
    torch.testing.assert_close(made.score(images, PROMPTS), exact, atol=1e-5, rtol=0)
    assert (exact - wanted(squashed, quick=False)).abs().max() > 1e-3
    alone = [made.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), exact, atol=1e-5, rtol=0)


def test_activation_crop_and_normalisation_are_those_of_the_folder(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    folder = write(
        tmp_path / "model", quick=False, resize_mode="shortest", mean=[0.5] * 3, std=[0.25] * 3
    )
    file = Path(folder) / "open_clip_pytorch_model.bin"
    save_file(torch.load(file), Path(folder) / "open_clip_model.safetensors")
    file.unlink()
    images = pictures(3, 48, 96)
    middle = resized(images, 32, 64)[..., 16:48].clamp(0, 1)
    scores = CLIPScore(checkpoint=folder, tokenizer=tokenizer, batch=2).score(images, PROMPTS)
    exact = wanted((middle - 0.5) / 0.25, quick=False)
    torch.testing.assert_close(scores, exact, atol=1e-5, rtol=0)


def test_the_real_checkpoint_has_the_names_and_shapes_of_dfn5b() -> None:
    from transformers import CLIPModel

    with torch.device("meta"):
        model = CLIPModel(clip.config(DFN5B["model_cfg"], "reward clipscore"))
    shapes = clip.shapes(model)
    assert shapes == names_and_shapes({**VIT_H, "vision_cfg": DFN5B["model_cfg"]["vision_cfg"]})
    assert shapes["visual.positional_embedding"] == (27 * 27 + 1, 1280)
    assert sum(map(math.prod, shapes.values())) == 986_714_881
    assert model.config.vision_config.hidden_act == "quick_gelu"
    assert model.config.text_config.hidden_act == "quick_gelu"
    assert model.config.vision_config.num_attention_heads == 16


@pytest.mark.parametrize(
    "held",
    [
        ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
        ["open_clip_pytorch_model.bin"],
    ],
)
def test_of_a_repository_with_weights_in_two_formats_one_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    """The hub: a folder, of which what is asked for arrives in another."""
    repository = Path(write(tmp_path / "repository"))
    save_file(random_state(), repository / "open_clip_model.safetensors")
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/clip", "v1")
        for file in [*held, "open_clip_config.json"]:
            if file in allow_patterns:
                shutil.copy(repository / file, cache)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    made = CLIPScore(checkpoint="owner/clip", revision="v1", tokenizer=tokenizer)
    assert {file.name for file in cache.iterdir()} == {held[0], "open_clip_config.json"}
    local = CLIPScore(checkpoint=str(repository), tokenizer=tokenizer)
    images = pictures(3, 48, 96)
    assert torch.equal(made.score(images, PROMPTS), local.score(images, PROMPTS))


def change(folder: str, section: str, key: str, value: object) -> None:
    file = Path(folder) / "open_clip_config.json"
    config = json.loads(file.read_text())
    part = config[section]
    for name in key.split(".")[:-1]:
        part = part[name]
    part[key.rsplit(".", 1)[-1]] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model_cfg", "vision_cfg.timm_model_name", "vit", "timm_model_name is of no plain CLIP"),
        ("model_cfg", "text_cfg.hf_model_name", "t5", "hf_model_name is of no plain CLIP"),
        ("model_cfg", "embed_dim", 16, r"text_projection is \[32, 24\] and must be \[32, 16\]"),
        ("model_cfg", "text_cfg", {"width": 32, "heads": 4}, "lacks layers"),
        ("preprocess_cfg", "resize_mode", "stretch", "resize_mode stretch is unknown"),
        ("preprocess_cfg", "interpolation", "nearest", "interpolation nearest is unknown"),
    ],
)
def test_what_is_no_plain_clip_is_named(
    tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    folder = write(tmp_path / "model")
    change(folder, section, key, value)
    with pytest.raises(ConfigError, match=f"^reward clipscore: .*{message}"):
        CLIPScore(checkpoint=folder, tokenizer=write_tokenizer(tmp_path / "tokenizer"))


def test_a_configuration_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (Path(folder) / "open_clip_config.json").write_text("{cut")
    with pytest.raises(ConfigError, match=r"^reward clipscore: .*config\.json is no JSON"):
        CLIPScore(checkpoint=folder)


def test_missing_weights_are_one_error_that_names_the_command_or_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(monkeypatch, tmp_path)
    command = "`hf download apple/DFN5B-CLIP-ViT-H-14-384 open_clip_config.json .*`"
    for checkpoint in ("", "hf-hub:"):
        with pytest.raises(ConfigError, match=f"^reward clipscore: .*run {command} where"):
            CLIPScore(checkpoint=f"{checkpoint}apple/DFN5B-CLIP-ViT-H-14-384")
    folder = write(tmp_path / "model")
    (tmp_path / "model" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"no file open_clip_model\.safetensors or open_clip_"):
        CLIPScore(checkpoint=folder)
