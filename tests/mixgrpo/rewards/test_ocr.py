"""The reward `ocr`: rendered text is really read, and scored by the published rule."""

import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.ocr import OCR, likeness, quoted


def rendered(text: str, ink: str = "black", paper: str = "white") -> Tensor:
    """A picture [3, 256, 512] in [0, 1] that shows `text`, drawn by PIL."""
    picture = Image.new("RGB", (512, 256), paper)
    font = ImageFont.load_default(64)
    ImageDraw.Draw(picture).text((256, 128), text, fill=ink, font=font, anchor="mm", align="center")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def reward() -> OCR:
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    return OCR(threads=1)


def test_text_in_an_image_is_read_and_scored_against_the_quoted_one(reward: OCR) -> None:
    shown = ["Hello World", "open 24", "Hello", "Sale\nToday", ""]
    prompts = [
        'a sign that reads "Hello World"',
        'the words "OPEN 25" in neon, by "somebody"',  # one letter of six is another
        'a sign that reads "Hello World"',  # five of ten letters are missing
        'a poster: "sale today"',
        'a sign that reads "Hello World"',
    ]
    scores = reward.score(torch.stack([rendered(text) for text in shown]), prompts)
    expected = torch.tensor([1.0, 1 - 1 / 6, 0.5, 1.0, 0.0])
    torch.testing.assert_close(scores, expected)


def test_images_are_read_in_their_own_order_and_one_by_one(reward: OCR) -> None:
    images = torch.stack([rendered("left"), rendered("right"), rendered("centre")])
    prompts = ['"right"', '"right"', '"right"']
    together = reward.score(images, prompts)
    alone = torch.cat([reward.score(images[i : i + 1], prompts[:1]) for i in range(3)])
    assert together[1] == 1
    assert together[0] < 1
    assert together[2] < 1
    torch.testing.assert_close(together, alone)


def test_the_reader_gets_blue_green_red_bytes(monkeypatch: pytest.MonkeyPatch, reward: OCR) -> None:
    seen: list[np.ndarray] = []

    def read(pixels: np.ndarray) -> tuple[None, None]:
        seen.append(pixels)
        return None, None

    monkeypatch.setattr(reward, "_reader", read)
    image = torch.tensor([1.0, 0.5, -0.2]).view(1, 3, 1, 1).expand(1, 3, 40, 60)
    assert reward.score(image, ['"a"']).tolist() == [0]
    assert seen[0].shape == (40, 60, 3)
    assert seen[0].dtype == np.uint8
    assert seen[0][0, 0].tolist() == [0, 128, 255]


@cache
def distance(a: str, b: str) -> int:
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))


@given(read=st.text("abc ", max_size=7), wanted=st.text("abC", min_size=1, max_size=5))
def test_the_score_follows_the_definition(read: str, wanted: str) -> None:
    a, b = read.replace(" ", ""), wanted.lower()
    expected = 1.0 if b in a else 1 - min(distance(a, b), len(b)) / len(b)
    assert likeness(read, wanted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("kitten", "sitting", 1 - 3 / 7),  # the textbook's three edits
        ("welcome to open24 now", "Open 24", 1.0),  # it occurs
        ("a much longer text", "xyz", 0.0),  # no more than its own length
    ],
)
def test_scores_of_known_pairs(read: str, wanted: str, score: float) -> None:
    assert likeness(read, wanted) == pytest.approx(score)


def test_the_first_quoted_text_is_the_wanted_one() -> None:
    assert quoted('a cat says "Meow  now" and "no"') == "Meow  now"


@pytest.mark.parametrize("prompt", ["a cat", 'a 12" pizza', 'an empty sign ""', 'a blank "  "'])
def test_a_prompt_without_quoted_text_is_named(prompt: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quoted(prompt)
    assert repr(prompt) in str(caught.value)
    assert "double quotes" in str(caught.value)


def test_all_prompts_can_be_checked_ahead(reward: OCR) -> None:
    good = [f'a sign that reads "{i}"' for i in range(3)]
    reward.check(good)
    with pytest.raises(ConfigError, match=r"the prompt 'a cat' has no text in double quotes"):
        reward.check([*good, "a cat"])


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixgrpo\[ocr\]'"):
        OCR()
