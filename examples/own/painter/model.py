"""The model `painter`: a velocity network over 3 x 4 x 4 pixels, and what a run asks of it."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from painter import PROMPTS, colours


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(torch.tanh(self.enter(x)))


class Network(nn.Module):
    """v(x, sigma, colour). Its blocks are in a ModuleList: FSDP gathers one at a time."""

    def __init__(self, pixels: int = 3 * 4 * 4, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(pixels + 4, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.last = nn.Linear(width, pixels)
        self.recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        self.recomputes = True

    def forward(self, x: Tensor, sigma: Tensor, colour: Tensor) -> Tensor:
        h = self.first(torch.cat([x.flatten(1), sigma.unsqueeze(1), colour], 1))
        for block in self.blocks:
            h = recompute(block, h, use_reentrant=False) if self.recomputes else block(h)
        return self.last(h).view_as(x)


class Painter:
    latent_shape = (3, 4, 4)  # the pixels themselves, mapped from [0, 1] to [-1, 1]

    def __init__(self, network: Network) -> None:
        self.network = network

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"colour": colours(prompts).to(self.network.first.weight.device)}

    def velocity(self, latents: Tensor, sigma: float | Tensor, text: dict[str, Tensor]) -> Tensor:
        time = torch.as_tensor(sigma, dtype=latents.dtype, device=latents.device)
        return self.network(latents, time.expand(len(latents)), text["colour"])

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents + 1) / 2).clamp(0, 1)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def train_prompts(self) -> list[str]:
        return [p for i, p in enumerate(PROMPTS) if i % 4]

    def held_out_prompts(self) -> list[str]:
        return PROMPTS[::4]


def load(checkpoint: str | None, device: str) -> Painter:
    """The weights in the file `checkpoint`; without one random ones, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    if checkpoint is not None:
        network.load_state_dict(load_file(checkpoint))
    return Painter(network.to(device))
