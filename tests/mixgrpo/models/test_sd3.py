"""SD3: the numbers of diffusers' own pipeline, with guidance in one forward of twice as many."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.models.adapters import add_lora
from mixgrpo.models.sd3 import SD3Policy
from mixgrpo.settings.config import ComputeConfig, ModelConfig
from tests.mixgrpo.models.tiny import apart, sampled, write_sd3

PROMPTS = ["a red cross", "a blue square left of a tree"]
SIZE = {"height": 32, "width": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("sd3"))


def load(folder: Path, compute: ComputeConfig | None = None, **model: Any) -> SD3Policy:
    settings: dict[str, Any] = {"name": "sd3", "checkpoint": str(folder), **SIZE, **model}
    return SD3Policy.load(ModelConfig(**settings), compute or ComputeConfig())


def theirs(folder: Path, noise: Tensor, guidance: float, kind: str, **without: None) -> Any:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    steps = 5
    return pipeline(
        prompt=PROMPTS,
        **SIZE,
        # Its own would be spaced from 1 to the shifted 1/1000 and then shifted again.
        sigmas=np.linspace(1, 1 / steps, steps),
        latents=noise,
        guidance_scale=guidance,
        output_type=kind,
    ).images


@pytest.mark.parametrize("cfg", [None, 4.5])
def test_from_the_same_noise_it_gives_the_latents_and_images_of_diffusers(
    folder: Path, cfg: float | None
) -> None:
    policy = load(folder, cfg=cfg)
    noise, latents, images = sampled(policy, PROMPTS)
    assert policy.dynamic_shift == 3.0
    assert policy.encode(PROMPTS)["text"].shape == (2, 77 + 256, 96)
    assert apart(latents, theirs(folder, noise, cfg or 1.0, "latent")) < 1e-4
    assert apart(images, theirs(folder, noise, cfg or 1.0, "pt")) < 1e-3
    assert apart(latents, theirs(folder, noise, 2.0, "latent")) > 1e-2


def test_without_t5_zeros_take_its_place_as_in_diffusers(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path, t5=False)
    policy = load(folder, cfg=4.5)
    noise, latents, _ = sampled(policy, PROMPTS)
    text = policy.encode(PROMPTS)["text"]
    assert text.shape == (2, 77 + 256, 96)
    assert not text[:, 77:].any()
    assert text[:, :77].any()
    without = {"text_encoder_3": None, "tokenizer_3": None}
    assert apart(latents, theirs(folder, noise, 4.5, "latent", **without)) < 1e-4


def test_guidance_leads_from_the_empty_prompt_in_one_forward(folder: Path) -> None:
    policy, plain = load(folder, cfg=3.0), load(folder)
    x = normal((2, *policy.latent_shape), "x")
    received: list[Tensor] = []
    policy.network.register_forward_pre_hook(
        lambda _, __, named: received.append(named["hidden_states"]), with_kwargs=True
    )
    velocity = policy.velocity(x, torch.tensor([0.3, 0.8]), policy.encode(PROMPTS))
    each = []
    for row, sigma in enumerate((0.3, 0.8)):
        prompted = plain.velocity(x[row : row + 1], sigma, plain.encode([PROMPTS[row]]))
        empty = plain.velocity(x[row : row + 1], sigma, plain.encode([""]))
        each.append(empty + 3.0 * (prompted - empty))
    assert [len(batch) for batch in received] == [4]
    assert apart(velocity, torch.cat(each)) < 1e-5
    velocity.sum().backward()
    assert all(
        parameter.grad is not None
        for name, parameter in policy.trainable_parameters().items()
        # The last block's text is not read any more.
        if not name.startswith("transformer_blocks.1.norm1_context")
    )


def test_the_negative_row_is_expanded_not_copied(folder: Path) -> None:
    rows = load(folder, cfg=2.0).encode(PROMPTS * 3)
    assert rows.keys() == {"text", "pooled", "negative_text", "negative_pooled"}
    assert {len(row) for row in rows.values()} == {6}
    assert rows["negative_text"].stride(0) == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_the_network_is_told_the_exact_time(folder: Path, autocast: bool) -> None:
    compute = ComputeConfig(precision="bf16" if autocast else "fp32")
    policy = load(folder, compute, train="lora", cfg=2.0)
    received: list[Tensor] = []
    policy.network.get_submodule("time_text_embed.time_proj").register_forward_pre_hook(
        lambda _, arguments: received.append(arguments[0])
    )
    sigma = torch.tensor([0.99853, 0.2])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        policy.velocity(normal((2, *policy.latent_shape), "x"), sigma, policy.encode(PROMPTS))
    assert torch.equal(received[0], torch.cat([sigma, sigma]) * 1000)


def test_adapters_find_the_layers_of_both_attentions(folder: Path) -> None:
    model = ModelConfig(name="sd3", train="lora")
    policy = load(folder, train="lora")
    add_lora(policy.network, model, 0)
    adapted = [n for n in policy.trainable_parameters() if "lora_A" in n]
    # Two blocks, of which the first has a second attention of the image alone.
    assert len(adapted) == 3 * len(model.lora_targets)
    assert sum(".attn2." in name for name in adapted) == len(model.lora_targets)
    policy = load(folder, train="lora")
    both = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    add_lora(policy.network, model.model_copy(update={"lora_targets": both}), 0)
    # The last block writes no text.
    assert len(policy.trainable_parameters()) == 2 * (3 + 4)


def test_an_image_beyond_the_learned_positions_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.height 208: must be at most 192; 192 is nearest"):
        load(folder, height=208)
    assert load(folder, height=None, width=None).latent_shape == (16, 8, 8)


def test_a_choice_of_attention_that_would_change_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute.attention native: .* in one way only"):
        load(folder, ComputeConfig(attention="native"))
