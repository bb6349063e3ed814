"""Loads CLIP models for rewards, and checks them key by key.

Checkpoints of open_clip are loaded into transformers' CLIPModel, which is the same network with
other names: `layout` says which.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights

if TYPE_CHECKING:
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionModelWithProjection,
        PreTrainedConfig,
        PreTrainedModel,
    )

Module = TypeVar("Module", bound=torch.nn.Module)
Pretrained = TypeVar("Pretrained", bound="PreTrainedModel")

_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def config(architecture: Mapping[str, Any], place: str) -> "CLIPConfig":
    """The configuration of transformers for a `model_cfg` of open_clip.

    ConfigError, which begins with `place`, for an architecture that CLIPModel does not have.
    """
    from transformers import CLIPConfig

    vision, text = architecture.get("vision_cfg", {}), architecture.get("text_cfg", {})
    for section, keys in ((architecture, _MODEL), (vision, _VISION), (text, _TEXT)):
        for key in sorted(set(section) - keys):
            raise ConfigError(f"{place}: {key} is of no plain CLIP; choose another checkpoint")
    try:
        activation = "quick_gelu" if architecture.get("quick_gelu") else "gelu"
        common = {"hidden_act": activation, "projection_dim": architecture["embed_dim"]}
        end = text.get("vocab_size", 49408) - 1
        return CLIPConfig(
            projection_dim=architecture["embed_dim"],
            vision_config={
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_size": vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
                **common,
            },
            text_config={
                "max_position_embeddings": text.get("context_length", 77),
                "vocab_size": end + 1,
                "hidden_size": text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
                # open_clip reads a prompt at its highest token, which is the end's.
                "bos_token_id": end - 1,
                "eos_token_id": end,
                "pad_token_id": end,
                **common,
            },
        )
    except KeyError as error:
        raise ConfigError(f"{place}: lacks {error.args[0]}, and is no plain CLIP's") from None


def layout(model: "CLIPModel") -> dict[str, tuple[str, ...]]:
    """The names of the parameters of `model` by the name that open_clip has for them.

    open_clip keeps the weights of query, key and value in one parameter, and its projections
    transposed.
    """
    names = dict(_ENDS)
    towers = {
        "visual.transformer": ("vision_model", model.vision_model),
        "transformer": ("text_model", model.text_model),
    }
    for source, (target, tower) in towers.items():
        for layer in range(len(tower.encoder.layers)):
            names |= _block(f"{source}.resblocks.{layer}", f"{target}.encoder.layers.{layer}")
    return names


_TRANSPOSED = ("visual.proj", "text_projection")
_ENDS: dict[str, tuple[str, ...]] = {
    "logit_scale": ("logit_scale",),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    "ln_final.weight": ("text_model.final_layer_norm.weight",),
    "ln_final.bias": ("text_model.final_layer_norm.bias",),
    "text_projection": ("text_projection.weight",),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding",),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight",),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight",),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight",),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias",),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight",),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias",),
    "visual.proj": ("visual_projection.weight",),
}


def _block(source: str, target: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind in ("weight", "bias"):
        attention = tuple(f"{target}.self_attn.{p}_proj.{kind}" for p in "qkv")
        yield f"{source}.attn.in_proj_{kind}", attention
        for ours, theirs in (
            ("ln_1", "layer_norm1"),
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            yield f"{source}.{ours}.{kind}", (f"{target}.{theirs}.{kind}",)


def shapes(model: "CLIPModel") -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `model` in an open_clip checkpoint, by its name there."""
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {}
    for name, (target, *more) in layout(model).items():
        shape = ours[target]
        wanted[name] = shape[::-1] if name in _TRANSPOSED else shape
        if more:
            wanted[name] = (shape[0] * (1 + len(more)), *shape[1:])
    return wanted


def open_clip_model(file: Path, architecture: Mapping[str, Any], needed_by: str) -> "CLIPModel":
    """The model that open_clip left in `file` (.safetensors, or torch's own), in float32.

    ConfigError where the file is of another architecture, naming the first key that differs.
    """
    from transformers import CLIPModel

    made = config(architecture, needed_by)
    with torch.device("meta"):
        skeleton = CLIPModel(made)
    state = read_state(file, needed_by)
    check_state(state, shapes(skeleton), f"{needed_by}: {file}")
    renamed: dict[str, Tensor] = {}
    for name, targets in layout(skeleton).items():
        tensor = state.pop(name)
        if name in _TRANSPOSED:
            tensor = tensor.T.contiguous()
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        renamed |= dict(zip(targets, parts, strict=True))
    return _filled(CLIPModel, made, renamed)


def clip_model(checkpoint: str, revision: str | None, needed_by: str) -> "CLIPModel":
    """The CLIPModel in a folder or a hub's repository of transformers, in float32."""
    from transformers import CLIPModel

    made, state = _transformers(checkpoint, revision, needed_by)
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in CLIPModel(made).named_parameters()}
    check_state(state, wanted, f"{needed_by}: {checkpoint}")
    return _filled(CLIPModel, made, state)


def image_tower(
    checkpoint: str, revision: str | None, needed_by: str
) -> "CLIPVisionModelWithProjection":
    """The half of a CLIPModel that embeds images. The rest as in `clip_model`."""
    from transformers import CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as Tower

    made, state = _transformers(checkpoint, revision, needed_by)
    state = {name: t for name, t in state.items() if name.startswith(("vision_", "visual_"))}
    vision = made.vision_config
    assert isinstance(vision, CLIPVisionConfig)
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in Tower(vision).named_parameters()}
    check_state(state, wanted, f"{needed_by}: {checkpoint}")
    return _filled(Tower, vision, state)


def _filled(
    kind: type[Pretrained], config: "PreTrainedConfig", state: dict[str, Tensor]
) -> Pretrained:
    """The model with these weights in float32, without the progress bar that fills logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = kind.from_pretrained(None, config=config, state_dict=state, dtype="float32")
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return frozen(model)


def _transformers(
    checkpoint: str, revision: str | None, needed_by: str
) -> tuple["CLIPConfig", dict[str, Tensor]]:
    from transformers import CLIPConfig

    files = ["config.json", "model.safetensors"]
    folder = weights.folder(checkpoint, revision, needed_by, files)
    for name in files:
        if not (folder / name).is_file():
            raise ConfigError(f"{needed_by}: {checkpoint} has no file {name}")
    written = json.loads((folder / "config.json").read_text())
    if written.get("model_type") != "clip":
        raise ConfigError(
            f"{needed_by}: {checkpoint} is no CLIP: its config.json has the model_type "
            f"{written.get('model_type')}"
        )
    state = read_state(folder / "model.safetensors", needed_by)
    # Of older versions of transformers, which kept these counts as if they were weights.
    state = {name: t for name, t in state.items() if not name.endswith(".position_ids")}
    return CLIPConfig.from_dict(written), state


def read_state(file: Path, needed_by: str) -> dict[str, Tensor]:
    """The tensors in `file` by name, on the CPU. ConfigError where it holds something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{needed_by}: {file} holds no weights ({reason})") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        raise ConfigError(f"{needed_by}: {file} holds no weights by name")
    return tensors


def check_state(
    state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], place: str
) -> None:
    """ConfigError, beginning with `place`, that names the first key in which `state` differs."""
    for name, shape in wanted.items():
        if name not in state:
            raise ConfigError(f"{place} is of another architecture: it lacks {name}")
        if tuple(state[name].shape) != shape:
            raise ConfigError(
                f"{place} is of another architecture: {name} is {list(state[name].shape)} and "
                f"must be {list(shape)}"
            )
    for name in state:
        if name not in wanted:
            raise ConfigError(f"{place} is of another architecture: it has {name} as well")


def frozen(module: Module) -> Module:
    """`module`, in eval mode and without gradients."""
    module.eval().requires_grad_(False)
    return module


def image_size(model: "CLIPModel | CLIPVisionModelWithProjection") -> int:
    """The height and width in pixels that the model reads."""
    size: int = model.vision_model.embeddings.image_size
    return size
