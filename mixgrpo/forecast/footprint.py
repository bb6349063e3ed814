"""What one pass of a network takes: memory and floating-point operations, without computing it.

The network runs on fake tensors, which have shapes and dtypes and no data (torch's FakeTensorMode).
So these are no formulas that an architecture could outgrow: every tensor that the pass would make
is counted from its birth to its death, checkpoints that are computed again included. Not counted
is what a device adds: the allocator's rounding and fragments, workspaces of its libraries.
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
    """Of one pass. Bytes are those beyond the network's own weights, gradients and inputs."""

    saved: int
    """Bytes that the forward leaves behind for the backward; 0 without gradient."""
    peak: int
    """The most bytes that are alive at a time, in forward or backward."""
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
    """The footprint of the pass that `prepare` gives, and with `gradient` of its backward.

    `networks`: those that the pass uses. They are on the meta device, and can only be traced again
    afterwards. `prepare` makes inputs on the CPU, which the footprint does not count, and returns a
    function that calls the networks. `bf16`: under autocast, whose rules `as_on` gives: "cuda" or
    "cpu" (on CUDA norms are computed in float32). Attention is fused: it keeps queries, keys,
    values, its output and one number per query (FlashAttention, arXiv 2205.14135), and no matrix of
    scores.
    """
    ledger = _Ledger()
    # The trace is a CPU's; only autocast's rules for norms are another device's.
    with _fakes(), torch.device("cpu"):
        for network in networks:
            _without_data(network)
            if bf16 and as_on == "cuda":
                _norms_in_full(network)
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
def _fakes() -> Any:
    """One mode for all traces: modules may keep what they computed in an earlier one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: Any = FakeTensorMode
    return mode()


def _without_data(network: nn.Module) -> None:
    """Replace what is on the meta device by fake tensors, in place, with gradients where they are
    wanted: they are there before the pass, so that it adds to them."""
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
    """Some storages, however many views there are of each."""

    def __init__(self) -> None:
        self._found: dict[int, ref[Any]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        found = self._found.get(id(storage))
        return found is not None and found() is storage

    def add(self, tensor: Tensor, gone: Callable[[Any], None] | None = None) -> None:
        """`gone` is called when the storage is freed."""
        storage = tensor.untyped_storage()
        self._found[id(storage)] = ref(storage, gone)


class _Ledger(TorchDispatchMode):
    """Counts the bytes that the operations within it make and keep, and the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made, self._foreign, self._saved = _Storages(), _Storages(), _Storages()
        self._alive = self.peak = self.saved = self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if tensor not in self._made:  # it was there before, and so are its views
                self._foreign.add(tensor)
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _ATTENTION:
            self.flops += _ATTENTION[packet](*(a.shape for a in args if isinstance(a, Tensor)))
        elif packet in flop_registry:
            self.flops += _FLOPS[packet](*args, **kwargs, out_val=out)
        for tensor in _tensors(out):
            if tensor not in self._foreign and tensor not in self._made:
                self._born(tensor)
        return out

    def _born(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()

        def gone(_: Any) -> None:
            self._alive -= size

        self._made.add(tensor, gone)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def save(self, tensor: Tensor) -> Tensor:
        """What autograd does with a tensor that its backward needs."""
        if tensor in self._made and tensor not in self._saved:
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
_ATTENTION: dict[Any, Callable[..., int]] = {  # the CPU's, which torch's own registry lacks
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _norms_in_full(network: nn.Module) -> None:
    """Norms as autocast has them on CUDA: in and out in float32."""

    def lift(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if isinstance(a, Tensor) else a for a in args)

    for module in network.modules():
        if isinstance(module, _NORMS):
            module.register_forward_pre_hook(lift)
