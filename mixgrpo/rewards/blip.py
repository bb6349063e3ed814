"""BLIP as ImageReward uses it: transformers' encoders, with the weights under their first names.

BLIP (arXiv:2201.12086; github.com/salesforce/BLIP) reads a text with a BERT whose layers look at
the patches of an image between attention and feed-forward network; ImageReward (arXiv:2304.05977;
github.com/THUDM/ImageReward) puts five linear layers on the first token. Where transformers'
defaults are not BLIP's the latter are set: layer norms of the image encoder add 1e-6, and an
attention head has 64 channels. All sizes are those of the weights.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BlipTextConfig, BlipVisionConfig

_HEAD = 64
"""Channels of one attention head, in the encoders of every published BLIP."""
_VISION, _TEXT = "blip.visual_encoder", "blip.text_encoder"
_FIRST_NAMES = {
    r"^vision\.embeddings\.class_embedding": f"{_VISION}.cls_token",
    r"^vision\.embeddings\.position_embedding": f"{_VISION}.pos_embed",
    r"^vision\.embeddings\.patch_embedding": f"{_VISION}.patch_embed.proj",
    r"^vision\.post_layernorm": f"{_VISION}.norm",
    r"^vision\.encoder\.layers": f"{_VISION}.blocks",
    r"\.layer_norm(?=[12]\.)": ".norm",
    r"\.self_attn\.qkv": ".attn.qkv",
    r"\.self_attn\.projection": ".attn.proj",
    r"^text\.": f"{_TEXT}.",
    r"^head\.": "mlp.layers.",
}
"""What transformers and `Judge` call a weight, and what ImageReward.pt does."""


class Judge(nn.Module):
    """ImageReward's network: how well an image shows a text, before normalisation."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """`weights`: those of ImageReward.pt by name; others than the network's are left aside.

        ConfigError naming one that is missing or has another shape.
        """
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        vision, text = _vision_config(weights), _text_config(weights)
        with torch.device("meta"):  # random numbers that are replaced at once would take seconds
            self.vision = BlipVisionModel(vision)
            self.text = BlipTextModel(text, add_pooling_layer=False)
            # No activations between them: so it was trained.
            self.head = nn.Sequential(
                nn.Linear(text.hidden_size, 1024),
                nn.Dropout(0.2),
                nn.Linear(1024, 128),
                nn.Dropout(0.2),
                nn.Linear(128, 64),
                nn.Dropout(0.1),
                nn.Linear(64, 16),
                nn.Linear(16, 1),
            )
        own = {name: _weight(weights, name, t.shape) for name, t in self.state_dict().items()}
        self.load_state_dict(own, assign=True)
        places = torch.arange(text.max_position_embeddings)
        self.text.embeddings.register_buffer(  # in no state dict
            "position_ids", places.expand(1, -1), persistent=False
        )
        self.eval().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """S: images are S x S pixels."""
        size = self.vision.config.image_size
        assert isinstance(size, int)
        return size

    @property
    def vocabulary(self) -> int:
        """How many tokens are known."""
        return self.text.config.vocab_size

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """r [B] of normalised pixels [B, 3, S, S] and tokens [B, L], which are padding where the
        mask [B, L] is 0."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen)
        scores: Tensor = self.head(read.last_hidden_state[:, 0])
        return scores.squeeze(1)


def first_name(name: str) -> str:
    """What ImageReward.pt calls the weight `name` of a `Judge`."""
    for pattern, replacement in _FIRST_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def _vision_config(weights: Mapping[str, Tensor]) -> "BlipVisionConfig":
    from transformers import BlipVisionConfig

    width, _, _, patch = _shape(weights, f"{_VISION}.patch_embed.proj.weight", 4)
    _, positions, _ = _shape(weights, f"{_VISION}.pos_embed", 3)
    (inner,) = _shape(weights, f"{_VISION}.blocks.0.mlp.fc1.bias", 1)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_count(weights, f"{_VISION}.blocks"),
        num_attention_heads=width // _HEAD,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _text_config(weights: Mapping[str, Tensor]) -> "BlipTextConfig":
    from transformers import BlipTextConfig

    layers = f"{_TEXT}.encoder.layer"
    vocabulary, width = _shape(weights, f"{_TEXT}.embeddings.word_embeddings.weight", 2)
    positions, _ = _shape(weights, f"{_TEXT}.embeddings.position_embeddings.weight", 2)
    _, seen = _shape(weights, f"{layers}.0.crossattention.self.key.weight", 2)
    (inner,) = _shape(weights, f"{layers}.0.intermediate.dense.bias", 1)
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=seen,
        intermediate_size=inner,
        num_hidden_layers=_count(weights, layers),
        num_attention_heads=width // _HEAD,
        max_position_embeddings=positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
    )


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    found = weights.get(name)
    if found is None:
        raise ConfigError(f"it lacks the weight {name}")
    if found.ndim != dimensions:
        raise ConfigError(f"its weight {name} has {found.ndim} dimensions, not {dimensions}")
    return found.shape


def _count(weights: Mapping[str, Tensor], layers: str) -> int:
    """How many layers there are weights of."""
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    return 1 + max(int(match[1]) for name in weights if (match := pattern.match(name)))


def _weight(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """The weight `name` of a `Judge`, in float32."""
    found = _shape(weights, first_name(name), len(shape))
    if found != shape:
        raise ConfigError(
            f"its weight {first_name(name)} has shape {tuple(found)}, not {tuple(shape)}"
        )
    return weights[first_name(name)].float()
