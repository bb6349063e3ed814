"""The optimizer that a configuration names, its learning rate, and its state as tensors by name."""

import importlib
import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from mixgrpo.catalogue.modules import imports_noted, is_standard
from mixgrpo.compute.foreign import in_words, stays
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.settings.config import OptimizerConfig

_SETTINGS = ("lr", "betas", "weight_decay")
_NUMBERS: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "int": torch.int64,
    "float": torch.float64,
}


@stays()
def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer `config.name` of the parameters, which are one group.

    `adamw` is torch's, fused. Another is called with the parameters, those of lr, betas and
    weight_decay that its signature names, and the options. ConfigError for a path that leads to
    no optimizer, for settings that it does not take, and for parameters that it refuses.
    """
    trained = list(parameters)
    if config.name == "adamw":
        kind: type[torch.optim.Optimizer] = torch.optim.AdamW
        chosen: dict[str, Any] = {"fused": True}
    else:
        kind = _import(config.name)
        chosen = {}
    chosen |= _arguments(config, kind)
    try:
        return kind(trained, **chosen)
    except (Exception, SystemExit) as error:
        reason = in_words(error)
        if _takes(kind, [nn.Parameter(torch.zeros(2, 2))], chosen):
            raise ConfigError(
                f"optimizer.name {config.name}: refuses the weights that are trained ({reason}); "
                "train with model.train lora, whose weights are all matrices, or name another "
                "optimizer"
            ) from error
        raise ConfigError(
            f"optimizer.name {config.name}: refuses its settings ({reason}); change them or "
            "optimizer.options"
        ) from error


def learning_rate(config: OptimizerConfig, iteration: int, iterations: int) -> float:
    """The rate of `iteration` of a run of `iterations`, counted from 0.

    lr (i + 1) / warmup while that rises. Then, with p the finished part of what is left after the
    warm-up: lr, lr (1 - p) or lr (1 + cos(pi p)) / 2, which is 0 only when the last iteration is
    over (the cosine: Loshchilov and Hutter, 2017, eq. 5).
    """
    if iteration < config.warmup:
        return config.lr * ((iteration + 1) / config.warmup)
    left = (iterations - iteration) / (iterations - config.warmup)
    if config.schedule == "linear":
        return config.lr * left
    if config.schedule == "cosine":  # (1 + cos(pi p)) / 2, but exact where it is small
        return config.lr * math.sin(math.pi / 2 * left) ** 2
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The next steps are taken with this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(
    optimizer: torch.optim.Optimizer, names: dict[str, nn.Parameter], keep: bool = True
) -> dict[str, Tensor]:
    """All that the optimizer remembers, on the CPU, for a checkpoint.

    Without `keep` one tensor after the other is gathered, for the other ranks, and let go of.

    `<parameter>/<key>` is a tensor of a parameter's state, whole where that is sharded (then this
    is a collective); on the CPU it shares the optimizer's memory. `<parameter>/<key>:<type>` is a
    number as a tensor []. `/<key>` is what moved in the settings of the optimizer's group, apart
    from the learning rate. ConfigError for an optimizer that remembers anything else.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            held = _as_tensor(f"{name}/{key}", value)
            if held is None:
                raise ConfigError(
                    f"optimizer.name: {type(optimizer).__name__} keeps {key} as a "
                    f"{type(value).__name__}, which a checkpoint cannot hold; name another "
                    "optimizer"
                )
            state.update(held if keep else {})
    if set(optimizer.state) - set(names.values()):
        raise ConfigError(
            f"optimizer.name: {type(optimizer).__name__} keeps state that belongs to no weight, "
            "which a checkpoint cannot hold; name another optimizer"
        )
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key not in ("params", "lr") and value is not optimizer.defaults.get(key):
                moved = _as_tensor(f"/{key}", value)
                if moved is None:
                    raise ConfigError(
                        f"optimizer.name: {type(optimizer).__name__} changes its {key}, which a "
                        "checkpoint cannot hold; name another optimizer"
                    )
                state.update(moved)
    return state


def load_state(
    optimizer: torch.optim.Optimizer,
    names: dict[str, nn.Parameter],
    tensors: dict[str, Tensor],
) -> None:
    """Take over copies of what `state_tensors` gave; the optimizer may be fresh.

    Beside a sharded parameter every rank cuts its own shard from the whole. RunError for state of
    a weight that there is not.
    """
    optimizer.state.clear()
    for name, tensor in tensors.items():
        owner, _, rest = name.rpartition("/")
        key, _, number = rest.partition(":")
        value: Any = tensor.item() if number else tensor
        if not owner:
            for group in optimizer.param_groups:
                group[key] = value if number else tensor.to(group["params"][0].device)
            continue
        if owner not in names:
            raise RunError(f"the checkpoint is of another model: there is no {owner} to optimize")
        parameter = names[owner]
        if not number:
            value = _beside(parameter, key, tensor, optimizer.param_groups[0])
        optimizer.state[parameter][key] = value


def _beside(parameter: nn.Parameter, key: str, whole: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of state where the optimizer expects it: with its parameter, and sharded like it.

    A count of steps stays on the CPU, unless the optimizer says that it keeps it on the device.
    """
    if key == "step" and not (group.get("fused") or group.get("capturable")):
        return whole.clone()
    if whole.ndim == 0 or not isinstance(parameter, DTensor):
        return whole.to(parameter.device, copy=True)
    mesh = parameter.device_mesh
    same = whole.shape == parameter.shape  # else sums over rows or columns, whole on every rank
    return distribute_tensor(
        whole.to(parameter.device, copy=True),
        mesh,
        parameter.placements if same else [Replicate()] * mesh.ndim,
        src_data_rank=None,
    )


def _as_tensor(name: str, value: Any) -> dict[str, Tensor] | None:
    """A tensor or number of the state under its name in a checkpoint; None for another thing."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return {name: value.detach().cpu()}
    kind = type(value).__name__
    if kind not in _NUMBERS:
        return None
    return {f"{name}:{kind}": torch.tensor(value, dtype=_NUMBERS[kind])}


def _import(path: str) -> type[torch.optim.Optimizer]:
    """The class `package.module.Class` or `package.module:Class`. ConfigError without one."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    try:
        # No module of the standard library is one, and importing it may do things.
        with imports_noted(path):
            kind = None if is_standard(module) else getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"optimizer.name {path}: cannot be imported ({in_words(error)}); name adamw or an "
            "installed optimizer such as torch.optim.Adafactor"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(
            f"optimizer.name {path}: is no torch.optim.Optimizer; name a class that is one, such "
            "as torch.optim.Adafactor"
        )
    step = inspect.signature(kind.step).parameters.get("closure")
    if step is not None and step.default is inspect.Parameter.empty:
        raise ConfigError(
            f"optimizer.name {path}: computes the loss several times in a step, which a policy's "
            "update does not offer; name another optimizer"
        )
    return kind


def _arguments(config: OptimizerConfig, kind: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """What it is called with beside the parameters. ConfigError for what it does not take."""
    _, *known = inspect.signature(kind).parameters.values()
    names = [p.name for p in known if p.kind is not p.VAR_KEYWORD]
    anything = len(names) < len(known)
    for key in config.options:
        if key in _SETTINGS:
            raise ConfigError(f"optimizer.options {key}: is a setting; write optimizer.{key}")
        if key not in names and not anything:
            rest = ", ".join(name for name in names if name not in _SETTINGS)
            raise ConfigError(
                f"optimizer.options {key}: {config.name} takes no such option; it takes: {rest}"
            )
    for key in _SETTINGS:
        default = OptimizerConfig.model_fields[key].default
        if key not in names and getattr(config, key) != default:
            raise ConfigError(
                f"optimizer.{key} {getattr(config, key)}: {config.name} takes no {key}; leave it "
                f"at its default {default}"
            )
    settings = {key: getattr(config, key) for key in _SETTINGS if key in names}
    return settings | config.options


def _takes(
    kind: type[torch.optim.Optimizer], parameters: list[nn.Parameter], arguments: dict[str, Any]
) -> bool:
    try:
        kind(parameters, **arguments)
    except (Exception, SystemExit):
        return False
    return True
