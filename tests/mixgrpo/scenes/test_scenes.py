"""The embedded task: its prompts, pictures, scores and base model."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixgrpo.catalogue.scenes import SIZES, weights_file
from mixgrpo.errors import ConfigError
from mixgrpo.evaluation.held_out import evaluate, evaluation_noise
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.maths.steps import ode_step
from mixgrpo.models.scenes import ScenesPolicy
from mixgrpo.rewards.load import load_reward
from mixgrpo.scenes import clarity as clarity_module
from mixgrpo.scenes import prompts as scenes
from mixgrpo.scenes.clarity import CORRUPTIONS, clarity, corrupt
from mixgrpo.scenes.render import PALETTE, SPRITE, SPRITES, render
from mixgrpo.scenes.score import composition, palette, strict

HELD_OUT_SHA256 = "828381e321a3a5a113ed28b72162cf7c2366f205b2146cae72dc436d603a70bd"


def pictures(prompts: list[str], seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([render(scenes.parse(p), rng) for p in prompts]))


def drawing(*things: tuple[str, str, int, int]) -> Tensor:
    """One image [1, 3, 16, 16] of (colour, shape, row, column of the upper left corner)."""
    image = torch.zeros(1, 3, 16, 16)
    for colour, shape, row, column in things:
        spot = image[0, :, row : row + SPRITE, column : column + SPRITE]
        spot[:, torch.from_numpy(SPRITES[shape])] = torch.tensor(PALETTE[colour])[:, None]
    return image


class TestPrompts:
    def test_every_kind_is_there_once(self) -> None:
        prompts = scenes.all_prompts()
        assert len(prompts) == len(set(prompts)) == 12 + 36 + 528
        for prompt in ("a red square", "three green triangles", "a red cross above a blue square"):
            assert prompt in prompts

    def test_parse_says_what_the_words_say(self) -> None:
        red, blue = scenes.Thing("red", "cross"), scenes.Thing("blue", "square")
        assert scenes.parse("a red cross left of a blue square") == scenes.Scene(
            (red, blue), "left of"
        )
        assert scenes.parse("four red crosses") == scenes.Scene((red,) * 4)

    @pytest.mark.parametrize(
        "text", ["", "a pink square", "five red squares", "a red square above a red square"]
    )
    def test_other_texts_are_named(self, text: str) -> None:
        with pytest.raises(ValueError, match=repr(text)):
            scenes.parse(text)

    def test_split_is_by_content_and_recorded(self) -> None:
        held_out, train = set(scenes.held_out_prompts()), set(scenes.train_prompts())
        assert not held_out & train
        assert held_out | train == set(scenes.all_prompts())
        text = "\n".join(sorted(held_out))
        assert hashlib.sha256(text.encode()).hexdigest() == HELD_OUT_SHA256
        assert 0.10 < len(held_out) / len(scenes.all_prompts()) < 0.20

    def test_training_sees_every_word(self) -> None:
        seen = {word for p in scenes.train_prompts() for word in p.split()}
        assert seen == {word for p in scenes.all_prompts() for word in p.split()}


class TestScores:
    def test_renders_are_perfect(self) -> None:
        prompts = scenes.all_prompts() * 3
        images = pictures(prompts)
        assert images.dtype == torch.float32
        for score in (composition, strict, palette):
            values = score(images, prompts)
            assert values.dtype == torch.float32
            assert torch.equal(values, torch.ones(len(prompts)))

    def test_renders_vary_and_follow_the_generator(self) -> None:
        prompts = ["a red square"] * 20
        assert len(pictures(prompts).unique(dim=0)) > 10
        assert torch.equal(pictures(prompts, 3), pictures(prompts, 3))

    def test_another_prompts_picture_scores_low(self) -> None:
        prompts = scenes.all_prompts()
        images = pictures(prompts[100:] + prompts[:100])
        assert composition(images, prompts).mean() < 0.25
        assert strict(images, prompts).mean() < 0.01

    @pytest.mark.parametrize("flaw", ["empty", "full", "noise"])
    def test_no_scene_at_all_scores_nearly_nothing(self, flaw: str) -> None:
        image = {"empty": torch.zeros, "full": torch.ones, "noise": torch.rand}[flaw](1, 3, 16, 16)
        assert composition(image, ["two red squares"]) < 0.1

    @pytest.mark.parametrize(
        ("prompt", "things", "expected"),
        [
            # objects * number * (1 + place) / 2, each factor by hand
            ("a red square", [("red", "square", 2, 3)], 1.0),
            ("a red square", [("blue", "square", 2, 3)], 0.25),
            ("a red square", [("red", "triangle", 2, 3)], 0.25),
            ("a red square", [("blue", "triangle", 2, 3)], 0.0),
            ("a red square", [("red", "square", 0, 0), ("red", "square", 9, 9)], 1 / 2),
            ("a red square", [("red", "square", 0, 0), ("blue", "cross", 9, 9)], 1 / 2),
            ("three red squares", [("red", "square", 0, 0)], 1 / 3 * 1 / 3),
            (
                "two red squares",
                [("red", "square", 0, 0), ("red", "cross", 9, 9)],
                (1 + 0.25) / 2,
            ),
            (
                "a red cross above a blue square",
                [("red", "cross", 0, 3), ("blue", "square", 9, 5)],
                1.0,
            ),
            (
                "a red cross above a blue square",
                [("red", "cross", 9, 3), ("blue", "square", 0, 5)],
                1 / 2,
            ),
            (  # neither clearly above nor clearly beside
                "a red cross above a blue square",
                [("red", "cross", 0, 0), ("blue", "square", 9, 10)],
                1 / 2,
            ),
            ("a red cross above a blue square", [("red", "cross", 0, 3)], 1 / 2 * 1 / 2 * 1 / 2),
            (  # the square has the wrong colour: half of place is out of reach
                "a red cross above a blue square",
                [("red", "cross", 0, 3), ("green", "square", 9, 5)],
                (1 + 0.25) / 2 * 1 / 2,
            ),
            (
                "a red cross above a blue square",
                [("red", "cross", 0, 3), ("blue", "square", 9, 5), ("green", "cross", 9, 10 - 10)],
                2 / 3,
            ),
        ],
    )
    def test_partial_credit(
        self, prompt: str, things: list[tuple[str, str, int, int]], expected: float
    ) -> None:
        image = drawing(*things)
        assert composition(image, [prompt]).item() == pytest.approx(expected)
        assert strict(image, [prompt]).item() == float(expected == 1.0)

    def test_residue_costs_palette_and_nothing_else(self) -> None:
        image = drawing(("red", "square", 2, 3))
        residue = image + 0.15 * (image.sum(1, keepdim=True) == 0)
        assert strict(residue, ["a red square"]) == 1
        assert palette(residue, ["a red square"]) < 0.6

    def test_unknown_prompt_is_named(self) -> None:
        with pytest.raises(ValueError, match="a pink square"):
            composition(torch.zeros(1, 3, 16, 16), ["a pink square"])


class TestClarity:
    def test_clean_pictures_look_clean(self) -> None:
        prompts = scenes.all_prompts()
        values = clarity(pictures(prompts), prompts)
        assert values.shape == (len(prompts),)
        assert values.dtype == torch.float32
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.mean() > 0.9

    @pytest.mark.parametrize("how", CORRUPTIONS)
    def test_corruption_costs_the_more_the_stronger(self, how: str) -> None:
        prompts = scenes.all_prompts()[::3]
        images = pictures(prompts, seed=5)
        rng = np.random.default_rng(6)
        means = [clarity(images, prompts).mean()]
        for severity in (0.3, 0.6, 0.9):
            spoilt = [corrupt(image, how, severity, rng) for image in images.numpy()]
            means.append(clarity(torch.from_numpy(np.stack(spoilt)), prompts).mean())
        assert means == sorted(means, reverse=True)
        assert means[0] - means[1] > 0.05

    def test_training_follows_the_seed(self) -> None:
        first, again = (clarity_module.train(seed=1, iterations=3, batch=4) for _ in range(2))
        for a, b in zip(first.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b)


PROMPTS = ["a red square", "three green triangles", "a red cross left of a blue square"]


@pytest.fixture(scope="module")
def policy() -> ScenesPolicy:
    return ScenesPolicy.load()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class TestPolicy:
    def test_velocity_is_the_same_every_time(self, policy: ScenesPolicy, latents: Tensor) -> None:
        conditioning = policy.encode(PROMPTS)
        assert all(len(rows) == 3 for rows in conditioning.values())
        first = policy.velocity(latents, 0.7, conditioning)
        assert first.shape == latents.shape
        assert first.dtype == latents.dtype
        with torch.no_grad():  # as in a rollout; the first GRPO ratio is exactly 1 only if equal
            assert torch.equal(first, policy.velocity(latents, 0.7, policy.encode(PROMPTS)))

    @pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.full((3,), 0.7)])
    def test_sigma_may_be_a_number_or_a_tensor(
        self, policy: ScenesPolicy, latents: Tensor, sigma: Tensor
    ) -> None:
        conditioning = policy.encode(PROMPTS)
        expected = policy.velocity(latents, 0.7, conditioning)
        assert torch.equal(policy.velocity(latents, sigma, conditioning), expected)

    def test_sigma_is_not_rounded(self, policy: ScenesPolicy, latents: Tensor) -> None:
        conditioning = policy.encode(PROMPTS)
        a, b = (policy.velocity(latents, s, conditioning) for s in (0.7001, 0.7004))
        assert not torch.equal(a, b)

    def test_each_row_has_its_own_sigma_and_prompt(
        self, policy: ScenesPolicy, latents: Tensor
    ) -> None:
        together = policy.velocity(latents, torch.tensor([0.9, 0.5, 0.1]), policy.encode(PROMPTS))
        for i, sigma in enumerate([0.9, 0.5, 0.1]):
            alone = policy.velocity(latents[i : i + 1], sigma, policy.encode(PROMPTS[i : i + 1]))
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)

    def test_order_of_words_matters(self, policy: ScenesPolicy, latents: Tensor) -> None:
        texts = ["a red cross above a blue square", "a blue square above a red cross"]
        a, b = (policy.velocity(latents[:1], 0.9, policy.encode([t])) for t in texts)
        assert (a - b).abs().max() > 0.05

    def test_only_the_transformer_trains(self, policy: ScenesPolicy, latents: Tensor) -> None:
        parameters = policy.trainable_parameters()
        assert list(parameters) == list(policy.trainable_parameters())
        policy.velocity(latents, 0.5, policy.encode(PROMPTS)).square().mean().backward()
        unused = [name for name, p in parameters.items() if p.grad is None]
        frozen = [p.grad for p in policy.model.text.parameters() if p.grad is not None]
        policy.model.zero_grad()
        assert not unused
        assert not frozen

    def test_float64(self) -> None:
        policy = ScenesPolicy.tiny(0).to(dtype=torch.float64)
        latents = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        v = policy.velocity(latents, 0.5, policy.encode(PROMPTS[:2]))
        assert v.dtype == torch.float64
        single = ScenesPolicy.tiny(0)
        w = single.velocity(latents.float(), 0.5, single.encode(PROMPTS[:2]))
        torch.testing.assert_close(v.float(), w, atol=1e-4, rtol=1e-4)

    def test_decode_gives_images(self) -> None:
        policy = ScenesPolicy.tiny(0)
        clean = pictures(PROMPTS)
        assert torch.equal(policy.decode(clean * 2 - 1), clean)
        assert policy.decode(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]

    def test_unknown_prompt_is_named(self) -> None:
        with pytest.raises(ValueError, match="a pink square"):
            ScenesPolicy.tiny(0).encode(["a pink square"])


class TestCheckpoints:
    def test_tiny_follows_its_seed_and_leaves_the_global_generator(self) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        a, b, c = (ScenesPolicy.tiny(s).trainable_parameters() for s in (1, 1, 2))
        assert torch.equal(torch.rand(1), expected)
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not all(torch.equal(a[k], c[k]) for k in a)

    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        from mixgrpo.scenes.model import save_model

        policy = ScenesPolicy.tiny(0)
        path = tmp_path / "tiny.safetensors"
        save_model(path, policy.model.config, policy.model.state_dict())
        loaded = ScenesPolicy.load(str(path))
        latents = torch.randn(3, 3, 16, 16)
        first, second = (p.velocity(latents, 0.5, p.encode(PROMPTS)) for p in (policy, loaded))
        assert torch.equal(first, second)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone.safetensors: there is no such file"):
            ScenesPolicy.load(str(tmp_path / "gone.safetensors"))

    def test_a_wrong_file_is_named(self, tmp_path: Path) -> None:
        text, other = tmp_path / "text.safetensors", tmp_path / "other.safetensors"
        text.write_text("no weights")
        save_file({"a": torch.zeros(1)}, other)
        with pytest.raises(ConfigError, match=r"text.safetensors: not a safetensors file"):
            ScenesPolicy.load(str(text))
        with pytest.raises(ConfigError, match=r"other.safetensors: not a checkpoint of the scenes"):
            ScenesPolicy.load(str(other))


def test_the_sizes_differ_in_size_and_in_what_they_can() -> None:
    means = []
    prompts = scenes.held_out_prompts()[::4]
    for size in SIZES:
        policy = ScenesPolicy.load(size)
        description = json.loads(weights_file(size).with_suffix(".json").read_text())
        count = sum(p.numel() for p in policy.model.transformer.parameters())
        assert count == description["parameters"]["transformer"]
        noise = evaluation_noise(0, prompts, 2, policy.latent_shape)
        scores = evaluate(
            policy, policy.velocity, [load_reward("composition")], prompts, noise, 25, 1.0
        )
        means.append(float(scores.scores["composition"].mean()))
        recorded = description["scores"]["held_out"]["shift_1"]["composition"]
        assert means[-1] == pytest.approx(recorded, abs=0.12)
    assert means == sorted(means)


def test_the_shipped_base_is_half_right(policy: ScenesPolicy) -> None:
    """Good enough to learn from its own samples, with room to improve."""
    prompts = policy.held_out_prompts()
    latents = evaluation_noise(0, prompts, 2, policy.latent_shape)
    prompts = [p for p in prompts for _ in range(2)]
    sigmas = sigma_schedule(25, shift=1.0)
    with torch.no_grad():
        conditioning = policy.encode(prompts)
        for now, following in pairwise(sigmas):
            v = policy.velocity(latents, now, conditioning)
            latents = ode_step(latents, v, now, following)
    images = policy.decode(latents)
    assert 0.35 < strict(images, prompts).mean() < 0.65
    assert palette(images, prompts).mean() > 0.93
