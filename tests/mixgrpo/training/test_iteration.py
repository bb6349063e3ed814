"""Two whole iterations of every method and setting against an oracle, from noise to weights.

The oracle is numpy in float64 and computes every image on its own; the package shares what a
group's images share.
"""

import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixgrpo.compute.ranks import Ranks
from mixgrpo.maths.randomness import normal
from mixgrpo.models import policy as policies
from mixgrpo.sampling.plan import iteration_cost
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_layers
from mixgrpo.settings.layers import NOWHERE
from mixgrpo.training import collect
from mixgrpo.training.batch import drawn_steps, update_parts
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import oracle, toy

pytestmark = pytest.mark.usefixtures("toy_site")

ALL_PRESETS = sorted((toy.ROOT / "sweeps" / "presets").glob("*.yaml"))
PIPELINES = {"flux", "flux-8gpu", "flux-lora", "sd35-medium"}
"""Presets of models, with the method of mixgrpo: tests/test_pipelines.py."""
PRESETS = [preset for preset in ALL_PRESETS if preset.stem not in PIPELINES]
METHODS = {
    "flow-grpo",
    "flow-grpo-fast",
    "dance-grpo",
    "mixgrpo",
    "mixgrpo-cps",
    "mixgrpo-flash",
    "mixgrpo-flash-star",
}


def on_the_toy(preset: Path, **further: Any) -> RunConfig:
    """A preset with everything of its method, on the toy and two small groups."""
    layers = load_layers(preset)
    small = toy.settings(optimizer={"lr": 2e-2, "ema_decay": 0.6, "max_grad_norm": 1.0})
    for name in ("seed", "iterations", "model", "rollout", "rewards", "evaluation", "output"):
        layers.add({name: small[name]}, NOWHERE)
    layers.add({"optimizer": small["optimizer"], "objective": {"updates": 2}}, NOWHERE)
    layers.add(further, NOWHERE)
    return layers.validate()


def test_every_method_has_a_preset() -> None:
    assert {p.stem for p in ALL_PRESETS} == METHODS | PIPELINES | {"scenes"}


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], Trainer]:
    """Makes trainers that compute in float64: noise, rewards and policy."""
    monkeypatch.setattr(collect, "normal", lambda shape, *key: normal(shape, *key).double())

    def load(config: RunConfig, device: str) -> toy.ToyPolicy:
        return toy.ToyPolicy(0, torch.float64)

    monkeypatch.setattr(policies, "load_policy", load)
    monkeypatch.setattr(collect, "score", lambda r, images, prompts: r.score(images, prompts))
    return lambda config: Trainer(config, Ranks())


ITERATIONS: list[dict[str, Any]] = [
    {},
    {"sampler": {"kernel": "dance", "eta": 0.3}, "objective": {"updates": 4}},
    {"sampler": {"kernel": "cps", "eta": 0.8}, "window": {"start": 3, "strategy": "frozen"}},
    {
        "sampler": {"kernel": "cps", "eta": 0.8, "density": "released"},
        "window": {"start": 2, "strategy": "frozen"},
        "objective": {"clip_range": 0.01},
    },
    {"sampler": {"tail_ratio": 0.4, "order": 2}, "objective": {"updates": 1}},
    {"sampler": {"head_ratio": 0.5, "order": 2, "steps": 7}, "window": {"start": 4}},
    {
        "sampler": {"head_ratio": 0.6, "tail_ratio": 0.5, "order": 3, "steps": 9},
        "window": {"start": 4, "strategy": "frozen"},
    },
    {"sampler": {"sde": "all"}, "window": {"start": 1, "strategy": "frozen"}},
    {"sampler": {"sde": "all", "decode": "x0"}, "window": {"size": 4, "stop": 4}},
    {"sampler": {"order": 2, "variant": "heun", "steps": 7}, "window": {"start": 1}},
    {"sampler": {"order": 3, "history": "restart", "steps": 7}, "window": {"start": 1}},
    {
        "rewards": {
            "train": {"brightness": 1.0, "contrast": 0.3},
            "held_out": [],
            "aggregate": "reward",
        }
    },
    {"sampler": {"sde": "all"}, "window": {"size": 4, "count": 2}},
    {"window": {"size": 4, "fraction": 0.5}, "objective": {"kl_weight": 0.3}},
    {"rollout": {"noise": "own"}, "window": {"start": 2}},
    {"rollout": {"noise": "own"}, "window": {"size": 3, "count": 1}},
    {"rollout": {"group_size": 5}, "objective": {"updates": 3}},
    {"rollout": {"prompts": 3, "block": 2}},
    {"objective": {"best_of": 1}},
    {"rollout": {"group_size": 6}, "objective": {"best_of": 2, "updates": 3}},
    {"objective": {"ratio": "guard", "clip_range": 0.01}},
    {"objective": {"step_weight": "noise"}, "window": {"size": 3}},
    {"objective": {"step_weight": "inverse-dt"}, "window": {"size": 3}},
    {
        "objective": {"ratio": "guard", "step_weight": "inverse-dt", "clip_range": 0.01},
        "sampler": {"sde": "all"},
        "window": {"size": 4, "count": 3},
    },
    {"objective": {"step_gradient": "unit", "kl_weight": 0.2}, "window": {"size": 3}},
    {"objective": {"step_gradient": "unit"}, "sampler": {"sde": "all"}, "window": {"size": 5}},
    {"objective": {"kl_weight": 0.7}},
    {"objective": {"kl_weight": 3.0, "kl": "flow-grpo"}},
    {
        "objective": {"kl_weight": 3.0, "kl": "flow-grpo", "step_gradient": "unit"},
        "sampler": {"kernel": "dance", "eta": 0.3},
    },
    {
        "objective": {"kl_weight": 3.0, "kl": "flow-grpo"},
        "sampler": {"sde": "all"},
        "window": {"size": 4, "count": 2},
    },
    {
        "objective": {"kl_weight": 0.7, "kl": "flow-grpo"},
        "sampler": {"kernel": "cps", "eta": 0.8},
        "window": {"start": 3, "strategy": "frozen"},
    },
    {"optimizer": {"max_grad_norm": 1e-3}},
    {"objective": {"advantage_clip": 0.5}},
    {"compute": {"micro_batch": 3}},
    {"compute": {"micro_batch": 1}, "window": {"size": 4, "count": 2}},
    {
        "rewards": {
            "train": {"brightness": 1.0, "contrast": 2.0},
            "held_out": [],
            "aggregate": "mean",
        }
    },
    {"window": {"start": 2}, "objective": {"clip_range": 1e-4}, "optimizer": {"weight_decay": 0.5}},
]


@pytest.mark.parametrize("sections", ITERATIONS, ids=str)
def test_two_iterations_are_the_oracles(
    sections: dict[str, Any],
    wide: Callable[[RunConfig], Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = {"optimizer": {"lr": 2e-2, "ema_decay": 0.6}}
    merged = {k: {**base.get(k, {}), **sections.get(k, {})} for k in {*base, *sections}}
    acted, clipped = compare(toy.config(**merged), wide, monkeypatch)
    assert acted == ("max_grad_norm" in str(sections))
    assert clipped == ("advantage_clip" in str(sections))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_two_iterations_of_every_preset_are_the_oracles(
    preset: Path, wide: Callable[[RunConfig], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(on_the_toy(preset), wide, monkeypatch)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_the_last_window_of_every_preset_is_the_oracles(
    preset: Path, wide: Callable[[RunConfig], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_the_toy(preset)
    window = config.window
    stop = window.stop or config.sampler.steps
    if config.sampler.decode == "x0":  # the last step's noise reaches no image
        stop = min(stop, config.sampler.steps - 1)
    start = stop - window.size
    last = on_the_toy(preset, window={"strategy": "frozen", "start": start})
    compare(last, wide, monkeypatch)


def compare(
    config: RunConfig, wide: Callable[[RunConfig], Trainer], monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, bool]:
    """Two iterations by the trainer and by hand: rollout, rewards, advantages, loss, gradient,
    AdamW and EMA. Returns whether the bounds of gradient and advantages have acted."""
    calls: list[tuple[Any, ...]] = []
    original = collect.rollout

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(collect, "rollout", recorded)
    trainer = wide(config)
    o, group = config.optimizer, config.rollout.group_size
    start = {k: p.detach().clone() for k, p in trainer.parameters.items()}
    mine = {k: torch.nn.Parameter(v.clone()) for k, v in start.items()}
    average = {k: v.clone() for k, v in start.items()}
    optimizer = torch.optim.AdamW(
        mine.values(), o.lr, o.betas, eps=1e-8, weight_decay=o.weight_decay, fused=False
    )
    acted = clipped = False
    for iteration in range(2):
        calls.clear()
        line = trainer.iterate(iteration)
        plan = calls[0][1]
        text = np.concatenate([np.repeat(c[2]["text"].numpy(), group, 0) for c in calls])
        initial, noise = (torch.cat([c[i] for c in calls]) for i in (3, 4))
        first = initial.expand(len(initial), group, *initial.shape[2:])
        path = oracle.trajectory(
            net(mine).velocity,
            sampler_of(config),
            trainer.window.start_at(iteration),
            config.window.size,
            first.flatten(2).flatten(0, 1).numpy(),
            noise.flatten(3).flatten(0, 1).numpy(),
            text,
        )
        rewards = score(config, path.final)
        raw = oracle.advantages(rewards, config.rewards.train, config.rewards.aggregate)
        limit = config.objective.advantage_clip
        clipped |= bool((abs(raw) > limit).any())
        a = np.clip(raw, -limit, limit)
        for name, value in rewards.items():
            assert line[f"reward_{name}_mean"] == pytest.approx(value.mean(), rel=1e-8)
            assert line[f"reward_{name}_std"] == pytest.approx(value.std(ddof=1), rel=1e-8)
        assert line["advantage_mean"] == pytest.approx(raw.mean(), abs=1e-10)
        assert line["advantage_std"] == pytest.approx(raw.std(ddof=1), rel=1e-8)
        chosen = images_of_updates(config, raw)
        prompts = trainer.prompts_at(iteration)
        drawn = drawn_steps(config, iteration, prompts)
        trained = None if drawn is None else drawn.flatten(0, 1).tolist()
        losses, kls, norms, distances = [], [], [], []
        unit = config.objective.step_gradient == "unit"
        if trained is None and config.window.size > 1 and not unit:
            cosine = first_and_last(config, net(mine), path.window, chosen[0], a, text, net(start))
            assert line.get("gradient_cosine") == (cosine and pytest.approx(cosine, abs=1e-7))
        else:
            assert "gradient_cosine" not in line
        for images in chosen:
            for place, step in enumerate(path.window):
                of = [i for i in images if trained is None or place in trained[i]]
                distances.append(distance(config, net(mine), step, of, text))
            judged = oracle.judge(
                net(mine),
                path.window,
                images,
                a.ravel(),
                text,
                config.objective.clip_range,
                config.objective.kl_weight,
                net(start) if config.objective.kl_weight else None,
                trained=trained,
                ratio_kind=config.objective.ratio,
                step_weight=config.objective.step_weight,
                density=config.sampler.density,
                kl_kind=config.objective.kl,
                kernel=config.sampler.kernel,
            )
            if unit:
                judged.gradient = mean_of_units(
                    config, net(mine), path.window, images, a, text, start
                )
            losses.append(judged.loss)
            kls.append(judged.kl)
            norms.append(math.sqrt(sum((g**2).sum() for g in judged.gradient.values())))
            scale = min(1.0, o.max_grad_norm / (norms[-1] + 1e-6))
            acted |= scale < 1
            for name, parameter in mine.items():
                parameter.grad = torch.from_numpy(scale * judged.gradient[name])
            optimizer.step()
            for name, parameter in mine.items():
                average[name] = o.ema_decay * average[name] + (1 - o.ema_decay) * parameter.detach()
        assert line["loss"] == pytest.approx(np.mean(losses), rel=1e-9, abs=1e-12)
        assert line["kl"] == pytest.approx(np.mean(kls), rel=1e-8, abs=1e-14)
        assert line["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-8)
        assert line["noise_floor"] < 1e-13
        apart = np.concatenate(distances)
        assert line["ratio_max"] == pytest.approx(apart.max(), rel=1e-6, abs=1e-13)
        beyond = (apart > config.objective.clip_range).mean()
        assert line["clip_fraction"] == pytest.approx(beyond, abs=1e-12)
        assert line["window_start"] == trainer.window.start_at(iteration)
        assert line["nfe_rollout"] == plan.steps == len(path.sigmas) - 1
        assert line["nfe_train"] == config.trained_per_image
        cost = iteration_cost(config, iteration)
        assert line["evaluations_computed"] == cost.forward
        assert line["backward_computed"] == cost.backward
        for name, parameter in trainer.parameters.items():
            close = {"atol": 1e-9, "rtol": 1e-7}
            torch.testing.assert_close(parameter.detach(), mine[name].detach(), **close)
            torch.testing.assert_close(trainer.state.average[name], average[name], **close)
            assert float((parameter.detach() - start[name]).abs().max()) > 1e-3
    return acted, clipped


def net(values: dict[str, Any]) -> oracle.ToyNet:
    plain = {k: v.detach().double().numpy() for k, v in values.items()}
    return oracle.ToyNet(plain["inner"], plain["outer"])


def sampler_of(config: RunConfig) -> oracle.Sampler:
    return oracle.Sampler(**config.sampler.model_dump())


def score(config: RunConfig, final: oracle.Array) -> dict[str, oracle.Array]:
    images = np.clip(final * 0.25 + 0.5, 0, 1)
    values = {"brightness": images[:, :4].mean(1), "contrast": 10 * images.std(1, ddof=1)}
    group = config.rollout.group_size
    return {k: values[k].reshape(-1, group) for k in config.rewards.train}


def mean_of_units(
    config: RunConfig,
    now: oracle.ToyNet,
    window: list[oracle.Step],
    images: oracle.Array,
    a: oracle.Array,
    text: oracle.Array,
    start: dict[str, Any],
) -> dict[str, oracle.Array]:
    """The mean over the window's steps of each one's gradient at norm 1."""
    base = net(start) if config.objective.kl_weight else None
    total = dict.fromkeys(("inner", "outer"), 0.0)
    for place in range(len(window)):
        gradient = oracle.judge(
            now,
            window,
            images,
            a.ravel(),
            text,
            config.objective.clip_range,
            config.objective.kl_weight,
            base,
            trained=[{place}] * a.size,
            kl_kind=config.objective.kl,
            kernel=config.sampler.kernel,
        ).gradient
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values())) or 1.0
        total = {k: total[k] + gradient[k] / norm / len(window) for k in total}
    return total


def first_and_last(
    config: RunConfig,
    now: oracle.ToyNet,
    window: list[oracle.Step],
    images: oracle.Array,
    a: oracle.Array,
    text: oracle.Array,
    base: oracle.ToyNet,
) -> float | None:
    """Cosine between the gradients of the window's first and last step alone; None of nothing."""
    gradients = []
    for place in (0, len(window) - 1):
        judged = oracle.judge(
            now,
            window,
            images,
            a.ravel(),
            text,
            config.objective.clip_range,
            config.objective.kl_weight,
            base if config.objective.kl_weight else None,
            trained=[{place}] * a.size,
            ratio_kind=config.objective.ratio,
            step_weight=config.objective.step_weight,
            density=config.sampler.density,
            kl_kind=config.objective.kl,
            kernel=config.sampler.kernel,
        )
        gradients.append(np.concatenate([g.ravel() for g in judged.gradient.values()]))
    first, last = gradients
    norm = np.sqrt((first @ first) * (last @ last))
    return float(first @ last / norm) if norm else None


def distance(
    config: RunConfig, now: oracle.ToyNet, step: oracle.Step, images: Any, text: oracle.Array
) -> oracle.Array:
    """|ratio - 1| of some images at one step."""
    t, chosen = step.transition, np.array(images, dtype=int)
    if t.std == 0 or not len(chosen):
        return np.zeros(len(chosen))
    x = step.before[chosen]
    mean = t.cx * x + t.cv * now.velocity(x, step.sigma, text[chosen])
    log_ratio = oracle.log_ratio(step, mean, config.objective.ratio, config.sampler.density, chosen)
    return np.abs(np.exp(log_ratio) - 1)


def images_of_updates(config: RunConfig, a: oracle.Array) -> list[oracle.Array]:
    """For every update the images it takes, as indices of the whole batch."""
    prompts, group = a.shape
    best_of = config.objective.best_of
    chosen = (
        np.tile(np.arange(group), (prompts, 1))
        if best_of is None
        else oracle.best_and_worst(a, best_of)
    )
    within = np.arange(prompts)[:, None] * group + chosen
    parts = update_parts(chosen.shape[1], config.objective.updates)
    return [within[:, part].ravel() for part in parts]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_sharing_on_and_off_agree(
    preset: Path, wide: Callable[[RunConfig], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples, log-probs and gradients (through the weights after two iterations)."""
    config = on_the_toy(preset, optimizer={"max_grad_norm": 1e9, "name": "torch.optim.SGD"})
    original, seen, outcomes = collect.rollout, [], []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    for shares in (True, False):
        monkeypatch.setattr(collect, "rollout", partial(recorded, share=shares))
        trainer = wide(config)
        lines = [trainer.iterate(m) for m in range(2)]
        gradients = {k: p.grad.clone() for k, p in trainer.parameters.items() if p.grad is not None}
        outcomes.append((lines, gradients, dict(trainer.parameters)))
    (shared, gradients, weights), (alone, gradients_alone, weights_alone) = outcomes

    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)

    for a, b in zip(seen[:2], seen[2:], strict=True):
        close(a.latents, b.latents)
        assert not any(step.shared for step in b.window)
        for x, y in zip(a.window, b.window, strict=True):
            close(x.sample, y.sample)
            close(x.log_prob, y.log_prob)
    for name, value in gradients.items():
        close(value, gradients_alone[name])
        close(weights[name].detach(), weights_alone[name].detach())
        assert float(value.abs().max()) > 1e-6
    for a, b in zip(shared, alone, strict=True):
        assert a["evaluations_computed"] < b["evaluations_computed"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-10)


@pytest.mark.parametrize("skips", [False, True])
def test_groups_without_variance_are_skipped_only_by_option(
    skips: bool, wide: Callable[[RunConfig], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped group leaves update and mean: the step is that of the other groups alone."""
    constant = 1

    def score(reward: Any, images: Tensor, prompts: list[str]) -> Tensor:
        values = reward.score(images, prompts)
        values[constant * 4 : constant * 4 + 4] = 0.5
        return values

    plain = {"optimizer": {"name": "torch.optim.SGD", "weight_decay": 0.0, "max_grad_norm": 1e9}}
    config = toy.config(
        rollout={"prompts": 3}, objective={"skip_constant_groups": skips, "updates": 1}, **plain
    )
    trainer = wide(config)
    monkeypatch.setattr(collect, "score", score)
    line = trainer.iterate(0)
    assert line["groups_without_variance"] == 1
    gradients = {k: p.grad.clone() for k, p in trainer.parameters.items() if p.grad is not None}
    monkeypatch.setattr(collect, "score", lambda r, images, prompts: r.score(images, prompts))
    others = wide(toy.config(rollout={"prompts": 2}, objective={"updates": 1}, **plain))
    kept = [p for i, p in enumerate(trainer.prompts_at(0)) if i != constant]
    monkeypatch.setattr(others, "prompts_at", lambda _: kept)
    alone = others.iterate(0)
    for name, parameter in others.parameters.items():
        assert parameter.grad is not None
        expected = parameter.grad * (1 if skips else 2 / 3)
        torch.testing.assert_close(gradients[name], expected, atol=1e-12, rtol=1e-10)
    groups = 2 if skips else 3
    assert line["backward_computed"] == alone["backward_computed"] / 2 * groups
    # Without any other group there is no step at all.
    monkeypatch.setattr(collect, "score", lambda r, images, prompts: torch.ones(len(images)))
    before = {k: p.detach().clone() for k, p in trainer.parameters.items()}
    line = trainer.iterate(1)
    assert line["groups_without_variance"] == line["groups"] == 3
    assert line["backward_computed"] == (0 if skips else 3 * (1 + 4))
    assert line["grad_norm"] == 0
    assert all(torch.equal(before[k], p) for k, p in trainer.parameters.items())


def test_a_block_is_scored_while_the_next_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward of the first block does not return before the second block is being sampled."""
    sampling_second, calls = threading.Event(), 0
    original = collect.rollout

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            sampling_second.set()
        return original(*args, **kwargs)

    waited: list[bool] = []

    def slow(reward: Any, images: Tensor, prompts: list[str]) -> Tensor:
        waited.append(sampling_second.wait(10))
        values: Tensor = reward.score(images, prompts)
        return values

    trainer = Trainer(toy.config(rollout={"prompts": 3, "block": 1}), Ranks())
    together = Trainer(toy.config(rollout={"prompts": 3}), Ranks()).iterate(0)
    monkeypatch.setattr(collect, "rollout", counted)
    monkeypatch.setattr(collect, "score", slow)
    line = trainer.iterate(0)
    assert waited == [True, True, True]
    assert line["reward_brightness_mean"] == pytest.approx(together["reward_brightness_mean"])
    whole = ("seconds_total", "seconds_cpu")
    parts = [line[k] for k in line if k.startswith("seconds_") and k not in whole]
    assert sum(parts) == pytest.approx(line["seconds_total"])


class _Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values of tensors that it asks for.

    Sigmas and coefficients are float64 numbers of the host itself, and the positions of steps are
    its int64 tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
        data = getattr(args[0], "dtype", None) if args else None
        masks = name.startswith("aten::index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for i in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        reads = name.removeprefix("aten::") in waits and data in (torch.float32, torch.bool)
        if masks or reads:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"sampler": {"kernel": "cps", "order": 3, "tail_ratio": 0.5}},
        {"objective": {"ratio": "guard", "step_weight": "noise", "kl_weight": 0.1}},
        {"window": {"count": 2}, "sampler": {"sde": "all"}},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(sections: dict[str, Any]) -> None:
    """An iteration asks for as many numbers with 12 steps and a window of 5 as with 6 and 3."""
    counts = []
    for steps, size in ((6, 3), (12, 5)):
        sampler = {"steps": steps, **sections.get("sampler", {})}
        window = {"size": size, **sections.get("window", {})}
        trainer = Trainer(toy.config(**{**sections, "sampler": sampler, "window": window}), Ranks())
        with _Reads() as reads:
            trainer.iterate(0)
        counts.append(len(reads.found))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x[x > 9],
        lambda x: x.equal(x),
    ],
    ids=["item", "bool", "mask", "equal"],
)
def test_that_check_sees_a_step_that_waits(
    wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    velocity = toy.ToyPolicy.velocity

    def waiting(self: toy.ToyPolicy, latents: Tensor, *further: Any) -> Tensor:
        wait(latents.detach())
        return velocity(self, latents, *further)

    monkeypatch.setattr(toy.ToyPolicy, "velocity", waiting)
    with pytest.raises(AssertionError):
        test_no_step_waits_for_the_device({})


def test_steps_are_drawn_for_every_image_anew() -> None:
    config = toy.config(window={"size": 4, "count": 2}, rollout={"group_size": 50})
    prompts = toy.PROMPTS[:4]
    drawn = [drawn_steps(config, m, prompts) for m in range(20)]
    assert all(d is not None and d.shape == (4, 50, 2) for d in drawn)
    found = torch.stack([d for d in drawn if d is not None])
    assert bool((found[..., 0] < found[..., 1]).all())
    # Each of the 6 pairs of 4 steps as often as the others: 4000 draws, 667 each.
    pairs = (found[..., 0] * 4 + found[..., 1]).flatten().bincount()
    counts = pairs[pairs > 0]
    assert len(counts) == 6
    assert float(((counts - 4000 / 6) ** 2 / (4000 / 6)).sum()) < 20.5  # chi-square, 1 in 1000
    # Of (seed, iteration, prompt, image) alone, whichever prompts are asked for beside.
    assert torch.equal(drawn_steps(config, 3, prompts[2:3])[0], found[3, 2])  # type: ignore[index]
    other = toy.config(seed=4, window={"size": 4, "count": 2}, rollout={"group_size": 50})
    assert not torch.equal(drawn_steps(other, 3, prompts), found[3])  # type: ignore[arg-type]
    assert not torch.equal(found[3], found[4])
    assert not torch.equal(found[3, 0], found[3, 1])
    assert drawn_steps(toy.config(), 0, prompts) is None


@given(st.integers(1, 40), st.integers(1, 40))
def test_updates_share_the_images_evenly(images: int, updates: int) -> None:
    updates = min(images, updates)
    parts = update_parts(images, updates)
    assert [i for part in parts for i in range(images)[part]] == list(range(images))
    sizes = {part.stop - part.start for part in parts}
    assert len(parts) == updates
    assert max(sizes) - min(sizes) <= 1
    assert parts[0].stop == max(sizes)  # of this size are the rollout's batches
