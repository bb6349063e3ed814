"""Pipelines of FLUX, SD3 and Qwen-Image that are tiny and random, as folders on disk.

The classes, the files and the keys are those of the real repositories; only the sizes are small:
a forward takes milliseconds. Images are to be a few multiples of 16 pixels wide.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixgrpo.maths.randomness import normal

WIDTH = 32
"""Of every text encoder."""
LETTERS = [chr(i) for i in range(33, 127)]
QWEN_WORDS = (
    *("system", "user", "assistant", "Describe", " the", " image", " by", " detailing", " color"),
    *(" shape", " size", " texture", " quantity", " text", " spatial", " relationships", " of"),
    *(" objects", " and", " background"),
)
"""Words of the pipeline's template: with them it begins with 34 tokens, as the real one does."""


def write_flux(folder: Path, guidance: bool = True) -> Path:
    """A `FluxPipeline` like FLUX.1-dev; without guidance like FLUX.1-schnell. Returns `folder`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = _drawn(
        "flux",
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0 if guidance else 1.0,
        use_dynamic_shifting=guidance,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    FluxPipeline(
        scheduler=scheduler,
        vae=_vae(scaling=0.3611, shift=0.1159),
        text_encoder=_clip("flux-clip", projected=False),
        tokenizer=_clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=_t5("flux-t5"),
        tokenizer_2=_t5_tokenizer(512 if guidance else 256),
        transformer=transformer,
    ).save_pretrained(folder)
    _clip_files(folder / "tokenizer")
    _prefixed(folder / "text_encoder" / "model.safetensors")
    return folder


def write_sd3(folder: Path, t5: bool = True) -> Path:
    """A `StableDiffusion3Pipeline` like SD3.5-M: queries and keys normalised, one layer with two
    attentions; without T5 its encoder is null in model_index.json. Returns `folder`."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = _drawn(
        "sd3",
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * WIDTH,
            out_channels=16,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=_vae(scaling=1.5305, shift=0.0609),
        text_encoder=_clip("sd3-clip-1", projected=True),
        tokenizer=_clip_tokenizer(folder / "tokenizer"),
        text_encoder_2=_clip("sd3-clip-2", projected=True),
        tokenizer_2=_clip_tokenizer(folder / "tokenizer_2", pad="!"),
        text_encoder_3=_t5("sd3-t5", width=3 * WIDTH) if t5 else None,
        tokenizer_3=_t5_tokenizer(256) if t5 else None,
    ).save_pretrained(folder)
    _clip_files(folder / "tokenizer")
    _clip_files(folder / "tokenizer_2", pad="!")
    return folder


def write_qwen_image(folder: Path, terminal: float | None = 0.02) -> Path:
    """A `QwenImagePipeline`; `terminal` is the scheduler's shift_terminal. Returns `folder`."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    transformer = _drawn(
        "qwen",
        lambda: QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    vae = _drawn(
        "qwen-vae",
        lambda: AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1 * (i % 5) - 0.2 for i in range(16)],
            latents_std=[2.0 + 0.1 * (i % 7) for i in range(16)],
        ),
    )
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": 256,
            "eos_token_id": 258,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000,
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=terminal,
            time_shift_type="exponential",
        ),
        vae=vae,
        text_encoder=_drawn("qwen-text", lambda: Qwen2_5_VLForConditionalGeneration(config)),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def _drawn(name: str, make: Callable[[], Any]) -> Any:
    """A module with weights that depend on `name` alone, large enough that every input matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = make().eval()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if "embed" not in key else 1
                drawn = normal(tuple(parameter.shape), "tiny", name, key)
                parameter.copy_(drawn / max(1, fan_in) ** 0.5)
    return module


def _vae(scaling: float, shift: float) -> Any:
    from diffusers import AutoencoderKL

    return _drawn(
        "vae",
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=2,
            sample_size=1024,
            scaling_factor=scaling,
            shift_factor=shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    )


def _clip(name: str, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return _drawn(
        name, lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    )


def _prefixed(file: Path) -> None:
    """Name the weights as in the repository of FLUX; newer versions drop the prefix."""
    named = {name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    save_file({f"text_model.{name}": v for name, v in named.items()}, file, {"format": "pt"})


def _t5(name: str, width: int = WIDTH) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_vocabulary()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return _drawn(name, lambda: T5EncoderModel(config))


def _clip_vocabulary() -> dict[str, int]:
    """Letters, letters that end a word, two merged pieces, begin and end, in CLIP's order."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>"]
    return {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def _clip_files(folder: Path, pad: str = "<|endoftext|>") -> None:
    """The files of a CLIP tokenizer as the real repositories have them: no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps(_clip_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": pad,
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    from transformers import CLIPTokenizer

    _clip_files(folder, pad)
    return CLIPTokenizer.from_pretrained(folder)


def _t5_vocabulary() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -3.0)]
    return [*special, *((letter, -4.0) for letter in LETTERS)]


def _t5_tokenizer(length: int) -> Any:
    from transformers import T5TokenizerFast

    return T5TokenizerFast(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=length)


def _qwen_tokenizer(folder: Path) -> Any:
    """Bytes without merges, and single tokens for the words of the template and its turns."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in QWEN_WORDS])
    tokenizer.save_pretrained(folder)
    return tokenizer


def sampled(policy: Any, prompts: list[str], steps: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, latents and images of `prompts`, by the model's own schedule."""
    from mixgrpo.sampling.inference import Sampling, sample

    noise = normal((len(prompts), *policy.latent_shape), "tiny noise")
    sampling = Sampling(steps=steps, shift=policy.dynamic_shift)
    conditioning = policy.encode(prompts)
    latents = sample(policy.velocity, policy.velocity, sampling, conditioning, noise)
    return noise, latents, policy.decode(latents)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max())
