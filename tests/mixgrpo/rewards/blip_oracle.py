"""ImageReward written out in plain torch, on a checkpoint under its published names.

From the papers (BLIP arXiv:2201.12086, ViT arXiv:2010.11929, BERT arXiv:1810.04805, ImageReward
arXiv:2304.05977) and the published configuration: ViT-L/16 at 224 with layer norms of eps 1e-6,
BERT-base with eps 1e-12 and cross-attention in each layer, exact GELU, heads of 64 channels, a
head of five linear layers without activations.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of r over the authors' own data."""


@dataclass(frozen=True)
class Sizes:
    """The real ones; a head has 64 channels."""

    vision: int = 1024
    blocks: int = 24
    text: int = 768
    layers: int = 12
    vocabulary: int = 30524
    positions: int = 512


TINY = Sizes(vision=128, blocks=2, text=128, layers=2, positions=48)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every floating-point tensor in ImageReward.pt."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)

    v, t = sizes.vision, sizes.text
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"] = (1, 1, v)
    found[f"{vision}.pos_embed"] = (1, 14 * 14 + 1, v)
    found[f"{vision}.patch_embed.proj.weight"] = (v, 3, 16, 16)
    found[f"{vision}.patch_embed.proj.bias"] = (v,)
    for i in range(sizes.blocks):
        block = f"{vision}.blocks.{i}"
        norm(f"{block}.norm1", v)
        linear(f"{block}.attn.qkv", v, 3 * v)
        linear(f"{block}.attn.proj", v, v)
        norm(f"{block}.norm2", v)
        linear(f"{block}.mlp.fc1", v, 4 * v)
        linear(f"{block}.mlp.fc2", 4 * v, v)
    norm(f"{vision}.norm", v)
    found[f"{text}.embeddings.word_embeddings.weight"] = (sizes.vocabulary, t)
    found[f"{text}.embeddings.position_embeddings.weight"] = (sizes.positions, t)
    norm(f"{text}.embeddings.LayerNorm", t)
    for i in range(sizes.layers):
        layer = f"{text}.encoder.layer.{i}"
        for attention, inputs in (("attention", t), ("crossattention", v)):
            linear(f"{layer}.{attention}.self.query", t, t)
            linear(f"{layer}.{attention}.self.key", inputs, t)
            linear(f"{layer}.{attention}.self.value", inputs, t)
            linear(f"{layer}.{attention}.output.dense", t, t)
            norm(f"{layer}.{attention}.output.LayerNorm", t)
        linear(f"{layer}.intermediate.dense", t, 4 * t)
        linear(f"{layer}.output.dense", 4 * t, t)
        norm(f"{layer}.output.LayerNorm", t)
    linear("blip.vision_proj", v, 256)  # of BLIP's training; ImageReward leaves both unused
    linear("blip.text_proj", t, 256)
    for i, (inputs, outputs) in enumerate([(t, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]):
        linear(f"mlp.layers.{(0, 2, 4, 6, 7)[i]}", inputs, outputs)
    return found


def random_weights(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of random numbers, all of which matter to the score.

    What enters the first layer norms is small, so that their eps matters as well.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(sizes).items():
        size = 0.3 if len(shape) == 1 else (2 / shape[-1]) ** 0.5
        if name.endswith(("cls_token", "pos_embed", "patch_embed.proj.bias")):
            size = 1e-3
        elif "patch_embed" in name:
            size = 1e-4
        elif "_embeddings." in name:
            size = 1e-5
        weights[name] = torch.randn(shape, generator=generator) * size
    weights["mlp.layers.7.bias"] += 3  # scores far from 0 show a wrong scale
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(sizes.positions)[None]
    return weights


def judge(weights: dict[str, Tensor], pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The normalised score [B] of pixels [B, 3, 224, 224] as they enter the network, and tokens."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        """Head by head; keys where `seen` [B, keys] is 0 have no weight."""
        heads = []
        for h in range(q.shape[-1] // 64):
            part = slice(64 * h, 64 * h + 64)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / 8
            if seen is not None:
                scores = scores.masked_fill(seen[:, None] == 0, -math.inf)
            heads.append(scores.softmax(-1) @ v[..., part])
        return torch.cat(heads, -1)

    root = "blip.visual_encoder"
    patches = F.unfold(pixels.double(), 16, stride=16).transpose(1, 2)
    x = patches @ w[f"{root}.patch_embed.proj.weight"].flatten(1).T
    x = x + w[f"{root}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{root}.cls_token"].expand(len(x), -1, -1), x], 1) + w[f"{root}.pos_embed"]
    blocks = sum(name.endswith("attn.qkv.bias") for name in w)
    for i in range(blocks):
        name = f"{root}.blocks.{i}"
        q, k, v = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(f"{name}.attn.proj", attention(q, k, v))
        h = gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x, 1e-6)))
        x = x + linear(f"{name}.mlp.fc2", h)
    image = norm(f"{root}.norm", x, 1e-6)

    root = "blip.text_encoder"
    x = w[f"{root}.embeddings.word_embeddings.weight"][tokens]
    x = x + w[f"{root}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm(f"{root}.embeddings.LayerNorm", x, 1e-12)
    layers = sum(name.endswith("intermediate.dense.bias") for name in w)
    for i in range(layers):
        for kind, source, seen in (("attention", None, mask), ("crossattention", image, None)):
            name = f"{root}.encoder.layer.{i}.{kind}"
            keys = x if source is None else source
            k, v = linear(f"{name}.self.key", keys), linear(f"{name}.self.value", keys)
            h = attention(linear(f"{name}.self.query", x), k, v, seen)
            x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", h), 1e-12)
        name = f"{root}.encoder.layer.{i}"
        h = linear(f"{name}.output.dense", gelu(linear(f"{name}.intermediate.dense", x)))
        x = norm(f"{name}.output.LayerNorm", x + h, 1e-12)
    r = x[:, 0]
    for layer in (0, 2, 4, 6, 7):
        r = linear(f"mlp.layers.{layer}", r)
    return (r[:, 0] - MEAN) / STD
