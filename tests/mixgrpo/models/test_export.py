"""What a finished run leaves, taken up by a real diffusers pipeline."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from mixgrpo.models.adapters import add_lora
from mixgrpo.models.export import export_weights
from mixgrpo.settings.config import ModelConfig
from tests.mixgrpo.toy import ToyPolicy

LORA = ModelConfig(train="lora", lora_rank=3, lora_alpha=5.0)
FULL = ModelConfig()


def transformer(seed: int = 0) -> FluxTransformer2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=20,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        ).eval()


@torch.no_grad()
def velocity(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(9)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    output: Tensor = network(
        hidden_states=normal(2, 6, 16),
        encoder_hidden_states=normal(2, 5, 24),
        pooled_projections=normal(2, 20),
        timestep=torch.tensor([0.3, 0.8]),
        guidance=torch.tensor([3.5, 3.5]),
        img_ids=normal(6, 3),
        txt_ids=torch.zeros(5, 3),
        return_dict=False,
    )[0]
    return output


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole FLUX pipeline with tiny random weights, as its makers would publish it."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=12,
                hidden_size=20,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                projection_dim=20,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
        t5 = T5EncoderModel(
            T5Config(vocab_size=12, d_model=24, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
        )
        vae = AutoencoderKL(
            block_out_channels=(8,),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
            scaling_factor=0.3,
        )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=None,
        text_encoder_2=t5,
        tokenizer_2=None,
        transformer=transformer(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(pipeline_folder: Path) -> FluxPipeline:
    made = FluxPipeline.from_pretrained(pipeline_folder, tokenizer=None, tokenizer_2=None)
    made.set_progress_bar_config(disable=True)
    return made


def picture(pipeline: FluxPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return pipeline(
        prompt_embeds=torch.randn(1, 5, 24, generator=generator),
        pooled_prompt_embeds=torch.randn(1, 20, generator=generator),
        height=4,
        width=4,
        num_inference_steps=2,
        generator=generator,
        output_type="pt",
    ).images


def changed(network: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Other weights than the network has, as an average has."""
    generator = torch.Generator().manual_seed(6)
    parameters = dict(network.named_parameters())
    return {
        n: parameters[n] + 0.2 * torch.randn(parameters[n].shape, generator=generator)
        for n in names
    }


def put(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name in weights:
                p.copy_(weights[name])
    return network


def adapted() -> tuple[FluxTransformer2DModel, dict[str, Tensor]]:
    network = transformer()
    add_lora(network, LORA, 0)
    return network, changed(network, [n for n, p in network.named_parameters() if p.requires_grad])


def test_a_pipeline_takes_the_adapters_scale_included(
    tmp_path: Path, pipeline: FluxPipeline
) -> None:
    network, weights = adapted()
    file = export_weights(network, weights, LORA, tmp_path / "lora")
    assert file == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    base, before = velocity(pipeline.transformer), picture(pipeline)
    pipeline.load_lora_weights(tmp_path / "lora")
    expected = velocity(put(network, weights))
    assert (expected - base).abs().max() > 1e-2
    assert torch.equal(velocity(pipeline.transformer), expected)
    painted = picture(pipeline)
    assert painted.shape == (1, 3, 4, 4)
    assert not torch.equal(painted, before)
    pipeline.unload_lora_weights()
    assert torch.equal(velocity(pipeline.transformer), base)


def test_a_transformer_alone_takes_the_adapters(tmp_path: Path) -> None:
    network, weights = adapted()
    export_weights(network, weights, LORA, tmp_path, "denoiser")
    alone = transformer()
    alone.load_lora_adapter(
        tmp_path, prefix="denoiser", weight_name="pytorch_lora_weights.safetensors"
    )
    assert torch.equal(velocity(alone), velocity(put(network, weights)))


def test_adapters_of_a_network_in_bfloat16_are_saved_as_they_were_trained(tmp_path: Path) -> None:
    network = transformer().to(torch.bfloat16)
    add_lora(network, LORA, 0)
    weights = changed(network, [n for n, p in network.named_parameters() if p.requires_grad])
    saved = load_file(export_weights(network, weights, LORA, tmp_path))
    assert len(saved) == len(weights)
    for name, value in weights.items():
        key = "transformer." + name.replace(".default", "")
        assert torch.equal(saved[key], value)


def test_a_fine_tuned_transformer_is_loaded_alone_and_into_a_pipeline(
    tmp_path: Path, pipeline_folder: Path
) -> None:
    network = transformer()
    # A part is trained; the rest is as it was.
    weights = changed(network, [n for n, _ in network.named_parameters() if "attn" in n])
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
    place = export_weights(network, weights, FULL, tmp_path / "new")
    assert place == tmp_path / "new" / "transformer"
    assert all(torch.equal(p, parameters[name]) for name, p in network.named_parameters())

    loaded = FluxTransformer2DModel.from_pretrained(place)
    whole = FluxPipeline.from_pretrained(
        pipeline_folder, transformer=loaded, tokenizer=None, tokenizer_2=None
    )
    base = velocity(network)
    expected = velocity(put(network, weights))
    assert not torch.equal(expected, base)
    assert torch.equal(velocity(loaded), expected)
    assert torch.equal(velocity(whole.transformer), expected)
    assert picture(whole).shape == (1, 3, 4, 4)


def test_what_is_written_is_what_diffusers_writes(tmp_path: Path) -> None:
    network = transformer()
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
    place = export_weights(network, parameters, FULL, tmp_path)
    network.save_pretrained(tmp_path / "known")
    written = {p.name: p.read_bytes() for p in place.iterdir()}
    assert written == {p.name: p.read_bytes() for p in (tmp_path / "known").iterdir()}


def test_a_sharded_transformer_is_saved_under_its_own_class(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = transformer()
    expected = velocity(network)
    whole = {name: p.detach().clone() for name, p in network.named_parameters()}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
        place = export_weights(network, whole, FULL, tmp_path)
    finally:
        dist.destroy_process_group()
    assert (
        json.loads((place / "config.json").read_text())["_class_name"] == "FluxTransformer2DModel"
    )
    assert torch.equal(velocity(FluxTransformer2DModel.from_pretrained(place)), expected)


def test_a_model_of_another_kind_leaves_its_weights(tmp_path: Path) -> None:
    toy = ToyPolicy()
    weights = changed(toy, ["inner", "outer"])
    file = export_weights(toy, weights, FULL, tmp_path)
    assert file == tmp_path / "weights.safetensors"
    saved = load_file(file)
    assert sorted(saved) == ["inner", "outer"]
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the system refuses to make a file larger, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("model", [LORA, FULL], ids=["lora", "full"])
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, model: ModelConfig) -> None:
    def listing() -> dict[str, bytes]:
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in files}

    network, weights = adapted() if model is LORA else (transformer(), {})
    weights = weights or changed(network, [name for name, _ in network.named_parameters()])
    export_weights(network, {n: torch.zeros_like(v) for n, v in weights.items()}, model, tmp_path)
    before = listing()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large") as error:
        export_weights(network, weights, model, tmp_path)
    assert error.value.errno is not None
    assert listing() == before
    export_weights(network, weights, model, tmp_path)
    after = listing()
    assert list(after) == list(before)
    assert after != before
