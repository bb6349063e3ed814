"""Low-rank adapters (LoRA) beside the frozen layers of a network, and the network without them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mixgrpo.errors import ConfigError
from mixgrpo.maths.randomness import normal
from mixgrpo.settings.config import ModelConfig

# peft is imported where it is used: it costs seconds.

ADAPTER = "default"
"""The adapter's name, a part of its parameters' names: `<layer>.lora_A.default.weight`."""


def add_lora(network: nn.Module, model: ModelConfig, seed: int) -> None:
    """Freeze `network` and put an adapter beside each linear layer that `lora_targets` names.

    y = W x + (lora_alpha / lora_rank) B A x with A [rank, in] ~ N(0, 1 / rank^2) and B [out, rank]
    = 0 (Hu et al., 2021, section 4.1): at first the network's output does not change. Only A and B
    require a gradient; they are on the layer's device, in at least float32. A depends on the seed
    and the layer's name only; no global generator is used.

    ConfigError where a target is the end of no linear layer's name.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.functional import cast_adapter_dtype

    settings = LoraConfig(
        r=model.lora_rank,
        lora_alpha=model.lora_alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        target_modules=_layers(network, model.lora_targets),
    )
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(settings, network, ADAPTER)  # freezes the network
    cast_adapter_dtype(network, ADAPTER)
    # Drawn here: peft's draw depends on the order of the layers and is rounded to their dtype.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_A." in name:
                drawn = normal(tuple(parameter.shape), "lora", seed, name)
                parameter.copy_(drawn / model.lora_rank)


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Within this context `network` computes exactly what it did before adapters were added.

    For forward passes only: a backward pass with gradient checkpointing must see the same network
    both times.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        module
        for module in network.modules()
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters
    ]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge_adapters(network: nn.Module) -> None:
    """Add the adapters to the weights of their layers, in place; `network` then has no adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, module.get_base_layer())


def _layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The linear layers whose names end with a target, at a dot. ConfigError for a target that
    matches none."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    layers: dict[str, None] = {}
    for target in targets:
        matching = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matching:
            raise ConfigError(
                f"model.lora_targets: no linear layer's name ends with {target}; {_known(linear)}"
            )
        layers.update(dict.fromkeys(matching))
    return list(layers)


def _known(linear: list[str]) -> str:
    """Up to twelve of the layers, by what follows the last number of a block."""
    if not linear:
        return "the model has no linear layers: set model.train to full"
    ends: dict[str, None] = {}
    for name in linear:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
        ends[".".join(parts[numbers[-1] + 1 :] if numbers else parts)] = None
    shown = list(ends)[:12]
    return f"there are {', '.join(shown)}" + (", ..." if len(ends) > len(shown) else "")
