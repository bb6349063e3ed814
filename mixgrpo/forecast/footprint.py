"""What one pass of a network takes: memory and floating-point operations, without computing it.

The network runs on fake tensors, which have shapes and dtypes and no data (torch's FakeTensorMode).
So no formula depends on the architecture: every tensor that the pass would make is counted from
its allocation until it is freed, recomputed activations included. Not counted is what a device
adds: the allocator's rounding and fragments, workspaces of its libraries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Pass = Callable[[], Tensor]


@dataclass(frozen=True)
class Footprint:
    """What one pass takes. Weights, gradients and inputs are not counted."""

    saved: int
    """Bytes that the forward keeps for the backward; 0 without gradient."""
    peak: int
    """The most bytes that are allocated at a time, in forward or backward."""
    flops: int
    """Floating-point operations of matrix products, convolutions and attention, two for a
    multiplication with its addition: of the forward, and of the backward if there is one."""


def footprint(
    networks: Sequence[nn.Module],
    prepare: Callable[[], Pass],
    gradient: bool,
    bf16: bool = False,
    as_on: str = "cuda",
) -> Footprint:
    """The footprint of the pass that `prepare` returns, and with `gradient` of its backward.

    networks: those that the pass uses, on the meta device. Afterwards they can only be traced
        again, not run.
    prepare: makes inputs on the CPU, which are not counted, and returns a function that calls the
        networks.
    bf16: run under autocast by the rules of the device type `as_on`, "cuda" or "cpu" (on CUDA norms
        are computed in float32).

    Attention is fused: it keeps queries, keys, values, its output and one number per query
    (FlashAttention, arXiv 2205.14135), and no matrix of scores.
    """
    ledger = _Ledger()
    # The trace runs as on a CPU; only autocast's rule for norms is taken from `as_on`.
    with _fake_mode(), torch.device("cpu"):
        for network in networks:
            _replace_by_fakes(network)
            if bf16 and as_on == "cuda":
                _norms_in_float32(network)
        run = prepare()
        with ledger, torch.set_grad_enabled(gradient):
            with (
                torch.autograd.graph.saved_tensors_hooks(ledger.save, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            ):
                out = run().float()
            if gradient:
                out.backward(torch.ones_like(out))
    return Footprint(ledger.saved, ledger.peak, ledger.flops)


@cache
def _fake_mode() -> Any:
    """One mode for all traces: modules may keep what they computed in an earlier one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: Any = FakeTensorMode
    return mode()


def _replace_by_fakes(network: nn.Module) -> None:
    """Replace meta tensors by fake ones, in place. Gradients are allocated before the pass, so that
    it adds to them."""
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                new: Tensor = torch.empty(old.shape, dtype=old.dtype)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, old.requires_grad)
                    if old.requires_grad:
                        new.grad = torch.empty_like(new)
                store[name] = new  # type: ignore[assignment]
        for name, value in vars(module).items():  # neither parameter nor buffer
            if isinstance(value, Tensor):
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype))


class _Storages:
    """A set of storages; all views of one are the same member."""

    def __init__(self) -> None:
        self._refs: dict[int, ref[Any]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        known = self._refs.get(id(storage))
        return known is not None and known() is storage

    def add(self, tensor: Tensor, on_free: Callable[[Any], None] | None = None) -> None:
        """`on_free` is called when the storage is freed."""
        storage = tensor.untyped_storage()
        self._refs[id(storage)] = ref(storage, on_free)


class _Ledger(TorchDispatchMode):
    """Counts the bytes that the operations within it make and keep, and the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._allocated, self._inputs, self._saved = _Storages(), _Storages(), _Storages()
        self._alive = self.peak = self.saved = self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if tensor not in self._allocated:  # it existed before, and so did its views
                self._inputs.add(tensor)
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _ATTENTION:
            self.flops += _ATTENTION[packet](*(a.shape for a in args if isinstance(a, Tensor)))
        elif packet in flop_registry:
            self.flops += _FLOPS[packet](*args, **kwargs, out_val=out)
        for tensor in _tensors(out):
            if tensor not in self._inputs and tensor not in self._allocated:
                self._allocate(tensor)
        return out

    def _allocate(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()

        def on_free(_: Any) -> None:
            self._alive -= size

        self._allocated.add(tensor, on_free)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def save(self, tensor: Tensor) -> Tensor:
        """Called by autograd for each tensor that its backward needs."""
        if tensor in self._allocated and tensor not in self._saved:
            self._saved.add(tensor)
            self.saved += tensor.untyped_storage().nbytes()
        return tensor


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any) -> int:
    count: int = sdpa_backward_flop_count(gradient, query, key, value)
    return count


def _attention(query: Any, key: Any, value: Any, *_: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)
    return count


_FLOPS: dict[Any, Callable[..., int]] = flop_registry
_ATEN = torch.ops.aten
_ATTENTION: dict[Any, Callable[..., int]] = {  # the CPU's, which torch's registry lacks
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _norms_in_float32(network: nn.Module) -> None:
    """Norms take and return float32, as under autocast on CUDA."""

    def cast(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if isinstance(a, Tensor) else a for a in args)

    for module in network.modules():
        if isinstance(module, _NORMS):
            module.register_forward_pre_hook(cast)
