"""Exports a finished run's weights for diffusers: adapters for a pipeline, or a transformer.

    pipeline.load_lora_weights(folder)                             # model.train: lora
    FluxTransformer2DModel.from_pretrained(folder / "transformer")  # model.train: full

Exports are atomic: written under a temporary name, flushed and renamed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from mixgrpo.files.atomic import disk_error, flush, write_bytes
from mixgrpo.models.adapters import ADAPTER
from mixgrpo.settings.config import ModelConfig

# Names that diffusers looks for.
_LORA_FILE = "pytorch_lora_weights.safetensors"
_LORA_METADATA = "lora_adapter_metadata"


def export_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    model: ModelConfig,
    folder: Path,
    transformer_name: str = "transformer",
) -> Path:
    """Write the trained `weights` of `network` into `folder`; returns the new file or folder.

    weights: unsharded tensors by the names of the parameters in `network`: all that were trained,
        and all that are sharded.
    transformer_name: the network's folder in a pipeline.

    LoRA: pytorch_lora_weights.safetensors. Full: the folder `transformer_name` as `save_pretrained`
    writes it, with untrained weights taken from the network; weights.safetensors for a network that
    is no diffusers model. After an OSError (a full disk) an earlier export is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if model.train == "lora":
        return _save_adapters(plain, model, folder, transformer_name)
    if hasattr(network, "save_pretrained") and hasattr(network, "from_config"):
        return save_transformer(network, plain, folder / transformer_name)
    file = folder / "weights.safetensors"
    write_bytes(file, save(plain))
    return file


def _save_adapters(
    weights: dict[str, Tensor], model: ModelConfig, folder: Path, transformer_name: str
) -> Path:
    """One file; rank and alpha are metadata in it, without which diffusers takes alpha = rank."""
    named = {name.replace(f".{ADAPTER}.weight", ".weight"): v for name, v in weights.items()}
    settings: dict[str, Any] = {
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "target_modules": sorted({name.rpartition(".lora_")[0] for name in named}),
    }
    prefixed = {f"{transformer_name}.{key}": value for key, value in settings.items()}
    content = save(
        {f"{transformer_name}.{name}": value for name, value in named.items()},
        # A single key: safetensors writes several in no fixed order.
        {_LORA_METADATA: json.dumps(prefixed, sort_keys=True)},
    )
    file = folder / _LORA_FILE
    write_bytes(file, content)
    return file


def save_transformer(network: Any, weights: dict[str, Tensor], folder: Path) -> Path:
    """Write a diffusers model to `folder` as `save_pretrained` does, with these of its weights
    replaced.

    Atomic: after an OSError (a full disk) an earlier export is still there.
    """
    with torch.device("meta"):  # also of a sharded network this makes one that is not sharded
        whole = type(network).from_config(network.config)
    whole.load_state_dict({**network.state_dict(), **weights}, assign=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        whole.save_pretrained(partial)
        for path in (*partial.iterdir(), partial):
            flush(path)
    except SafetensorError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, folder) or error from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    flush(folder.parent)
    return folder
