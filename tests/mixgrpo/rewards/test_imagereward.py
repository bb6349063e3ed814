"""The reward `imagereward`: the numbers of its authors' network, from a file as they publish it."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.blip import Judge, first_name
from mixgrpo.rewards.imagereward import ImageReward
from tests.mixgrpo.rewards.blip_oracle import MEAN, STD, TINY, Sizes, judge, random_weights, shapes

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
WORDS, UNKNOWN, CLS, SEP, DEC, ENC = 30522, 100, 101, 102, 30522, 30523
"""Of bert-base-uncased, and what BLIP adds."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def folder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageReward.pt, and a vocab.txt in which the word of token 200 is "word200"."""
    place = tmp_path_factory.mktemp("imagereward")
    torch.save(weights, place / "ImageReward.pt")
    special = {0: "[PAD]", UNKNOWN: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", 103: "[MASK]"}
    words = [special.get(i, f"word{i}") for i in range(WORDS)]
    (place / "vocab.txt").write_text("\n".join(words) + "\n")
    return place


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return ImageReward(checkpoint=str(folder), tokenizer=str(folder))


def encoded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The tokens of words of these numbers, cut and padded to 35, and the mask."""
    rows = [[CLS, *words[:33], SEP] for words in prompts]
    tokens = torch.tensor([row + [0] * (35 - len(row)) for row in rows])
    return tokens, torch.tensor([[1] * len(row) + [0] * (35 - len(row)) for row in rows])


def said(words: list[int]) -> str:
    return " ".join(f"word{i}" for i in words)


def test_the_network_is_that_of_the_papers(weights: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 224, 224, generator=generator)
    tokens, mask = encoded([[500], list(range(1000, 1040)), [7, 30521]])
    network = Judge(weights).double()
    scores = (network(pixels.double(), tokens, mask) - MEAN) / STD
    expected = judge(weights, pixels, tokens, mask)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.01


def test_the_published_names_shapes_and_size_are_those_of_the_network() -> None:
    published = {k: torch.empty(shape, device="meta") for k, shape in shapes(Sizes()).items()}
    network = Judge(published)
    own = {first_name(name): value.shape for name, value in network.state_dict().items()}
    unused = {f"blip.{m}_proj.{kind}" for m in ("vision", "text") for kind in ("weight", "bias")}
    assert own == {k: value.shape for k, value in published.items() if k not in unused}
    assert network.image_size == 224
    assert network.vision.config.num_attention_heads == 16
    assert network.text.config.num_attention_heads == 12
    # ImageReward.pt is listed with 1.79 GB on its page; float32 has four bytes.
    assert round(sum(value.numel() for value in published.values()) * 4 / 1e9, 2) == 1.79


def test_scores_are_those_of_the_authors_pipeline(
    reward: ImageReward, weights: dict[str, Tensor]
) -> None:
    prompts = [[400, 401, 402], [9000], list(range(2000, 2033))]
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 33 words fit
        scores = reward.score(images, [said(words).upper() for words in prompts])
    expected = judge(weights, (images - CLIP_MEAN) / CLIP_STD, *encoded(prompts))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5)


def test_a_resized_image_scores_as_with_pil(
    reward: ImageReward, weights: dict[str, Tensor]
) -> None:
    """PIL resizes 8-bit pixels and rounds them again, twice: that is all the difference."""
    noise = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(noise, (300, 450), mode="bilinear")
    images = (smooth * 255).round() / 255
    pictures = [Image.fromarray((i * 255).byte().permute(1, 2, 0).numpy()) for i in images]
    small = [
        p.resize((336, 224), Image.Resampling.BICUBIC).crop((56, 0, 280, 224)) for p in pictures
    ]
    pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in small])
    expected = judge(weights, (pixels - CLIP_MEAN) / CLIP_STD, *encoded([[300], [301]]))
    scores = reward.score(images, ["word300", "word301"])
    assert (expected[0] - expected[1]).abs() > 0.01
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-3)


def test_prompts_are_cut_at_35_tokens_with_a_warning_that_counts_them(
    folder: Path, weights: dict[str, Tensor]
) -> None:
    reward = ImageReward(checkpoint=str(folder / "ImageReward.pt"), tokenizer=str(folder))
    long = [list(range(k, k + 40)) for k in (1000, 2000, 3000)]
    images = torch.rand(4, 3, 224, 224)
    with pytest.warns(UserWarning, match=r"first 35 tokens .* cut so far: 2, "):
        scores = reward.score(images, [said(p) for p in (long[0], [500], long[1], long[1])])
    expected = judge(
        weights,
        (images - CLIP_MEAN) / CLIP_STD,
        *encoded([long[0], [500], long[1], long[1]]),
    )
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # known ones, and not twice as many
        reward.score(images[:2], [said(long[0]), said(long[2])])


def test_the_tokens_that_blip_adds_and_unknown_words_have_their_numbers(
    reward: ImageReward,
) -> None:
    tokens, mask = reward._tokens(["[ENC] word200, [DEC]\u00e9"])
    assert tokens[0, :7].tolist() == [CLS, ENC, 200, UNKNOWN, DEC, UNKNOWN, SEP]
    assert mask.sum() == 7


def test_images_score_the_same_alone_and_in_any_batch(folder: Path, reward: ImageReward) -> None:
    few = ImageReward(checkpoint=str(folder), tokenizer=str(folder), batch=2)
    images = torch.rand(5, 3, 64, 64)
    prompts = [said(list(range(300, 301 + i))) for i in range(5)]
    together = reward.score(images, prompts)
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(few.score(images, prompts), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def test_the_network_is_frozen_and_in_evaluation(reward: ImageReward) -> None:
    assert not reward.module.training
    assert not any(p.requires_grad for p in reward.module.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "lacks the weight"),
        ("mlp.layers.7.weight", "lacks the weight"),
        ("blip.visual_encoder.pos_embed", "lacks the weight"),
        ("mlp.layers.2.weight", "has shape"),
    ],
)
def test_another_checkpoint_is_refused_by_the_name_of_a_weight(
    folder: Path, weights: dict[str, Tensor], tmp_path: Path, change: str, message: str
) -> None:
    wrong = dict(weights)
    del wrong[change]
    if message == "has shape":
        wrong[change] = torch.zeros(3, 3)
    torch.save(wrong, tmp_path / "ImageReward.pt")
    with pytest.raises(ConfigError) as caught:
        ImageReward(checkpoint=str(tmp_path), tokenizer=str(folder))
    text = str(caught.value)
    assert change in text
    assert message in text
    assert str(tmp_path) in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_checkpoint_is_one_clear_error(
    folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "ImageReward.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ImageReward\.pt is not ImageReward's checkpoint"):
        ImageReward(checkpoint=str(tmp_path), tokenizer=str(folder))


def test_a_checkpoint_runs_no_code(folder: Path, tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"blip": Command()}, tmp_path / "ImageReward.pt")
    with pytest.raises(ConfigError):
        ImageReward(checkpoint=str(tmp_path), tokenizer=str(folder))
    assert not (tmp_path / "made").exists()


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    with pytest.raises(ConfigError, match="bert-base-uncased"):
        ImageReward(checkpoint=str(folder), tokenizer=str(tmp_path))


def test_missing_weights_name_the_command_that_gets_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="hf download THUDM/ImageReward"):
        ImageReward(tokenizer=str(folder))
    with pytest.raises(ConfigError, match="hf download google-bert/bert-base-uncased"):
        ImageReward(checkpoint=str(folder))
