"""Preprocessing on tensors is PIL's, but for the rounding to 8 bits on PIL's way."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from mixgrpo.rewards.preprocess import Preprocess

from .tiny_clip import MEAN, STD, cosines, pictures, random_state, resized

SIZES = [(32, 32), (64, 64), (90, 61), (61, 90), (20, 48), (300, 200)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squashed_images_are_those_of_pil(height: int, width: int) -> None:
    images = pictures(2, height, width)
    wanted = (resized(images, 32, 32).clamp(0, 1) - MEAN) / STD
    torch.testing.assert_close(Preprocess(32, "squash")(images), wanted, atol=2e-5, rtol=0)


# Resized to and cropped at, by hand after torchvision's Resize(32) and CenterCrop(32).
CROPPED = [
    (64, 64, (32, 32), (0, 0)),
    (90, 61, (47, 32), (8, 0)),  # 47.2; 15 / 2 is 7.5, rounded to the even 8
    (40, 64, (32, 51), (0, 10)),  # 51.2; 19 / 2 is 9.5, to 10
    (20, 33, (32, 52), (0, 10)),  # 52.8 is cut to 52
]


@pytest.mark.parametrize(("height", "width", "size", "corner"), CROPPED)
def test_the_middle_of_an_image_is_kept(
    height: int, width: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    images = pictures(2, height, width)
    top, left = corner
    cropped = resized(images, *size)[..., top : top + 32, left : left + 32]
    wanted = (cropped.clamp(0, 1) - MEAN) / STD
    torch.testing.assert_close(Preprocess(32)(images), wanted, atol=2e-5, rtol=0)


# Resized to, and black above, below, left and right, by hand after HPSv2's ResizeMaxSize(32).
PADDED = [
    (64, 64, (32, 32), (0, 0, 0, 0)),
    (90, 61, (32, 22), (0, 0, 5, 5)),
    (90, 58, (32, 21), (0, 0, 5, 6)),
    (40, 64, (20, 32), (6, 6, 0, 0)),
]


@pytest.mark.parametrize(("height", "width", "size", "black"), PADDED)
def test_black_is_added_around_a_whole_image(
    height: int, width: int, size: tuple[int, int], black: tuple[int, int, int, int]
) -> None:
    images = pictures(2, height, width)
    above, below, left, right = black
    wanted = torch.zeros(2, 3, 32, 32)
    wanted[..., above : 32 - below, left : 32 - right] = resized(images, *size)
    made = Preprocess(32, "longest", clamp=False)(images)
    torch.testing.assert_close(made, (wanted - MEAN) / STD, atol=2e-5, rtol=0)


def test_mean_and_deviation_are_the_given_ones() -> None:
    made = Preprocess(32, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([1.0, 0.75, 0.5]))


def through_pil(images: Tensor, size: int) -> Tensor:
    """The authors' way: an image of 8 bits, resized to 8 bits."""
    found = []
    for image in images:
        array = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        small = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        found.append(pixels.view(size, size, 3).permute(2, 0, 1) / 255)
    return torch.stack(found)


def test_what_rounding_to_8_bits_adds_is_less_than_a_level_and_little_in_a_score() -> None:
    """Measured: 0.86 of 255 levels at most, 0.26 in the mean, and in a random CLIP at most 0.0045
    in cosines that lie 0.54 apart."""
    images = pictures(8, 256, 256)
    tensors = Preprocess(32)(images)
    rounded = (through_pil(images, 32) - MEAN) / STD
    levels = ((tensors - rounded) * STD * 255).abs()
    assert 0.5 < levels.max() < 1
    assert 0.2 < levels.mean() < 0.3
    state, prompts = random_state(), ["the cat"] * 8
    scores = cosines(state, tensors, prompts)
    apart = (scores - cosines(state, rounded, prompts)).abs().max()
    assert apart < 0.01
    assert scores.max() - scores.min() > 0.5
