"""What the processes of a launched run do in the tests of ranks, and how they are launched.

    accelerate launch ... -m tests.mixgrpo.rank_children WHAT FOLDER

Each rank leaves what it found in FOLDER/<rank>.pt; the tests judge it.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mixgrpo.compute import ranks as ranks_module
from mixgrpo.compute.ranks import Ranks, join, leave
from tests.mixgrpo.toy import ROOT

COPIES = ("--multi_gpu",)
SHARDS = ("--use_fsdp", "--fsdp_version", "2")
ROWS = 5  # of two ranks one has three


def launch(flags: tuple[str, ...], *module: str, seconds: float = 60) -> tuple[int, str]:
    """`accelerate launch` a module in two processes on the CPU: exit code, everything it said."""
    quiet = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    count = ("--num_processes", "2", "--main_process_port", "0")
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *count, *quiet, "-m"]
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *module],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


class Net(nn.Module):
    """Layers outside and inside a list of blocks, with sizes that two ranks cannot halve.

    A block has a list of its own, and one of the blocks has no parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 5)
        self.blocks = nn.ModuleList([Block(), nn.Tanh(), Block()])
        self.leave = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 5)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[1](torch.tanh(self.layers[0](x)))


def problem() -> tuple[Net, Tensor, Tensor]:
    """A network, inputs [ROWS, 3] and targets [ROWS, 3], the same in every process."""
    torch.manual_seed(4)
    return Net(), torch.randn(ROWS, 3), torch.randn(ROWS, 3)


def messages(ranks: Ranks) -> dict[str, Any]:
    """What the ranks tell each other, each with something of its own."""
    r = ranks.rank
    own = {
        "uneven": torch.arange(6.0).view(3, 2) if r == 0 else torch.full((1, 2), 9.0),
        "first_empty": torch.ones(0, 2) if r == 0 else torch.arange(4.0).view(2, 2),
        "all_empty": torch.ones(0, 2),
        "halves": torch.tensor([0.5 + r], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False][: r + 1]),
        "numbers": torch.tensor([2**40 + r]),
    }
    return {
        "ranks": (ranks.rank, ranks.size, ranks.device, ranks.sharded, ranks.first),
        "joined_again": join() == ranks,
        "gathered": {name: ranks.gather(values) for name, values in own.items()},
        "objects": ranks.gather_objects({"rank": r, "groups": r * ["x"]}),
        "any": [ranks.any(False), ranks.any(r == 1), ranks.any(True)],
        "share": ranks.share(ROWS),
    }


def summed(ranks: Ranks) -> tuple[list[Tensor], list[int]]:
    """Gradients of several dtypes and layouts after `sum_gradients` in buckets of 40 bytes.

    And how many numbers each message had.
    """
    ranks_module._BUCKET_BYTES = 40
    sent, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda values: (sent.append(values.numel()), all_reduce(values))
    scale = 10**ranks.rank
    gradients = [
        torch.arange(6.0).view(2, 3) * scale,
        torch.tensor(7.0) * scale,
        torch.arange(4.0, dtype=torch.float64) * scale,
        torch.arange(30.0).view(5, 6).T * scale,
        torch.ones(3) * scale,
    ]
    ranks.sum_gradients(g for g in gradients)
    dist.all_reduce = all_reduce
    return gradients, sent


def train(ranks: Ranks) -> dict[str, Any]:
    """Weights, moments and gradient norms after some steps, every row in a backward of its own."""
    net, inputs, targets = problem()
    if ranks.sharded:
        ranks.shard(net, bf16=False)
    optimizer = torch.optim.AdamW(net.parameters(), 0.05, fused=True)
    indices, real = ranks.share(ROWS)
    norms = []
    for _ in range(4):
        optimizer.zero_grad()
        for k, i in enumerate(indices):
            loss = (net(inputs[i : i + 1]) - targets[i]).square().sum() / ROWS
            (loss * (k < real)).backward()
        ranks.sum_gradients(p.grad for p in net.parameters() if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        norms.append(float(ranks.whole(norm)))
        optimizer.step()
    moments = {k: ranks.whole(optimizer.state[p]["exp_avg"]) for k, p in net.named_parameters()}
    weights = {k: ranks.whole(p) for k, p in net.named_parameters()}
    return {"weights": weights, "moments": moments, "norms": norms}


def round_trip(ranks: Ranks) -> dict[str, Any]:
    """Weights put into a sharded network between two forwards without a backward."""
    net, inputs, _ = problem()
    ranks.shard(net, bf16=False)
    units = [name for name, module in net.named_modules() if isinstance(module, FSDPModule)]
    held = sum(p.to_local().numel() for p in net.parameters())
    parameters = dict(net.named_parameters())  # held on to, as by an optimizer
    before = {k: ranks.whole(p) for k, p in parameters.items()}
    with torch.no_grad():
        net(inputs)
        for parameter in parameters.values():
            ranks.put(2 * ranks.whole(parameter), parameter)
        doubled = net(inputs)
    plain = torch.zeros(2, 2)
    ranks.put(torch.ones(2, 2), plain)
    return {
        "units": units,
        "held": ranks.gather(torch.tensor([held])).tolist(),
        "whole": before,
        "doubled": doubled,
        "plain": plain,
    }


def two_forwards(ranks: Ranks) -> dict[str, Tensor]:
    """The gradient of two forwards of every rank's own row in one backward."""
    net, inputs, _ = problem()
    ranks.shard(net, bf16=False)
    first, second = net(inputs[ranks.rank : ranks.rank + 1]), net(inputs[2:3])
    (first.square().sum() + second.sum()).backward()
    return {k: ranks.whole(p.grad) for k, p in net.named_parameters() if p.grad is not None}


def lowered(ranks: Ranks) -> dict[str, Any]:
    """A network of frozen bfloat16 weights and float32 biases, sharded to compute in bfloat16."""
    net, inputs, _ = problem()
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            parameter.requires_grad_(False).data = parameter.data.bfloat16()
    seen = []
    net.enter.register_forward_pre_hook(
        lambda module, args: seen.extend([str(args[0].dtype), str(module.bias.dtype)])
    )
    ranks.shard(net, bf16=True)
    with torch.autocast("cpu", torch.bfloat16):
        net(inputs[:1]).sum().backward()
    gradients = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    return {
        "seen": seen,
        "kept": sorted({str(p.dtype) for p in net.parameters() if p.requires_grad}),
        "gradients": {k: ranks.whole(g) for k, g in gradients.items()},
    }


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = join()
    if what == "death":
        ranks.wait()
        if not ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.wait()
    found = {**messages(ranks), "summed": summed(ranks), "trained": train(ranks)}
    if ranks.sharded:
        found |= {
            "round_trip": round_trip(ranks),
            "two_forwards": two_forwards(ranks),
            "lowered": lowered(ranks),
        }
    torch.save(found, folder / f"{ranks.rank}.pt")
    ranks.wait()
    leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
