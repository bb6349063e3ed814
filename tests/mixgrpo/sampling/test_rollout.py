"""Sharing changes no result, the counts are the plan's, and everything is what an oracle computes.

The oracle computes every image on its own in numpy; nothing of the package is used in it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.maths.steps import ode_step
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import CountedVelocity
from mixgrpo.sampling.plan import Plan, make_plan
from mixgrpo.sampling.rollout import Rollout, join, repeat, rollout, sample_ode, take
from mixgrpo.settings.config import SamplerConfig
from mixgrpo.training.batch import forwards, make_batch
from mixgrpo.training.losses.policy import policy_loss
from tests.mixgrpo import oracle, toy
from tests.mixgrpo.toy import PROMPTS, ToyPolicy

PROMPT_COUNT, GROUP, STEPS = 2, 4, 6
CLIP = 0.2


@dataclass
class Case:
    """A toy, its plan, and the noise of one iteration."""

    policy: ToyPolicy
    plan: Plan
    conditioning: Conditioning
    initial: Tensor
    noise: Tensor
    advantages: Tensor

    def run(
        self, share: bool = True, chunk: int = 2, limit: int | None = None
    ) -> tuple[Rollout, int]:
        counted = CountedVelocity(self.policy.velocity)
        self.policy.rows.clear()
        done = rollout(
            counted,
            self.plan,
            self.conditioning,
            self.initial,
            self.noise,
            chunk,
            limit,
            share,
        )
        assert counted.evaluations == sum(self.policy.rows)
        return done, counted.evaluations

    def update(
        self, done: Rollout, images: slice, clip: float = CLIP, limit: int | None = None
    ) -> tuple[float, dict[str, Tensor], Tensor]:
        """Loss, gradient and the largest |ratio - 1| and |delta log-prob| of one update."""
        config = toy.config(
            sampler=self.plan.sampler.model_dump(),
            window={"size": len(done.window)},
            rollout={"prompts": PROMPT_COUNT, "group_size": GROUP},
            objective={"clip_range": clip},
            compute={"micro_batch": limit},
        )
        chosen = torch.arange(GROUP).expand(PROMPT_COUNT, GROUP)
        counts = [True] * PROMPT_COUNT
        batch = make_batch(
            config, done, self.conditioning, self.advantages, chosen, counts, drawn=None
        )
        count = PROMPT_COUNT * len(range(GROUP)[images]) * len(done.window)
        parameters = self.policy.trainable_parameters()
        for parameter in parameters.values():
            parameter.grad = None
        loss, stats = 0.0, []
        for slot in range(len(done.window)):
            for steps in forwards(batch, images, [slot], limit, None):
                v = steps.predict(self.policy.velocity)
                judged = policy_loss(config.objective, config.sampler.density, steps, v, None)
                whole = judged.total / count
                whole.backward()
                loss += float(whole.detach())
                stats.append(judged.statistics)
        gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        return loss, gradients, torch.stack(stats).max(0).values[[0, 2]]


def case(first: int, size: int = 2, dtype: torch.dtype = torch.float64, **sampler: Any) -> Case:
    generator = torch.Generator().manual_seed(first)
    policy = ToyPolicy(1, dtype)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    shape = policy.latent_shape
    config = SamplerConfig(**({"steps": STEPS, "eta": 0.6} | sampler))
    return Case(
        policy,
        make_plan(config, range(first, first + size)),
        policy.encode(PROMPTS[:PROMPT_COUNT]),
        draw((PROMPT_COUNT, 1, *shape)),
        draw((PROMPT_COUNT, GROUP, size, *shape)),
        draw((PROMPT_COUNT, GROUP)),
    )


def net_of(policy: ToyPolicy) -> oracle.ToyNet:
    return oracle.ToyNet(
        policy.inner.detach().double().numpy(), policy.outer.detach().double().numpy()
    )


def by_the_oracle(c: Case) -> tuple[oracle.Trajectory, oracle.Array]:
    """The trajectory of all images [P * N, D], and their conditioning."""
    text = np.repeat(c.conditioning["text"].numpy(), GROUP, 0)
    s = c.plan.sampler
    sampler = oracle.Sampler(
        s.steps, s.shift, s.kernel, s.eta, s.tail_ratio, s.order, s.variant, s.history
    )
    x = np.repeat(c.initial[:, 0].flatten(1).numpy(), GROUP, 0)
    noise = c.noise.flatten(3).flatten(0, 1).numpy()
    window = c.plan.window
    net = net_of(c.policy)
    return oracle.trajectory(net.velocity, sampler, window[0], len(window), x, noise, text), text


SETTINGS: list[dict[str, Any]] = [
    {"kernel": "flow"},
    {"kernel": "dance"},
    {"kernel": "cps"},
    {"order": 2},
    {"order": 2, "variant": "heun"},
    {"order": 3},
    {"order": 2, "history": "restart"},
    {"order": 3, "history": "restart", "kernel": "cps"},
    {"tail_ratio": 0.4},
    {"tail_ratio": 0.6, "order": 2, "kernel": "dance"},
    {"tail_ratio": 0.5, "order": 3, "kernel": "cps"},
    {"tail_ratio": 0.01, "order": 3},
]


def named(setting: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in setting.items())


@pytest.mark.parametrize("first", range(STEPS - 1))
@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_shared_is_unshared_is_the_oracle(first: int, setting: dict[str, Any]) -> None:
    c = case(first, **setting)
    (shared, few), (alone, many) = c.run(), c.run(share=False)
    assert few == PROMPT_COUNT * c.plan.evaluations(GROUP)
    assert many == PROMPT_COUNT * c.plan.evaluations(GROUP, shared_noise=False)
    assert few < many
    expected, text = by_the_oracle(c)
    close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-10)
    close(shared.latents, alone.latents)
    np.testing.assert_allclose(
        shared.latents.flatten(0, 1).flatten(1).numpy(), expected.final, atol=1e-10
    )
    assert [s.shared for s in shared.window] == [True, False]
    assert [s.shared for s in alone.window] == [False, False]
    for a, b, o in zip(shared.window, alone.window, expected.window, strict=True):
        close(a.sample, b.sample)
        close(a.log_prob, b.log_prob)
        np.testing.assert_allclose(a.sample.flatten(0, 1).flatten(1).numpy(), o.after, atol=1e-10)
        np.testing.assert_allclose(a.log_prob.flatten().numpy(), o.log_prob, atol=1e-10)
    # As after some updates: the ratio is not 1.
    with torch.no_grad():
        c.policy.inner.mul_(1.01)
        c.policy.outer.add_(0.003)
    images = slice(2, 4)
    loss, gradient, stats = c.update(shared, images)
    loss_alone, gradient_alone, stats_alone = c.update(alone, images)
    close(stats, stats_alone)
    assert loss == pytest.approx(loss_alone, abs=1e-10)
    chosen = np.arange(PROMPT_COUNT * GROUP).reshape(PROMPT_COUNT, GROUP)[:, images].ravel()
    judged = oracle.judge(
        net_of(c.policy), expected.window, chosen, c.advantages.flatten().numpy(), text, CLIP
    )
    assert loss == pytest.approx(judged.loss, abs=1e-10)
    for name in gradient:
        close(gradient[name], gradient_alone[name])
        np.testing.assert_allclose(gradient[name].numpy(), judged.gradient[name], atol=1e-10)
        assert float(gradient[name].abs().max()) > 1e-6


@pytest.mark.parametrize("kernel", ["flow", "dance", "cps"])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_gradient_is_that_of_finite_differences(first: int, kernel: str) -> None:
    c = case(first, kernel=kernel)
    done, _ = c.run()
    # Away from the rollout's weights, where clipping acts on some images and not on others.
    with torch.no_grad():
        c.policy.inner.mul_(1.02)
    everything, step = slice(0, GROUP), 1e-5
    _, gradient, _ = c.update(done, everything)

    def loss(parameter: Tensor, index: tuple[int, int], move: float) -> float:
        with torch.no_grad():
            parameter[index] += move
        value = c.update(done, everything)[0]
        with torch.no_grad():
            parameter[index] -= move
        return value

    for name, parameter in c.policy.trainable_parameters().items():
        rows, columns = parameter.shape
        for index in [(i % rows, (7 * i) % columns) for i in range(0, rows * columns, 11)]:
            slope = (loss(parameter, index, step) - loss(parameter, index, -step)) / (2 * step)
            assert float(gradient[name][index]) == pytest.approx(slope, abs=1e-8, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["flow", "dance", "cps"])
@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("share", [True, False])
def test_ratio_is_exactly_one_before_the_first_update(
    dtype: torch.dtype, kernel: str, chunk: int, share: bool
) -> None:
    for first in (0, 1, STEPS - 2):
        c = case(first, dtype=dtype, kernel=kernel, tail_ratio=0.5, order=2)
        done, _ = c.run(share, chunk)
        for begin in range(0, GROUP, chunk):
            images = slice(begin, begin + chunk)
            _, _, stats = c.update(done, images)
            assert stats.tolist() == [0, 0]


@pytest.mark.parametrize("first", [0, 2, 4])
def test_chunks_change_nothing_but_rounding(first: int) -> None:
    c = case(first, tail_ratio=0.5, order=3)
    runs = [c.run(chunk=chunk) for chunk in (1, 2, 3, 4)]
    runs += [c.run(chunk=chunk, limit=limit) for chunk, limit in ((4, 3), (2, 1), (4, 100))]
    for done, evaluations in runs[1:]:
        torch.testing.assert_close(done.latents, runs[0][0].latents, atol=1e-12, rtol=1e-12)
        assert evaluations == runs[0][1]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_micro_batches_change_nothing_but_rounding_and_keep_to_their_size(limit: int) -> None:
    c = case(1)
    done, _ = c.run()
    with torch.no_grad():
        c.policy.inner.mul_(1.01)
    c.policy.rows.clear()
    loss, gradient, stats = c.update(done, slice(0, GROUP))
    whole = sum(c.policy.rows)
    c.policy.rows.clear()
    loss_parts, gradient_parts, stats_parts = c.update(done, slice(0, GROUP), limit=limit)
    assert max(c.policy.rows) <= limit
    # The window's first step stays one evaluation per prompt.
    assert sum(c.policy.rows) == whole == PROMPT_COUNT * (1 + GROUP)
    assert loss == pytest.approx(loss_parts, abs=1e-14)
    torch.testing.assert_close(stats, stats_parts, atol=1e-12, rtol=0)
    for name, value in gradient.items():
        torch.testing.assert_close(value, gradient_parts[name], atol=1e-12, rtol=1e-12)


def test_own_noise_shares_nothing() -> None:
    c = case(2)
    c.initial = torch.randn(PROMPT_COUNT, GROUP, *c.policy.latent_shape, dtype=torch.float64)
    done, evaluations = c.run()
    assert evaluations == PROMPT_COUNT * c.plan.evaluations(GROUP, shared_noise=False)
    assert [s.shared for s in done.window] == [False, False]
    # Each image is what it is as a group of its own.
    for image in range(GROUP):
        part = slice(image, image + 1)
        alone, _ = Case(
            c.policy,
            c.plan,
            c.conditioning,
            c.initial[:, part],
            c.noise[:, part],
            c.advantages[:, part],
        ).run(chunk=1)
        torch.testing.assert_close(alone.latents[:, 0], done.latents[:, image])


def test_groups_rolled_out_apart_and_joined_are_those_rolled_out_together() -> None:
    c = case(1, tail_ratio=0.5, order=2)
    together, _ = c.run()
    parts = [
        Case(
            c.policy,
            c.plan,
            take(c.conditioning, slice(p, p + 1)),
            c.initial[p : p + 1],
            c.noise[p : p + 1],
            c.advantages[p : p + 1],
        ).run()[0]
        for p in range(PROMPT_COUNT)
    ]
    joined = join(parts)
    torch.testing.assert_close(joined.latents, together.latents)
    for a, b in zip(joined.window, together.window, strict=True):
        assert a.index == b.index
        for name in ("latents", "sample", "mean", "log_prob"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_sharing_computes_each_shared_step_once_per_prompt() -> None:
    c = case(3)
    c.run()
    # Three ODE steps and the velocity at the first SDE step, for one image per prompt each.
    assert c.policy.rows[:4] == [PROMPT_COUNT] * 4
    assert set(c.policy.rows[4:]) <= {PROMPT_COUNT * 2, PROMPT_COUNT * GROUP}


def test_the_network_sees_the_true_sigma() -> None:
    c = case(1, tail_ratio=0.5)
    c.policy.sigmas.clear()
    c.run(chunk=GROUP)
    assert c.policy.sigmas == [float(s) for s in c.plan.sigmas[:-1]]


def test_images_of_a_group_differ_by_their_own_noise_only() -> None:
    c = case(1)
    done, _ = c.run()
    assert len({tuple(image.flatten().tolist()) for image in done.latents[0]}) == GROUP
    c.noise[0, 3] = c.noise[0, 1]
    again, _ = c.run()
    assert torch.allclose(again.latents[0, 3], again.latents[0, 1], atol=1e-12)
    assert torch.equal(again.latents[1], done.latents[1])
    # A group's result is its prompt's and noise's, not its neighbours'.
    alone = Case(
        c.policy,
        c.plan,
        {k: v[:1] for k, v in c.conditioning.items()},
        c.initial[:1],
        c.noise[:1],
        c.advantages[:1],
    )
    single, _ = alone.run()
    assert torch.allclose(single.latents[0], again.latents[0], atol=1e-12)


def test_a_plan_without_a_window_gives_the_group_one_image() -> None:
    c = case(1)
    c.plan, c.noise = make_plan(c.plan.sampler, []), c.noise[:, :, :0]
    done, evaluations = c.run()
    assert done.latents.shape == (PROMPT_COUNT, GROUP, *c.policy.latent_shape)
    assert evaluations == PROMPT_COUNT * STEPS
    alone, _ = c.run(share=False)
    assert torch.allclose(done.latents, alone.latents, atol=1e-12)
    pure = sample_ode(c.policy.velocity, c.plan.sigmas, c.conditioning, c.initial[:, 0])
    assert torch.allclose(done.latents[:, 0], pure, atol=1e-12)


def test_sample_ode_is_euler_step_by_step() -> None:
    c = case(0)
    x = c.initial[:, 0]
    for i in range(STEPS):
        s, after = c.plan.sigmas[i], c.plan.sigmas[i + 1]
        x = ode_step(x, c.policy.velocity(x, s, c.conditioning), s, after)
    pure = sample_ode(c.policy.velocity, c.plan.sigmas, c.conditioning, c.initial[:, 0])
    assert torch.equal(x, pure)


def test_rollout_leaves_no_graph_and_repeat_keeps_rows_together() -> None:
    done, _ = case(0).run()
    assert not done.latents.requires_grad
    rows = repeat({"text": torch.tensor([[1], [2]])}, 3)["text"]
    assert rows.flatten().tolist() == [1, 1, 1, 2, 2, 2]
