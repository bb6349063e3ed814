"""The processes ("ranks") of one run, as `accelerate launch` or torchrun started them.

Two ways to use them: every rank has a whole copy of the network, or each has a shard of it (FSDP2).
Either way a rank works on its share of the rows and gradients are summed. Nothing here knows what
is trained. What ranks exchange, except gradients and weights, goes through the CPU.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError, RunError

_BUCKET_BYTES = 2**28
"""Gradients are summed over the ranks in flat buffers of at most this size."""

_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that launchers set for a process."""

_MEETING = timedelta(seconds=float(os.environ.get("MIXGRPO_MEETING_SECONDS", "600")))
"""How long a rank waits for the others at the beginning."""
_SILENCE_S = 5.0
"""Seconds after which it says that it waits."""

_PATIENCE = timedelta(minutes=30)
"""How long a rank waits for a living one, which may be writing a checkpoint; the end of a dead one
is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run.

    What is marked as a collective must be called by all ranks, in the same order. With one process
    everything works without a process group.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    """Where this rank computes: "cpu", or "cuda:<local rank>"."""
    sharded: bool = False
    """Whether the network is to be sharded over the ranks, rather than copied to each."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def share(self, count: int) -> tuple[list[int], int]:
        """This rank's indices of `count` items, and how many of them are real.

        Shares are contiguous, in the order of ranks, and differ by at most one in size. A forward
        of a sharded network is a collective, so there every rank gets equally many: the last item
        again, after the real ones, where a rank has fewer.
        """
        each, larger = divmod(count, self.size)
        begin = self.rank * each + min(self.rank, larger)
        real = list(range(begin, begin + each + (self.rank < larger)))
        missing = -(-count // self.size) - len(real) if self.sharded else 0
        return real + missing * [count - 1], len(real)

    def gather(self, values: Tensor) -> Tensor:
        """The ranks' CPU tensors [n, ...], concatenated in the order of ranks. A collective.

        Everything but n, which may be 0, must be the same on every rank.
        """
        if self.size == 1:
            return values
        import torch.distributed as dist

        rows = torch.zeros(self.size, dtype=torch.int64)
        rows[self.rank] = len(values)
        dist.all_reduce(rows)
        longest = int(rows.max())
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values.detach()
        of_all = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(of_all, padded)
        return torch.cat([part[:n] for part, n in zip(of_all, rows.tolist(), strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """The ranks' values, which can be pickled, in the order of ranks. A collective."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        of_all: list[Any] = [None] * self.size
        dist.all_gather_object(of_all, value)
        return of_all

    @torch.no_grad()
    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Sum over the ranks, in place. A collective: the same shapes and dtypes on every rank.

        A rank without rows must bring zeros. The gradients of a sharded network are summed by its
        backward; they are left as they are.
        """
        if self.size == 1 or self.sharded:
            return
        import torch.distributed as dist

        for bucket in _buckets(gradients):
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            parts = flat.split([g.numel() for g in bucket])
            for gradient, total in zip(bucket, parts, strict=True):
                gradient.copy_(total.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. A collective."""
        if self.size == 1:
            return flag
        import torch.distributed as dist

        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def wait(self) -> None:
        """Return once every rank is here. A collective."""
        # Not dist.barrier: that may pick the device, whose work need not be waited for.
        self.any(False)

    def shard(self, network: nn.Module, bf16: bool) -> None:
        """Shard the parameters of `network` over the ranks, in place (FSDP2).

        Each block of layers (a child of an outermost nn.ModuleList) is gathered when it is used;
        from then on a forward or backward is a collective. Gradients are summed, not averaged, so
        that a loss divided by the number of all ranks' rows is right. With `bf16` blocks are
        gathered in bfloat16 and their gradients are summed in float32; inputs are left as they
        are, so the network must run under autocast. Parameters become DTensors: make optimizers
        and averages afterwards.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(torch.device(self.device).type, (self.size,))
        # Casting inputs too would round sigma, and with it every log-prob.
        policy = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            if bf16
            else MixedPrecisionPolicy()
        )
        # Blocks return views that nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for module in [*_blocks(network), network]:
            # Parameters of the network itself are by default kept gathered after a forward; one
            # without a backward would then hide what is put into them next.
            shard = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            shard.set_gradient_divide_factor(1.0)
            # gloo knows no reduction but the plain sum.
            shard.set_force_sum_reduction_for_comms(True)

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a parameter or moment, detached and on the CPU. A collective where it is sharded.

        What is neither sharded nor on a device shares its memory.
        """
        if self.sharded:
            from torch.distributed.tensor import DTensor

            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor()
        return tensor.detach().cpu()

    @torch.no_grad()
    def put(self, whole: Tensor, into: Tensor) -> None:
        """Copy all of a tensor, the same on every rank, into a parameter or moment."""
        if self.sharded:
            from torch.distributed.tensor import DTensor, distribute_tensor

            if isinstance(into, DTensor):
                # Without a source every rank cuts its own part, and nothing is sent.
                whole = distribute_tensor(
                    whole.to(into.device), into.device_mesh, into.placements, src_data_rank=None
                )
        into.copy_(whole)


def join() -> Ranks:
    """This process among those that the launcher started; alone without a launcher.

    ConfigError for options of the launcher that have no effect here: FSDP version 1, or several
    processes of which `accelerate launch` started only this one.
    """
    asked = os.environ
    on_gpu = torch.cuda.is_available() and not _is_true("ACCELERATE_USE_CPU")
    sharded = _is_true("ACCELERATE_USE_FSDP")
    if sharded and asked.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            f"accelerate launch: FSDP version {asked.get('FSDP_VERSION', '1')} is not supported; "
            "add --fsdp_version 2 (fsdp_version: 2 in accelerate's file)"
        )
    if _is_true("ACCELERATE_USE_DEEPSPEED") or (sharded and _is_true("FSDP_OFFLOAD_PARAMS")):
        raise ConfigError(
            "accelerate launch: neither DeepSpeed nor offloading to the CPU is supported; use "
            "--multi_gpu, or --use_fsdp --fsdp_version 2"
        )
    if "WORLD_SIZE" not in asked and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= asked.keys():
        raise ConfigError(
            "accelerate launch: without --multi_gpu or --use_fsdp it starts one process whatever "
            "--num_processes says; add --multi_gpu, on the CPU too, or take one process (and unset "
            "MASTER_ADDR)"
        )
    # All three: some sites set one of them in every job.
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= asked.keys() or asked["WORLD_SIZE"] == "1":
        return Ranks(device="cuda" if on_gpu else "cpu")

    import accelerate

    backend = "cuda:nccl,cpu:gloo" if on_gpu else "gloo"
    _meet(backend, on_gpu)
    state = accelerate.PartialState(cpu=not on_gpu, backend=backend, timeout=_PATIENCE)
    device = str(state.device) if on_gpu else "cpu"
    return Ranks(state.process_index, state.num_processes, device, sharded)


def _meet(backend: str, on_gpu: bool) -> None:
    """Wait for the other processes of the run; what starts them is taken from the environment.

    ConfigError for an environment that no launcher makes and for a process without a GPU to itself,
    RunError where the others do not come.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return
    asked = {name: os.environ.get(name, "") for name in _OF_LAUNCHERS}
    taken = ", ".join(f"{name}={value}" for name, value in asked.items() if value)
    alone = "to run it alone, unset RANK, LOCAL_RANK and WORLD_SIZE"
    try:
        rank, size, local, port = (int(asked[name]) for name in (*_OF_LAUNCHERS[:3], "MASTER_PORT"))
        fits = 0 <= rank < size and 0 <= port < 2**16 and asked["MASTER_ADDR"] != ""
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"environment: {taken} is not what accelerate launch or torchrun sets; {alone}"
        )
    there = torch.cuda.device_count()
    # With CUDA_VISIBLE_DEVICES each may see another one alone.
    if on_gpu and "CUDA_VISIBLE_DEVICES" not in os.environ and local >= there:
        raise ConfigError(
            f"accelerate launch: process {local + 1} of this machine has no GPU of its own, for "
            f"there are {there}; start {there} here (--num_processes over all machines)"
        )
    process = f"process {rank} of {size}, as the environment says ({taken})"
    waiting = f"{process}: waits for the others for up to {_MEETING.total_seconds():g} s; {alone}"
    spoken = threading.Timer(_SILENCE_S, print, [waiting], {"file": sys.stderr, "flush": True})
    spoken.daemon = True
    spoken.start()
    try:
        with signals.deadly():
            store, _, _ = next(rendezvous("env://", timeout=_MEETING))
            store.set_timeout(_MEETING)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE
            )
    except (dist.DistError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            f"{process}: the others did not come within {_MEETING.total_seconds():g} s ({reason}); "
            f"start all of them with accelerate launch or torchrun; {alone}"
        ) from error
    finally:
        spoken.cancel()


def leave() -> None:
    """End the connection to the other ranks, where there is one: the last thing a process does.

    Not a collective; call it where a rank failed too.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        # gloo's threads may yet have to let go of the last tensors. They need the interpreter for
        # that, and abort the process where it is being torn down.
        time.sleep(0.2)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of at most `_BUCKET_BYTES` together, unless one alone is larger."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children with parameters of the outermost ModuleLists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)
