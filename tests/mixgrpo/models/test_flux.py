"""FLUX: the numbers of diffusers' own pipeline, and the exact time in every precision."""

from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.models.adapters import add_lora
from mixgrpo.models.flux import FluxPolicy, pack, unpack
from mixgrpo.models.sizes import image_size, schedule_shift
from mixgrpo.settings.config import ComputeConfig, ModelConfig
from tests.mixgrpo.models.tiny import apart, sampled, write_flux

PROMPTS = ["a red cross", "a blue square left of a tree"]
SIZE = {"height": 32, "width": 64}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("schnell"), guidance=False)


def load(folder: Path, compute: ComputeConfig | None = None, **model: Any) -> FluxPolicy:
    settings: dict[str, Any] = {"name": "flux", "checkpoint": str(folder), **SIZE, **model}
    return FluxPolicy.load(ModelConfig(**settings), compute or ComputeConfig())


def pipeline(folder: Path) -> Any:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance", [None, 7.0])
def test_from_the_same_noise_dev_gives_the_latents_and_images_of_diffusers(
    dev: Path, guidance: float | None
) -> None:
    policy = load(dev, guidance=guidance)
    noise, latents, images = sampled(policy, PROMPTS)
    asked = {
        "prompt": PROMPTS,
        **SIZE,
        "num_inference_steps": 5,
        "latents": pack(noise),
        "guidance_scale": guidance or 3.5,
    }
    theirs = pipeline(dev)
    assert policy.latent_shape == (16, 4, 8)
    assert apart(pack(latents), theirs(**asked, output_type="latent").images) < 1e-5
    assert apart(images, theirs(**asked, output_type="pt").images) < 1e-5
    other = theirs(**{**asked, "guidance_scale": 1.0}, output_type="latent").images
    assert apart(pack(latents), other) > 1e-3


def test_from_the_same_noise_schnell_gives_the_latents_of_diffusers(schnell: Path) -> None:
    policy = load(schnell)
    noise, latents, _ = sampled(policy, PROMPTS, steps=4)
    theirs = pipeline(schnell)(
        prompt=PROMPTS,
        **SIZE,
        num_inference_steps=4,
        latents=pack(noise),
        guidance_scale=0.0,
        max_sequence_length=256,
        output_type="latent",
    ).images
    assert policy.encode(PROMPTS)["text"].shape == (2, 256, 32)
    assert apart(pack(latents), theirs) < 1e-5


def test_the_shift_of_the_schedule_lies_on_the_line_of_flux() -> None:
    # scheduler_config.json of FLUX.1-dev
    scheduler = {
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
    assert schedule_shift(scheduler, 256) == pytest.approx(exp(0.5))
    assert schedule_shift(scheduler, 4096) == pytest.approx(exp(1.15))  # 1024 x 1024
    # 720 x 720: 45 x 45 tokens
    assert schedule_shift(scheduler, 2025) == pytest.approx(exp(0.5 + 0.65 * 1769 / 3840))
    assert schedule_shift({"shift": 1.0, "use_dynamic_shifting": False}, 2025) == 1.0  # schnell


def test_tokens_are_packed_as_diffusers_packs_them() -> None:
    from diffusers import FluxPipeline

    latents = normal((2, 16, 4, 6), "pack")
    packed = FluxPipeline._pack_latents(latents, 2, 16, 4, 6)
    assert torch.equal(pack(latents), packed)
    assert torch.equal(unpack(packed, 4), latents)


def _velocity(policy: FluxPolicy, sigma: float | Tensor, autocast: bool = False) -> Tensor:
    x = normal((2, *policy.latent_shape), "x")
    conditioning = policy.encode(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return policy.velocity(x, sigma, conditioning)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_network_is_told_the_exact_time_and_its_guidance(
    dev: Path, train: str, autocast: bool
) -> None:
    policy = load(dev, ComputeConfig(precision="bf16" if autocast else "fp32"), train=train)
    times: list[Tensor] = []
    embedding: Any = policy.network.get_submodule("time_text_embed.time_proj")
    embedding.register_forward_pre_hook(lambda _, arguments: times.append(arguments[0]))
    sigma = 0.99853  # in bfloat16 it is 1
    velocity = _velocity(policy, sigma, autocast)
    assert velocity.dtype == torch.float32
    assert torch.equal(times[0], torch.full((2,), sigma) * 1000)
    # The guidance goes through the same projection, rounded as diffusers rounds it.
    assert times[1].tolist() == [3504.0 if autocast else 3500.0] * 2
    each = _velocity(policy, torch.full((2,), sigma), autocast)
    assert torch.equal(velocity, each)
    assert not torch.equal(velocity, _velocity(policy, 1.0, autocast))


@pytest.mark.parametrize(
    ("train", "precision", "kept"),
    [
        ("full", "fp32", torch.float32),
        ("full", "bf16", torch.float32),
        ("lora", "fp32", torch.float32),
        ("lora", "bf16", torch.bfloat16),
    ],
)
def test_trained_weights_are_kept_in_float32_and_frozen_ones_in_the_precision(
    dev: Path, train: str, precision: str, kept: torch.dtype
) -> None:
    policy = load(dev, ComputeConfig(precision=precision), train=train)  # type: ignore[arg-type]
    assert {p.dtype for p in policy.network.parameters()} == {kept}
    assert not policy.network.training
    assert list(policy.trainable_parameters()) == [n for n, _ in policy.network.named_parameters()]


def test_recomputed_activations_give_the_same_gradient(dev: Path) -> None:
    gradients = []
    for recompute in (False, True):
        policy = load(dev)
        if recompute:
            policy.network.enable_gradient_checkpointing()  # type: ignore[operator]
        _velocity(policy, 0.5).square().mean().backward()
        gradients.append({n: p.grad for n, p in policy.trainable_parameters().items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        other = gradients[1][name]
        assert other is not None
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (ModelConfig().lora_targets, 3 + 1 + 2 * 3),
        (("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"), 13),
        (("to_add_out", "ff.net.2", "proj_mlp", "proj_out"), 1 + 1 + 2 + 2 + 1),
    ],
)
def test_adapters_find_the_layers_of_flux(dev: Path, targets: tuple[str, ...], layers: int) -> None:
    model = ModelConfig(name="flux", checkpoint=str(dev), train="lora", lora_targets=targets)
    policy = load(dev, train="lora", lora_targets=targets)
    before = _velocity(policy, 0.5)
    add_lora(policy.network, model, 0)
    # One block of two streams, with an output of the attention, and two of one stream, without.
    assert len(policy.trainable_parameters()) == 2 * layers
    assert torch.equal(_velocity(policy, 0.5), before)


def test_decoding_on_demand_or_in_slices_gives_the_same_images(dev: Path) -> None:
    policy = load(dev)
    latents = normal((3, *policy.latent_shape), "latents")
    images = policy.decode(latents)
    vae = pipeline(dev).vae
    with torch.no_grad():
        plain = vae.decode(latents / 0.3611 + 0.1159).sample
    assert images.shape == (3, 3, 32, 64)
    torch.testing.assert_close(images, (plain / 2 + 0.5).clamp(0, 1))
    for compute in (ComputeConfig(offload=True), ComputeConfig(vae_tiling=True)):
        torch.testing.assert_close(load(dev, compute).decode(latents), images)


def test_native_attention_is_what_it_is_without_a_setting(dev: Path) -> None:
    policy = load(dev, ComputeConfig(attention="native"))
    assert torch.equal(_velocity(policy, 0.5), _velocity(load(dev), 0.5))


@pytest.mark.parametrize(
    ("model", "compute", "message"),
    [
        ({"text_tokens": 513}, {}, "model.text_tokens 513: this model reads at most 512"),
        ({}, {"attention": "fast"}, "compute.attention fast: not one of .*native"),
        ({}, {"attention": "flash"}, "compute.attention flash: cannot be used here"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    dev: Path, model: dict[str, Any], compute: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(dev, ComputeConfig(**compute), **model)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 40}, "model.height 40: must be a multiple of 16; 32 is nearest"),
        ({"width": 8}, "model.width 8: must be a multiple of 16; 16 is nearest"),
    ],
)
def test_a_size_that_gives_no_whole_tokens_is_named(size: dict[str, int], message: str) -> None:
    model = ModelConfig(name="flux").model_copy(update=size)  # which checks nothing itself
    with pytest.raises(ConfigError, match=message):
        image_size(model, {}, {"block_out_channels": [4, 4, 4, 4]})


def test_schnell_takes_no_guidance(schnell: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.guidance 3.5: .* reads no guidance"):
        load(schnell, guidance=3.5)


def test_without_a_size_images_are_as_large_as_the_pipelines_own(dev: Path) -> None:
    assert load(dev, height=None, width=None).latent_shape == (16, 128, 128)


def test_prompts_are_asked_for(dev: Path) -> None:
    policy = load(dev)
    with pytest.raises(ConfigError, match=r"set prompts.train"):
        policy.train_prompts()
    with pytest.raises(ConfigError, match=r"set prompts.held_out"):
        policy.held_out_prompts()
