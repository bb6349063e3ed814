"""Qwen-Image: the numbers of diffusers' own pipeline, with its guidance that keeps lengths."""

from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.maths.randomness import normal
from mixgrpo.models.adapters import add_lora
from mixgrpo.models.flux import pack
from mixgrpo.models.qwen_image import QwenImagePolicy
from mixgrpo.models.sizes import schedule_shift
from mixgrpo.settings.config import ComputeConfig, ModelConfig
from tests.mixgrpo.models.tiny import apart, sampled, write_qwen_image

PROMPTS = ["a red cross", "a blue square near a tree"]
SIZE = {"height": 32, "width": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen_image(tmp_path_factory.mktemp("qwen"), terminal=None)


def load(folder: Path, compute: ComputeConfig | None = None, **model: Any) -> QwenImagePolicy:
    settings: dict[str, Any] = {
        **{"name": "qwen-image", "checkpoint": str(folder), "text_tokens": 64},
        **SIZE,
        **model,
    }
    return QwenImagePolicy.load(ModelConfig(**settings), compute or ComputeConfig())


@pytest.mark.parametrize("cfg", [None, 4.0])
def test_from_the_same_noise_it_gives_the_latents_and_images_of_diffusers(
    folder: Path, cfg: float | None
) -> None:
    from diffusers import QwenImagePipeline

    policy = load(folder, cfg=cfg)
    noise, latents, images = sampled(policy, PROMPTS)
    theirs = QwenImagePipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    asked = {
        "prompt": PROMPTS,
        **SIZE,
        "num_inference_steps": 5,
        "latents": pack(noise),
        **({"negative_prompt": [" ", " "], "true_cfg_scale": cfg} if cfg else {}),
    }
    assert apart(pack(latents), theirs(**asked, output_type="latent").images) < 1e-4
    assert apart(images, theirs(**asked, output_type="pt").images) < 1e-3
    other = {**asked, "negative_prompt": [" ", " "], "true_cfg_scale": 2.0}
    assert apart(pack(latents), theirs(**other, output_type="latent").images) > 1e-2


def test_a_prompts_row_does_not_depend_on_those_beside_it(folder: Path) -> None:
    policy = load(folder)
    rows = policy.encode(PROMPTS)
    alone = policy.encode(PROMPTS[:1])
    assert rows["text"].shape == (2, 64, 32)
    # Every letter is a token here, and five more end the template.
    assert rows["mask"].sum(1).tolist() == [len(prompt) + 5 for prompt in PROMPTS]
    torch.testing.assert_close(alone["text"], rows["text"][:1])
    assert torch.equal(alone["mask"], rows["mask"][:1])


def test_padding_is_not_read(folder: Path) -> None:
    policy = load(folder)
    x, rows = normal((2, *policy.latent_shape), "x"), policy.encode(PROMPTS)
    velocity = policy.velocity(x, 0.4, rows)
    noisy = {**rows, "text": rows["text"] + (~rows["mask"]).unsqueeze(-1) * 10.0}
    assert apart(policy.velocity(x, 0.4, noisy), velocity) < 1e-6
    assert apart(policy.velocity(x, 0.4, {**rows, "text": rows["text"].flip(0)}), velocity) > 1e-3


@pytest.mark.parametrize("autocast", [False, True])
def test_the_network_is_told_the_exact_time(folder: Path, autocast: bool) -> None:
    compute = ComputeConfig(precision="bf16" if autocast else "fp32")
    policy = load(folder, compute, train="lora")
    times: list[Tensor] = []
    policy.network.get_submodule("time_text_embed.time_proj").register_forward_pre_hook(
        lambda _, arguments: times.append(arguments[0])
    )
    sigma = torch.tensor([0.99853, 0.2])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        policy.velocity(normal((2, *policy.latent_shape), "x"), sigma, policy.encode(PROMPTS))
    # The projection itself multiplies by 1000.
    torch.testing.assert_close(times[0], sigma, rtol=2e-7, atol=0)


def test_the_shift_of_the_schedule_lies_on_the_line_of_qwen_image() -> None:
    # scheduler_config.json of Qwen/Qwen-Image
    scheduler = {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 8192,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "time_shift_type": "exponential",
    }
    assert schedule_shift(scheduler, 4096) == pytest.approx(exp(0.5 + 0.4 * 3840 / 7936))
    linear = {**scheduler, "time_shift_type": "linear"}
    assert schedule_shift(linear, 8192) == pytest.approx(0.9)


def test_adapters_find_the_layers_of_both_streams(folder: Path) -> None:
    targets = ("to_q", "to_out.0", "add_q_proj", "to_add_out", "img_mlp.net.2")
    policy = load(folder, train="lora")
    add_lora(policy.network, ModelConfig(train="lora", lora_targets=targets), 0)
    assert len(policy.trainable_parameters()) == 2 * 2 * len(targets)


def test_tiles_are_as_large_as_the_pipelines_own_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKLQwenImage

    wide = {"height": 64, "width": 720}  # diffusers' own tiles are 256 pixels wide
    latents = normal((2, 16, 8, 90), "latents")
    tiled = load(folder, ComputeConfig(vae_tiling=True), **wide)
    whole = load(folder, **wide).decode(latents)
    torch.testing.assert_close(tiled.decode(latents), whole, rtol=0, atol=2e-4)
    calls: list[int] = []
    real = AutoencoderKLQwenImage.tiled_decode

    def counted(self: Any, z: Tensor, return_dict: bool = True) -> Any:
        calls.append(z.shape[-1])
        return real(self, z, return_dict=return_dict)

    monkeypatch.setattr(AutoencoderKLQwenImage, "tiled_decode", counted)
    for width, expected in ((1024, []), (1040, [130])):
        large = load(folder, ComputeConfig(vae_tiling=True), height=32, width=width)
        images = large.decode(normal((1, *large.latent_shape), "latents"))
        assert images.shape == (1, 3, 32, width)
        assert calls == expected
