"""The networks of the built-in rewards on the meta device: sizes without weights."""

from collections.abc import Callable

import torch
from torch import nn


def _clip(vision: dict[str, int], text: dict[str, int], projection: int) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        network: nn.Module = CLIPModel(
            CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)
        )
    return network


def _clip_h() -> nn.Module:
    """ViT-H-14 of open_clip."""
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    return _clip(
        vision | {"num_attention_heads": 16, "patch_size": 14},
        text | {"num_attention_heads": 16},
        1024,
    )


def _clip_l() -> nn.Module:
    """The image encoder of ViT-L-14 (OpenAI), which the aesthetic score uses."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        network: nn.Module = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=14,
                projection_dim=768,
            )
        )
    return network


def _blip() -> nn.Module:
    """BLIP large without its heads, as ImageReward has it (arXiv 2304.05977)."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    with torch.device("meta"):
        vision: nn.Module = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                image_size=224,
                patch_size=16,
            )
        )
        text: nn.Module = BlipTextModel(
            BlipTextConfig(
                vocab_size=30524,
                hidden_size=768,
                encoder_hidden_size=1024,
                num_hidden_layers=12,
                num_attention_heads=12,
            ),
            add_pooling_layer=False,
        )
    return nn.ModuleList([vision, text])


REWARD_NETWORKS: dict[str, Callable[[], nn.Module] | None] = {
    "hps": _clip_h,
    "pickscore": _clip_h,
    "clipscore": _clip_h,
    "aesthetic": _clip_l,
    "imagereward": _blip,
    **dict.fromkeys(("composition", "palette", "strict", "clarity", "unifiedreward", "ocr")),
}
"""Makes the network that a built-in reward keeps on the device, in float32; None: it has none, or a
small one."""
