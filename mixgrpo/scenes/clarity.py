"""A learned reward of the scenes: how clean a picture looks, whatever it shows.

A small convolutional network, trained to distinguish renders from renders that were blurred, made
noisy, tinted on the background, partly erased, dulled or jittered. Unlike `palette` it sees
structure: ragged edges, holes, residue. `python -m mixgrpo.scenes.clarity --seed 0` trains it
again.
"""

import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from scipy import ndimage
from torch import Tensor, nn

from mixgrpo import cli
from mixgrpo.catalogue.scenes import CLARITY_WEIGHTS
from mixgrpo.compute.machine import machine
from mixgrpo.files.atomic import write_bytes, write_json
from mixgrpo.scenes.prompts import all_prompts, parse
from mixgrpo.scenes.render import PALETTE, SIZE, render
from mixgrpo.settings.paths import check_weights_file

CORRUPTIONS = ("blur", "noise", "residue", "erasure", "dullness", "jitter")
VISIBLE = 0.2
"""Least severity of a corruption that counts in the held-out accuracy."""


class ClarityNet(nn.Module):
    """Images [B, 3, 16, 16] in [0, 1] -> logits [B]; high is clean."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images * 2 - 1)
        return logits.squeeze(1)


def clarity(images: Tensor, prompts: list[str]) -> Tensor:
    """How clean each image looks, in [0, 1]: about 1 minus the severity of its corruption.

    images [B, 3, 16, 16] in [0, 1] -> [B] float32. Prompts are ignored.
    """
    with torch.no_grad():
        scores: Tensor = _shipped(str(images.device))(images.detach().float()).sigmoid()
    return scores


@cache
def _shipped(device: str) -> ClarityNet:
    net = ClarityNet()
    net.load_state_dict(load_file(CLARITY_WEIGHTS))
    return net.eval().requires_grad_(False).to(device)


def corrupt(
    image: NDArray[np.float32], how: str, severity: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """`image` [3, 16, 16] with the corruption `how` of `CORRUPTIONS`; `severity` in [0, 1], from
    hardly visible to unrecognisable."""
    corrupted: NDArray[np.floating]
    if how == "blur":
        corrupted = ndimage.gaussian_filter(image, (0, 2 * severity, 2 * severity))
    elif how == "noise":
        corrupted = image + 0.5 * severity * rng.standard_normal(image.shape)
    elif how == "residue":
        corrupted = image + 0.6 * severity * _residue(rng) * (image.max(0) == 0)
    elif how == "erasure":
        holes = _smooth_field(rng, rng.uniform(0.4, 1.2))
        corrupted = image * (holes > np.quantile(holes, 0.6 * severity))
    elif how == "dullness":
        tint = rng.uniform(0, 0.5, (3, 1, 1))
        corrupted = image + severity * (tint - image) * (image.max(0) > 0)
    else:
        rows, columns = np.indices((SIZE, SIZE))
        push = 2.5 * severity * rng.standard_normal((2, SIZE, SIZE))
        rows = np.clip(np.rint(rows + push[0]), 0, SIZE - 1).astype(int)
        columns = np.clip(np.rint(columns + push[1]), 0, SIZE - 1).astype(int)
        corrupted = image[:, rows, columns]
    clamped: NDArray[np.float32] = np.clip(corrupted, 0, 1).astype(np.float32)
    return clamped


def _residue(rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour on the background [3, 16, 16] in [0, 1]: even, smooth, or periodic."""
    colour = np.array(list(PALETTE.values()))[rng.integers(4)] if rng.random() < 0.5 else None
    tint: NDArray[np.float64] = (rng.random(3) if colour is None else colour)[:, None, None]
    pattern = rng.integers(3)
    if pattern == 0:
        return np.broadcast_to(tint, (3, SIZE, SIZE))
    if pattern == 1:
        field = _smooth_field(rng, rng.uniform(0.7, 2.0))
        return tint * np.clip(field, 0, 1.5) / 1.5
    rows, columns = np.indices((SIZE, SIZE)) * (np.pi / rng.choice([1, 2, 4, 8]))
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves: NDArray[np.float64] = np.cos(rows + phase[0]) * np.cos(columns + phase[1])
    return tint * (0.5 + 0.5 * waves)


def _smooth_field(rng: np.random.Generator, width: float) -> NDArray[np.float64]:
    """Noise [16, 16] smoothed over `width` pixels, of unit standard deviation."""
    field = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), width)
    scaled: NDArray[np.float64] = field / field.std()
    return scaled


def examples(seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of (images [2 * batch, 3, 16, 16], severity [batch]): first the clean images,
    then each of them corrupted. Severity is uniform in (0, 1]."""
    rng = np.random.default_rng(seed)
    scenes = [parse(p) for p in all_prompts()]
    while True:
        clean = [render(scenes[i], rng) for i in rng.integers(len(scenes), size=batch)]
        severity = 1 - rng.random(batch)
        corrupted = [
            corrupt(image, CORRUPTIONS[k], s, rng)
            for image, k, s in zip(
                clean, rng.integers(len(CORRUPTIONS), size=batch), severity, strict=True
            )
        ]
        yield torch.from_numpy(np.stack(clean + corrupted)), torch.from_numpy(severity).float()


def train(seed: int, iterations: int, batch: int = 64, lr: float = 3e-3) -> ClarityNet:
    """A network trained to predict 1 - severity, by cross entropy with soft labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ClarityNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations)
    data = examples(seed, batch)
    for done in range(1, iterations + 1):
        images, severity = next(data)
        target = torch.cat([torch.ones(batch), 1 - severity])
        loss = F.binary_cross_entropy_with_logits(net(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if done % 250 == 0:
            print(f"{done:5d}  loss {float(loss.detach()):.4f}", flush=True)
    return net.eval()


def held_out_quality(net: ClarityNet, seed: int, batch: int = 4096) -> dict[str, float]:
    """On unseen pairs: how often the clean image scores higher, and the error of 1 - severity."""
    images, severity = next(examples(seed + 1_000_000, batch))
    with torch.no_grad():
        clean, corrupted = net(images).sigmoid().chunk(2)
    visible = severity >= VISIBLE
    return {
        "accuracy": round(float((clean > corrupted)[visible].float().mean()), 4),
        "accuracy_counts_severity_from": VISIBLE,
        "mean_absolute_error": round(float((corrupted - (1 - severity)).abs().mean()), 4),
        "mean_clean": round(float(clean.mean()), 4),
        "mean_corrupted": round(float(corrupted.mean()), 4),
    }


def main(
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of the weights and the examples.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = CLARITY_WEIGHTS,
    iterations: Annotated[int, typer.Option(min=1, help="How long to train.")] = 2500,
) -> None:
    """Train the scorer and write it with a JSON file that describes it."""
    check_weights_file("--out", out)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    net = train(seed, iterations)
    seconds = round(time.perf_counter() - begin)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, save(net.state_dict()))
    described = {
        "command": f"python -m mixgrpo.scenes.clarity --seed {seed} --iterations {iterations}",
        "seed": seed,
        "iterations": iterations,
        "seconds": seconds,
        "machine": machine(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "held_out": held_out_quality(net, seed),
    }
    write_json(out.with_suffix(".json"), described)
    print(json.dumps(described, indent=2))


if __name__ == "__main__":
    cli.run(main)
