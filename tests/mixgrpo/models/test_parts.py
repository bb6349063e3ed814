"""Pipelines on disk: the real repositories' files and sizes, and the errors for damaged folders."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights
from mixgrpo.models.diffusion import DiffusersPolicy
from mixgrpo.models.flux import FluxPolicy
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.qwen_image import QwenImagePolicy
from mixgrpo.models.sd3 import SD3Policy
from mixgrpo.settings.config import ComputeConfig, ModelConfig
from tests.mixgrpo.models.tiny import write_flux, write_sd3

SD35 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "qk_norm": "rms_norm",
}
"""transformer/config.json of stabilityai/stable-diffusion-3.5-medium and -large."""
MEDIUM = {
    **SD35,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}
LARGE = {
    **SD35,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}
FLUX = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24}
"""transformer/config.json of black-forest-labs/FLUX.1-dev and -schnell, apart from guidance."""

_CLIP = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
_T5 = ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
_SHARDED_T5 = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
)
_VAE = ("config.json", "diffusion_pytorch_model.safetensors")


def _sharded(parts: int) -> list[str]:
    names = [f"diffusion_pytorch_model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    return ["config.json", *names, "diffusion_pytorch_model.safetensors.index.json"]


FLUX_REPOSITORY = {
    "scheduler": ["scheduler_config.json"],
    "text_encoder": ["config.json", "model.safetensors"],
    "text_encoder_2": _SHARDED_T5,
    "tokenizer": _CLIP,
    "tokenizer_2": _T5,
    "transformer": _sharded(3),
    "vae": _VAE,
}
"""The files of black-forest-labs/FLUX.1-dev that a pipeline is made of, by folder."""
SD35_REPOSITORY = {
    "scheduler": ["scheduler_config.json"],
    "text_encoder": ["config.json", "model.safetensors"],
    "text_encoder_2": ["config.json", "model.safetensors"],
    "text_encoder_3": _SHARDED_T5,
    "tokenizer": _CLIP,
    "tokenizer_2": _CLIP,
    "tokenizer_3": _T5,
    "transformer": _sharded(2),
    "vae": _VAE,
}
"""The same of stabilityai/stable-diffusion-3.5-large."""
BESIDE = {
    "flux": ["flux1-dev.safetensors", "ae.safetensors", "dev_grid.jpg", "LICENSE.md"],
    "sd3": [
        "sd3.5_large.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    ],
}
"""What else is in these repositories: the same weights again, and more."""


def _meta(kind: str, **settings: Any) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        made: nn.Module = getattr(diffusers, kind)(**settings)
    return made


def _elements(module: nn.Module) -> int:
    """Of all that is written to a file: parameters, and SD3's table of positions."""
    return sum(value.numel() for value in module.state_dict().values())


def _file_bytes(module: nn.Module) -> int:
    """Size of the safetensors file of `module` in bfloat16, to the byte."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in sorted(module.state_dict().items()):
        begin, end = end, end + 2 * value.numel()
        offsets = [begin, end]
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": offsets}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + end


@pytest.mark.parametrize(
    ("kind", "settings", "published"),
    [
        # total_size in diffusion_pytorch_model.safetensors.index.json of the repositories.
        ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}, 23_802_816_640),
        ("FluxTransformer2DModel", FLUX, 23_782_357_120),
        (
            "QwenImageTransformer2DModel",
            {"num_layers": 60, "in_channels": 64, "out_channels": 16},
            40_860_802_176,
        ),
    ],
)
def test_real_configurations_are_of_the_published_size(
    kind: str, settings: dict[str, Any], published: int
) -> None:
    assert 2 * _elements(_meta(kind, **settings)) == published


def test_the_files_of_sd3_and_of_the_vae_are_of_the_published_size() -> None:
    # transformer/diffusion_pytorch_model.safetensors of SD3.5-M.
    assert _file_bytes(_meta("SD3Transformer2DModel", **MEDIUM)) == 4_939_433_672
    # Two shards of SD3.5-L: their headers, of about 117 bytes per tensor, are split somewhere.
    large = _meta("SD3Transformer2DModel", **LARGE)
    headers = 9_985_185_992 + 6_307_519_304 - 2 * _elements(large)
    assert headers / len(large.state_dict()) == pytest.approx(117, abs=2)
    # vae/diffusion_pytorch_model.safetensors of FLUX.1 and SD3.5.
    vae = _meta(
        "AutoencoderKL",
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    assert _file_bytes(vae) == 167_666_902


def test_parameters_are_as_many_as_is_said_of_the_models() -> None:
    def parameters(kind: str, settings: dict[str, Any]) -> float:
        return sum(p.numel() for p in _meta(kind, **settings).parameters()) / 1e9

    flux = parameters("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True})
    assert flux == pytest.approx(11.90, abs=0.005)
    # The model cards say 2.5 and 8.1, which is with the positions that are not trained.
    assert parameters("SD3Transformer2DModel", MEDIUM) == pytest.approx(2.24, abs=0.005)
    assert parameters("SD3Transformer2DModel", LARGE) == pytest.approx(8.06, abs=0.005)


@pytest.mark.parametrize(
    ("name", "policy", "repository"),
    [("flux", FluxPolicy, FLUX_REPOSITORY), ("sd3", SD3Policy, SD35_REPOSITORY)],
)
def test_of_a_repository_the_files_of_the_pipeline_are_got_and_no_others(
    name: str,
    policy: type[DiffusersPolicy],
    repository: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def stop(*arguments: Any) -> Path:
        asked.extend(arguments)
        raise ConfigError("enough")

    monkeypatch.setattr(weights, "folder", stop)
    model = ModelConfig(name=name, checkpoint="owner/repository", revision="v1")
    with pytest.raises(ConfigError, match="enough"):
        policy.load(model, ComputeConfig())
    assert asked[:2] == ["owner/repository", "v1"]
    wanted = [f"{part}/{file}" for part, files in repository.items() for file in files]
    every = ["model_index.json", *wanted, *BESIDE[name]]
    got = [file for file in every if any(fnmatch(file, pattern) for pattern in asked[3])]
    assert got == ["model_index.json", *wanted]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def copy(flux: Path, tmp_path: Path) -> Path:
    return shutil.copytree(flux, tmp_path / "copy")


def load(
    checkpoint: Path | str, kind: type[DiffusersPolicy] = FluxPolicy, **model: Any
) -> DiffusersPolicy:
    return kind.load(ModelConfig(checkpoint=str(checkpoint), **model), ComputeConfig())


def test_shards_are_one_model(flux: Path, copy: Path) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import T5EncoderModel

    for kind, part, size in (
        (FluxTransformer2DModel, "transformer", "100KB"),
        (T5EncoderModel, "text_encoder_2", "30KB"),
    ):
        module = kind.from_pretrained(flux / part)
        shutil.rmtree(copy / part)
        module.save_pretrained(copy / part, max_shard_size=size)
        assert len(list((copy / part).glob("*-of-*.safetensors"))) > 1
    whole, sharded = load(flux, height=32, width=32), load(copy, height=32, width=32)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(sharded.network.state_dict()[name], value)
    prompts = ["a red cross"]
    assert torch.equal(sharded.encode(prompts)["text"], whole.encode(prompts)["text"])


def test_a_trained_transformer_put_into_a_pipeline_is_what_is_loaded(
    flux: Path, copy: Path
) -> None:
    trained = load(flux).network
    with torch.no_grad():
        next(trained.parameters()).add_(1.0)
    shutil.rmtree(copy / "transformer")
    trained.save_pretrained(copy / "transformer")  # type: ignore[operator]
    for name, value in load(copy).network.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])


def test_a_folder_with_a_transformer_alone_is_told_what_to_do(flux: Path, copy: Path) -> None:
    (copy / "model_index.json").unlink()
    for place in (copy, flux / "transformer"):
        with pytest.raises(ConfigError, match=r"holds a transformer alone .* copy of the FluxPip"):
            load(place)


def test_a_pipeline_of_another_model_is_named(flux: Path, tmp_path: Path) -> None:
    sd3 = write_sd3(tmp_path / "sd3")
    with pytest.raises(
        ConfigError, match=r"is a StableDiffusion3Pipeline, .* needs a FluxPipeline"
    ):
        load(sd3)
    with pytest.raises(ConfigError, match=r"is a FluxPipeline, .* needs a QwenImagePipeline"):
        load(flux, QwenImagePolicy)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_missing_part_is_named_with_the_command_that_gets_it(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    message = rf"its folder {part} is missing or empty; `hf download .* --include '{part}/\*'"
    with pytest.raises(ConfigError, match=message):
        load(copy)


def test_missing_weights_are_named_with_the_command_that_gets_them(copy: Path) -> None:
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"its transformer cannot be loaded .*`hf download"):
        load(copy)


def test_weights_without_a_tensor_or_of_another_shape_are_refused(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lacking = {name: value for name, value in tensors.items() if name != "proj_out.bias"}
    save_file(lacking, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"the weights of its transformer lack proj_out.bias"):
        load(copy)
    save_file({**tensors, "proj_out.bias": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="its transformer cannot be loaded"):
        load(copy)
    file.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="its transformer cannot be loaded"):
        load(copy)


def test_an_encoder_without_a_tensor_is_refused(copy: Path) -> None:
    file = copy / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    gone = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file({n: v for n, v in tensors.items() if n != gone}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"the weights of its text_encoder_2 lack {gone}"):
        load(copy).encode(["a red cross"])


def test_code_beside_a_pipeline_is_not_run(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["transformer"] = ["transformer", "Own"]
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "transformer" / "transformer.py").write_text("raise AssertionError")
    with pytest.raises(ConfigError, match="its transformer from transformer, neither diffusers"):
        load(copy)
    index["transformer"] = ["diffusers", "Flux9Transformer"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="is a Flux9Transformer, which the installed diffusers"):
        load(copy)


def test_a_checkpoint_that_is_nowhere_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.checkpoint: there is no file or folder"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"has no model_index.json; name the folder of a Flux"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"model.checkpoint is missing"):
        FluxPolicy.load(ModelConfig(), ComputeConfig())


def test_an_index_says_which_parts_there_are(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path, t5=False)
    pipeline = Pipeline.find(str(folder), None, "StableDiffusion3Pipeline", SD3Policy.side.parts)
    has = [part for part in SD3Policy.side.parts if pipeline.has(part)]
    assert has == ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
