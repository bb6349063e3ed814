"""A CLIP in plain torch, by open_clip's names, and its checkpoints: an oracle for rewards.

Everything is computed from a dictionary of tensors as open_clip (Ilharco et al., version 3.3.0)
names them: a pre-norm transformer on patches and one, causal, on tokens, each projected.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mixgrpo.maths.randomness import normal

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 60,
        "head_width": 20,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 517,
        "width": 32,
        "heads": 4,
        "layers": 2,
    },
}
VIT_H = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "layers": 24},
}
"""open_clip's ViT-H-14: 986,109,441 parameters; at 378 pixels 986,714,881."""
VIT_L = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "layers": 12},
}
"""OpenAI's ViT-L/14: 427,616,513 parameters."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def names_and_shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of open_clip holds."""
    vision, text, dim = cfg["vision_cfg"], cfg["text_cfg"], cfg["embed_dim"]
    v, t, patch = vision["width"], text["width"], vision["patch_size"]
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (text["context_length"], t),
        "token_embedding.weight": (text["vocab_size"], t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
        "text_projection": (t, dim),
        "visual.class_embedding": (v,),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, v),
        "visual.conv1.weight": (v, 3, patch, patch),
        "visual.ln_pre.weight": (v,),
        "visual.ln_pre.bias": (v,),
        "visual.ln_post.weight": (v,),
        "visual.ln_post.bias": (v,),
        "visual.proj": (v, dim),
    }
    for start, width, layers in (
        ("visual.transformer", v, vision["layers"]),
        ("transformer", t, text["layers"]),
    ):
        for layer in range(layers):
            block = f"{start}.resblocks.{layer}"
            found |= {
                f"{block}.ln_1.weight": (width,),
                f"{block}.ln_1.bias": (width,),
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                f"{block}.attn.out_proj.weight": (width, width),
                f"{block}.attn.out_proj.bias": (width,),
                f"{block}.ln_2.weight": (width,),
                f"{block}.ln_2.bias": (width,),
                f"{block}.mlp.c_fc.weight": (4 * width, width),
                f"{block}.mlp.c_fc.bias": (4 * width,),
                f"{block}.mlp.c_proj.weight": (width, 4 * width),
                f"{block}.mlp.c_proj.bias": (width,),
            }
    return found


def random_state(cfg: dict[str, Any] = TINY) -> dict[str, Tensor]:
    """A checkpoint with weights so large that every one of them matters to the features."""
    state = {}
    for name, shape in names_and_shapes(cfg).items():
        drawn = normal(shape, "tiny clip", name)
        scale = 0.5 if len(shape) < 2 else 1.5 / shape[-1] ** 0.5
        state[name] = scale * drawn + (1.0 if "ln_" in name and "weight" in name else 0.0)
    state["logit_scale"] = torch.tensor(3.0)
    return state


def _tower(state: dict[str, Tensor], start: str, x: Tensor, heads: int, quick: bool) -> Tensor:
    """Pre-norm blocks on x [B, L, width]; causal in the tower of text."""
    length, width = x.shape[1:]
    hidden = torch.zeros(length, length)
    if not start.startswith("visual"):
        hidden = torch.full((length, length), -torch.inf).triu(1)
    for layer in range(sum(n.startswith(start) and n.endswith("ln_1.bias") for n in state)):
        w = {
            n.split(f"resblocks.{layer}.")[1]: t
            for n, t in state.items()
            if n.startswith(f"{start}.resblocks.{layer}.")
        }
        y = functional.layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"])
        y = y @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
        q, k, v = y.view(len(x), length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + hidden).softmax(-1) @ v
        y = seen.transpose(1, 2).reshape(x.shape)
        x = x + y @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        y = functional.layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"])
        y = y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y) if quick else functional.gelu(y)
        x = x + y @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return x


def image_features(state: dict[str, Tensor], pixels: Tensor, quick: bool = False) -> Tensor:
    """[B, embed_dim] of normalised pixels [B, 3, 32, 32]."""
    w = {name.removeprefix("visual."): t for name, t in state.items() if "visual" in name}
    width, patch = w["conv1.weight"].shape[0], w["conv1.weight"].shape[-1]
    x = functional.conv2d(pixels, w["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, width), x], 1)
    x = functional.layer_norm(
        x + w["positional_embedding"], (width,), w["ln_pre.weight"], w["ln_pre.bias"]
    )
    x = _tower(state, "visual.transformer", x, width // 20, quick)[:, 0]
    return functional.layer_norm(x, (width,), w["ln_post.weight"], w["ln_post.bias"]) @ w["proj"]


def text_features(state: dict[str, Tensor], tokens: list[int], quick: bool = False) -> Tensor:
    """[embed_dim] of one prompt, padded with 0 and read where its highest token is."""
    width = state["ln_final.bias"].shape[0]
    row = torch.tensor([tokens + [0] * (77 - len(tokens))])
    x = state["token_embedding.weight"][row] + state["positional_embedding"]
    x = _tower(state, "transformer", x, 4, quick)
    x = functional.layer_norm(x, (width,), state["ln_final.weight"], state["ln_final.bias"])
    return x[0, row[0].argmax()] @ state["text_projection"]


def cosines(
    state: dict[str, Tensor], pixels: Tensor, prompts: list[str], quick: bool = False
) -> Tensor:
    """[B] of normalised pixels [B, 3, 32, 32] and prompts as `tokens` reads them."""
    image = image_features(state, pixels, quick)
    text = torch.stack([text_features(state, tokens(prompt), quick) for prompt in prompts])
    return (image * text).sum(1) / image.norm(dim=1) / text.norm(dim=1)


_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_LETTERS = {b: chr(b) for b in _PRINTED}
_LETTERS |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _PRINTED)}
_MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a")]
_VOCABULARY = [
    *_LETTERS.values(),
    *(letter + "</w>" for letter in _LETTERS.values()),
    *(a + b for a, b in _MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
"""Of bytes as GPT-2 prints them, alone and as the end of a word, of merges, and two marks: 517."""


def tokens(prompt: str) -> list[int]:
    """The 77 tokens or less of a prompt of lower-case ASCII words with spaces between."""
    found = []
    for word in prompt.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        for a, b in _MERGES:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (a, b):
                    parts[at : at + 2] = [a + b]
                at += 1
        found += [_VOCABULARY.index(part) for part in parts]
    return [515, *found[:75], 516]


def write_tokenizer(folder: Path) -> str:
    """The files in which laion/CLIP-ViT-H-14-laion2B-s32B-b79K has its tokenizer."""
    folder.mkdir()
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    end = {"content": "<|endoftext|>", **mark, "__type": "AddedToken"}
    start = {"content": "<|startoftext|>", **mark, "__type": "AddedToken"}
    config = {
        "unk_token": end,
        "bos_token": start,
        "eos_token": end,
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "errors": "replace",
        "do_lower_case": True,
        "name_or_path": "openai/clip-vit-base-patch32",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = {token: number for number, token in enumerate(_VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "".join(f"{a} {b}\n" for a, b in _MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return str(folder)


_RENAMED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "text_projection": "text_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "c_fc": "fc1",
    "c_proj": "fc2",
}


def transformers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint by the names that transformers' CLIPModel has."""
    found = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in _RENAMED.items():
            if ours not in new and theirs in new:
                new = new.replace(theirs, ours)
        if "in_proj" in name:
            kind = name.rsplit("_", 1)[1]
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                part = new.replace(f"attn.in_proj_{kind}", f"self_attn.{letter}_proj.{kind}")
                found[part] = third.clone()
        else:
            found[new] = (
                tensor.T.contiguous()
                if "proj" in name and tensor.ndim == 2 and ("resblocks" not in name)
                else tensor
            )
    return found


def write_transformers(folder: Path, state: dict[str, Tensor], quick: bool = False) -> str:
    """The checkpoint as PickScore's authors left it: with counts of positions, marks 0, 1, 2."""
    folder.mkdir()
    vision, text = TINY["vision_cfg"], TINY["text_cfg"]
    activation = "quick_gelu" if quick else "gelu"
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": activation,
            "hidden_size": vision["width"],
            "image_size": vision["image_size"],
            "intermediate_size": 4 * vision["width"],
            "layer_norm_eps": 1e-05,
            "num_attention_heads": vision["width"] // vision["head_width"],
            "num_hidden_layers": vision["layers"],
            "patch_size": vision["patch_size"],
            "projection_dim": 24,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "hidden_act": activation,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "projection_dim": 24,
            "vocab_size": text["vocab_size"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = transformers_state(state)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """PIL's antialiased bicubic resize of images [B, 3, H, W] in its mode of floats: unrounded."""
    planes = [
        torch.frombuffer(
            bytearray(
                Image.fromarray(plane.numpy())
                .resize((width, height), Image.Resampling.BICUBIC)
                .tobytes()
            ),
            dtype=torch.float32,
        )
        for plane in images.flatten(0, 1)
    ]
    return torch.stack(planes).view(*images.shape[:2], height, width)


def pictures(number: int, height: int, width: int) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with edges, gradients and some noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    found = []
    for one in range(number):
        noise = normal((3, height, width), "pictures", str(one))
        frequency = torch.tensor([3.0, 7.0, 11.0]).view(3, 1, 1) + one
        waves = torch.sin(frequency * (x + 0.5 * y) * 3) * 0.4 + 0.5
        found.append(
            torch.where((x - 0.5).abs() < 0.1 * (one + 1), 1 - waves, waves + 0.05 * noise)
        )
    return torch.stack(found).clamp(0, 1)


def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
