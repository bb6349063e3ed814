"""Trains the base model of the scenes from scratch, by rectified flow on rendered scenes.

`python -m mixgrpo.pretrain --seed 0` writes the weights that ship with the package, and
beside them a JSON file that says how they were trained and how good they are. Held-out prompts are
never rendered. The result depends on the seed and the number of iterations, not on the clock.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.nn import Parameter

from mixgrpo import cli
from mixgrpo.catalogue.scenes import CLARITY_WEIGHTS, SIZES, weights_file
from mixgrpo.compute.machine import machine
from mixgrpo.errors import ConfigError
from mixgrpo.evaluation.held_out import LARGEST_SEED, evaluate, evaluation_noise
from mixgrpo.files.atomic import write_json
from mixgrpo.models.scenes import ScenesPolicy
from mixgrpo.rewards.load import load_reward
from mixgrpo.scenes.model import (
    SIZES_OF,
    ScenesModel,
    Sizes,
    random_model,
    save_model,
    word_indices,
)
from mixgrpo.scenes.prompts import Scene, held_out_prompts, parse, train_prompts
from mixgrpo.scenes.render import render
from mixgrpo.settings.paths import check_weights_file

KIND_SHARES = {"single": 0.1, "count": 0.2, "relation": 0.7}
"""How often each kind of prompt is drawn; within a kind all are equally likely."""
SIGMA_LOGIT = 0.5
"""Mean of the logit of sigma; in one short trial layouts were learned faster than with 0."""


@dataclass(frozen=True)
class Recipe:
    """The settings that, with the seed, determine the weights."""

    iterations: int = 8000
    """Training stops at medium quality on purpose, so that post-training can improve or worsen
    it."""
    schedule: int = 15000
    """Length of the learning rate's cosine; training stops long before the rate is down."""
    batch: int = 128
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup: int = 200
    ema_decay: float = 0.999


def kind(scene: Scene) -> str:
    if scene.relation is not None:
        return "relation"
    return "single" if len(scene.things) == 1 else "count"


def batches(seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless batches: words [B, 8], latents x0 [B, 3, 16, 16], noise like x0, sigma [B]."""
    rng = np.random.default_rng(seed)
    prompts = train_prompts()
    scenes = [parse(p) for p in prompts]
    kinds = [kind(s) for s in scenes]
    share = np.array([KIND_SHARES[k] / kinds.count(k) for k in kinds])
    words = word_indices(prompts)
    while True:
        drawn = rng.choice(len(prompts), batch, p=share / share.sum())
        pixels = torch.from_numpy(np.stack([render(scenes[i], rng) for i in drawn]))
        noise = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
        # logit-normal (Esser et al. 2024), shifted to noise: there a scene's layout is decided
        sigma = torch.from_numpy(rng.standard_normal(batch, np.float32) + SIGMA_LOGIT).sigmoid()
        yield words[torch.from_numpy(drawn)], pixels * 2 - 1, noise, sigma


def make_optimizers(model: ScenesModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all other parameters."""
    matrices: list[Parameter] = []
    rest: list[Parameter] = []
    for name, parameter in model.named_parameters():
        inside = "blocks." in name or "layers." in name
        (matrices if inside and parameter.ndim == 2 else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def learning_rate(iteration: int, recipe: Recipe) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to zero."""
    if iteration < recipe.warmup:
        return (iteration + 1) / recipe.warmup
    done = (iteration - recipe.warmup) / max(1, recipe.schedule - recipe.warmup)
    return 0.5 + 0.5 * math.cos(math.pi * done)


def pretrain(
    sizes: Sizes,
    recipe: Recipe,
    seed: int,
    device: str,
    report_every: int,
    evaluate_every: int,
) -> ScenesModel:
    """The averaged (EMA) model after `recipe.iterations` iterations; prints its progress."""
    model = random_model(sizes, seed).to(device)
    average = random_model(sizes, seed).to(device)
    averaged_policy = ScenesPolicy(average)
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    optimizers = make_optimizers(model, recipe)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda i: learning_rate(i, recipe)) for o in optimizers
    ]

    def loss_of(words: Tensor, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        x = torch.lerp(x0, noise, sigma[:, None, None, None])
        text, pooled = model.text(words)
        return F.mse_loss(model.velocity(x, sigma, text, pooled), noise - x0)

    model.train()
    begin, running = time.perf_counter(), 0.0
    for done, data in enumerate(batches(seed, recipe.batch), start=1):
        loss = loss_of(*(t.to(device) for t in data))
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        decay = min(recipe.ema_decay, done / (done + 10))
        with torch.no_grad():
            torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)
        running += float(loss.detach())
        if done % report_every == 0:
            seconds = time.perf_counter() - begin
            print(f"{done:6d}  loss {running / report_every:.4f}  {seconds:6.0f} s", flush=True)
            running = 0.0
        if done % evaluate_every == 0 or done == recipe.iterations:
            scores = mean_rewards(averaged_policy, held_out_prompts(), 2, 1.0)
            print(f"{done:6d}  held out {scores}", flush=True)
        if done == recipe.iterations:
            return average
    raise AssertionError("the batches have no end")


def mean_rewards(
    policy: ScenesPolicy, prompts: list[str], images: int, shift: float, steps: int = 25
) -> dict[str, float]:
    """Mean reward by name, of ODE samples from fixed noise, `images` per prompt."""
    names = ["composition", "strict", "palette"]
    if CLARITY_WEIGHTS.exists():
        names.append("clarity")
    policy.model.eval()
    noise = evaluation_noise(0, prompts, images, policy.latent_shape)
    rewards = [load_reward(n) for n in names]
    result = evaluate(policy, policy.velocity, rewards, prompts, noise, steps, shift)
    return {name: round(float(s.mean()), 4) for name, s in result.scores.items()}


def report(policy: ScenesPolicy) -> dict[str, Any]:
    """Mean rewards of all held-out prompts and of 80 training prompts, for shift 1 and 3."""
    trained = train_prompts()
    sample = [trained[i] for i in np.random.default_rng(0).permutation(len(trained))[:80]]
    scores: dict[str, Any] = {"steps": 25, "images_per_prompt": 8}
    for name, prompts in {"held_out": held_out_prompts(), "train": sample}.items():
        scores[name] = {
            "prompts": len(prompts),
            **{f"shift_{s}": mean_rewards(policy, prompts, 8, float(s)) for s in (1, 3)},
        }
    return scores


def main(
    size: Annotated[str, typer.Option(help=f"Which model: {', '.join(SIZES)}.")] = "base",
    out: Annotated[
        Path | None, typer.Option(help="Where the weights go; by default into the package.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of the weights, the scenes and the noise.")
    ] = 0,
    iterations: Annotated[int, typer.Option(min=1, help="How long to train.")] = Recipe.iterations,
    schedule: Annotated[
        int, typer.Option(min=1, help="Length of the learning rate's cosine.")
    ] = Recipe.schedule,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    report_every: Annotated[int, typer.Option(min=1, help="Print the loss.")] = 250,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Print held-out scores.")] = 2000,
) -> None:
    """Train the base model and write it with a JSON file that describes it."""
    if size not in SIZES:
        raise ConfigError(f"--size {size}: no such size; known: {', '.join(SIZES)}")
    recipe, out = Recipe(iterations, schedule), out or weights_file(size)
    check_weights_file("--out", out)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    model = pretrain(SIZES_OF[size], recipe, seed, device, report_every, evaluate_every)
    minutes = (time.perf_counter() - begin) / 60
    save_model(out, model.config, model.state_dict())
    policy = ScenesPolicy.load(str(out), device)
    flags = f"--size {size} " * (size != "base")
    flags += f"--seed {seed} --iterations {iterations} --schedule {schedule}"
    flags += f" --device {device}" * (device != "cpu")
    described = {
        "command": f"python -m mixgrpo.pretrain {flags}",
        "seed": seed,
        "recipe": recipe.__dict__,
        "minutes": round(minutes, 1),
        "machine": machine(device),
        "parameters": {
            "transformer": sum(p.numel() for p in model.transformer.parameters()),
            "text encoder (frozen afterwards)": sum(p.numel() for p in model.text.parameters()),
        },
        "scores": report(policy),
    }
    write_json(out.with_suffix(".json"), described)
    print(json.dumps(described["scores"], indent=2))


if __name__ == "__main__":
    cli.run(main)
