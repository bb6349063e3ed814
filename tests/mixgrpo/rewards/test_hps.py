"""HPS-v2.1: the number, the checkpoint's names, long prompts, and what is said of other files."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards import clip, hps
from mixgrpo.rewards.hps import HPS

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

PROMPTS = ["the cat", "a castle by the sea", "the cat"]


def reward(
    folder: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor], **options: Any
) -> HPS:
    """The reward with a checkpoint as its authors left it, of a tiny architecture."""
    monkeypatch.setattr(hps, "ARCHITECTURE", TINY)
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return HPS(checkpoint=str(folder), tokenizer=write_tokenizer(folder / "tokenizer"), **options)


def padded(images: Tensor) -> Tensor:
    """As hpsv2 preprocesses images [B, 3, 48, 96] to 32 pixels: 16 x 32 and black around it."""
    found = torch.zeros(len(images), 3, 32, 32)
    found[..., 8:24, :] = resized(images, 16, 32)
    return (found - MEAN) / STD


def test_the_score_is_the_cosine_of_the_authors_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: tensor.half().float() for name, tensor in random_state().items()}
    made = reward(tmp_path, monkeypatch, {name: t.half() for name, t in state.items()})
    images = (pictures(3, 48, 96) > 0.5).float()
    assert resized(images, 16, 32).max() > 1.05  # overshoots, and hpsv2 leaves it so
    scores = made.score(images, PROMPTS)
    wanted = cosines(state, padded(images), PROMPTS)
    assert wanted.max() - wanted.min() > 0.05
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)


def test_one_by_one_and_in_batches_the_scores_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reward(tmp_path, monkeypatch, random_state(), batch=2)
    images, prompts = pictures(5, 40, 40), ["the", "the cat sat", "ca", "the", "a b c d e f g"]
    together = made.score(images, prompts)
    alone = [made.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=0)


def test_a_prompt_is_cleaned_as_open_clip_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reward(tmp_path, monkeypatch, random_state())
    images = pictures(1, 32, 32)
    odd = made.score(images, ["  THE\n\u201ccat\u201d  &amp;amp; d\ufb01\u2019"])
    plain = made.score(images, ['the "cat" & dfi\''])
    assert torch.equal(odd, plain)


def test_a_long_prompt_is_cut_at_77_tokens_with_its_end_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state()
    made = reward(tmp_path, monkeypatch, state)
    images = pictures(3, 48, 96)
    prompts = ["the cat", "the sea " * 40, "ab " * 37 + "c"]  # the last one has 77 tokens
    with pytest.warns(UserWarning, match=r"^reward hps: .* first 77 tokens .* cut so far: 1, "):
        scores = made.score(images, prompts)
    torch.testing.assert_close(scores, cosines(state, padded(images), prompts), atol=1e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.score(images, prompts)


def test_prompts_that_are_cut_later_are_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = reward(tmp_path, monkeypatch, random_state(), batch=2)
    images, long = pictures(5, 32, 32), [f"{word} " * 100 for word in "abcde"]
    with pytest.warns(UserWarning, match="cut so far: 1, "):
        made.score(images[:1], long[:1])
    with pytest.warns(UserWarning, match="cut so far: 5, ") as said:
        made.score(images, long)
    assert len(said) == 1  # of the images of one call, not of each batch


@pytest.mark.parametrize("shown", [True, False])
def test_weights_are_loaded_without_a_progress_bar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    shown: bool,
) -> None:
    from transformers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", shown)
    reward(tmp_path, monkeypatch, random_state())
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == shown  # of others who load


def test_the_module_is_frozen_and_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = {name: t.half() for name, t in random_state().items()}
    module = reward(tmp_path, monkeypatch, halves).module
    assert not module.training
    assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(torch.float32, False)}


def test_the_real_checkpoint_has_the_names_and_shapes_of_open_clips_vit_h_14() -> None:
    from transformers import CLIPModel

    with torch.device("meta"):
        model = CLIPModel(clip.config(hps.ARCHITECTURE, "reward hps"))
    shapes = clip.shapes(model)
    assert shapes == names_and_shapes(VIT_H)
    assert len(shapes) == 686
    assert sum(map(math.prod, shapes.values())) == 986_109_441
    assert model.config.vision_config.num_attention_heads == 16
    assert model.config.text_config.num_attention_heads == 16
    assert model.config.vision_config.hidden_act == "gelu"


def test_a_checkpoint_of_another_architecture_is_named_by_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state()
    state["visual.proj"] = state["visual.proj"][:, :8]
    with pytest.raises(ConfigError, match=r"architecture: visual.proj is \[60, 8\] and must be"):
        reward(tmp_path, monkeypatch, state)
    del state["visual.proj"]
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"^reward hps: .* it lacks visual.proj$"):
        reward(tmp_path / "other", monkeypatch, state)
    more = {**random_state(), "logit_bias": torch.zeros(())}
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match=r"it has logit_bias as well$"):
        reward(tmp_path / "more", monkeypatch, more)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_text("<html>")
    with pytest.raises(ConfigError, match=r"^reward hps: .*weights\.pt holds no weights"):
        HPS(checkpoint=str(file))
    torch.save([1, 2], file)
    with pytest.raises(ConfigError, match=r"weights\.pt holds no weights by name"):
        HPS(checkpoint=str(file))


def test_missing_weights_are_one_error_that_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(monkeypatch, tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^reward hps: .*run `hf download xswu/HPSv2 HPS_v2.1_compressed.pt` where",
    ):
        HPS()
    with pytest.raises(ConfigError, match=r"^reward hps: there is no file or folder .*absent"):
        HPS(checkpoint=str(tmp_path / "absent"))


def test_a_tokenizer_of_another_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = {**TINY, "text_cfg": {**TINY["text_cfg"], "vocab_size": 600}}
    monkeypatch.setattr(hps, "ARCHITECTURE", larger)
    torch.save({"state_dict": random_state(larger)}, tmp_path / "hps.pt")
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="ends a prompt with token 516, and the model with 599"):
        HPS(checkpoint=str(tmp_path / "hps.pt"), tokenizer=tokenizer)
