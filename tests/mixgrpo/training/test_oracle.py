"""The oracle against what is simpler than it: finite differences, algebra, solvers of others."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mixgrpo import oracle
from tests.mixgrpo.oracle import Array, Sampler, Step, ToyNet, Trajectory

IMAGES, ELEMENTS, TEXT = 5, 6, 3


def net(seed: int = 0) -> ToyNet:
    rng = np.random.default_rng(seed)
    return ToyNet(
        0.4 * rng.normal(size=(ELEMENTS + 1 + TEXT, 7)), 0.4 * rng.normal(size=(7, ELEMENTS))
    )


def moved(n: ToyNet, by: float = 0.02) -> ToyNet:
    """The policy after some updates."""
    return ToyNet(n.inner * (1 + by), n.outer + by / 4)


RNG = np.random.default_rng(1)
TEXTS: Array = RNG.normal(size=(IMAGES, TEXT))
INITIAL: Array = RNG.normal(size=(IMAGES, ELEMENTS))
NOISE: Array = RNG.normal(size=(IMAGES, 20, ELEMENTS))
ADVANTAGES: Array = np.array([1.3, -0.4, 0.9, -1.7, 0.6])


def walk(first: int = 2, size: int = 3, **settings: Any) -> Trajectory:
    small: dict[str, Any] = {"steps": 8, "shift": 3.0, "kernel": "flow", "eta": 0.7}
    sampler = Sampler(**(small | settings))
    return oracle.trajectory(net().velocity, sampler, first, size, INITIAL, NOISE, TEXTS)


# ---- Gradients

SUBSETS: list[tuple[int, ...]] = [(0, 2), (1, 2), (0, 1), (2, 0), (1, 2)]
JUDGED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"kernel": "dance", "eta": 0.3}, {"clip": 1e-3}),
    ({"kernel": "cps", "eta": 0.8, "density": "released"}, {"density": "released"}),
    ({}, {"ratio_kind": "guard"}),
    ({"kernel": "cps", "eta": 0.5}, {"ratio_kind": "guard", "clip": 5e-3}),
    ({}, {"step_weight": "noise"}),
    ({}, {"step_weight": "inverse-dt", "kl_weight": 0.3}),
    ({}, {"trained": SUBSETS, "kl_weight": 0.3}),
    ({}, {"kl_weight": 3.0, "kl_kind": "flow-grpo"}),
    ({}, {"trained": SUBSETS, "ratio_kind": "guard", "step_weight": "noise"}),
    # The last step of the trajectory, where cps has no noise.
    ({"kernel": "cps", "eta": 0.8, "first": 5}, {"step_weight": "noise", "trained": SUBSETS}),
]


@pytest.mark.parametrize(("sampled", "judged"), JUDGED, ids=str)
def test_gradient_is_that_of_finite_differences(
    sampled: dict[str, Any], judged: dict[str, Any]
) -> None:
    steps = walk(**sampled).window
    chosen = np.array([0, 1, 3, 4])
    given_ = {"clip": 0.2, **judged}
    if "kl_weight" in given_:
        given_["reference"] = net()

    def judge(n: ToyNet) -> oracle.Judged:
        return oracle.judge(n, steps, chosen, ADVANTAGES, TEXTS, **given_)

    def objective(n: ToyNet) -> float:
        result = judge(n)
        return result.loss + float(given_.get("kl_weight", 0.0)) * result.penalty

    now, move = moved(net()), 1e-6
    gradient = judge(now).gradient
    for name in ("inner", "outer"):
        values = getattr(now, name)
        slopes = np.zeros_like(values)
        for place in np.ndindex(*values.shape):
            kept = values[place]
            values[place] = kept + move
            above = objective(now)
            values[place] = kept - move
            below = objective(now)
            values[place] = kept
            slopes[place] = (above - below) / (2 * move)
        np.testing.assert_allclose(gradient[name], slopes, atol=1e-8)
        assert abs(slopes).max() > 1e-5


def test_clipping_stops_some_images_and_not_others() -> None:
    """The settings above with a small clip are about that case."""
    (step, *_) = walk(kernel="dance", eta=0.3).window
    now = moved(net())
    mean = step.transition.cx * step.before + step.transition.cv * now.velocity(
        step.before, step.sigma, TEXTS
    )
    change = oracle.log_ratio(step, mean, "plain", "normalised", slice(None))
    stopped = (np.sign(ADVANTAGES) * change) > math.log1p(1e-3)
    assert stopped.any()
    assert not stopped.all()


# ---- The loss


def per_entry(
    steps: Sequence[Step], now: ToyNet, trained: Sequence[Collection[int]], **settings: Any
) -> list[list[float]]:
    """For each image the losses of its steps, each from an update of that one entry alone."""
    return [
        [
            oracle.judge(
                now, steps, [b], ADVANTAGES, TEXTS, 0.2, trained=[[i]] * IMAGES, **settings
            ).loss
            for i in trained[b]
        ]
        for b in range(IMAGES)
    ]


@pytest.mark.parametrize("step_weight", ["none", "noise", "inverse-dt"])
def test_loss_is_the_mean_over_images_of_each_ones_mean_over_its_steps(step_weight: str) -> None:
    steps, now = walk().window, moved(net())
    trained = [(0,), (0, 1), (2, 1, 0), (1,), (2, 0)]
    entries = per_entry(steps, now, trained, step_weight=step_weight)
    loss = oracle.judge(
        now, steps, [0, 2, 4], ADVANTAGES, TEXTS, 0.2, trained=trained, step_weight=step_weight
    ).loss
    assert loss == pytest.approx(np.mean([np.mean(entries[b]) for b in (0, 2, 4)]))


def test_all_steps_of_every_image_is_the_default() -> None:
    steps, now = walk().window, moved(net())
    judge = partial(
        oracle.judge, now, steps, slice(None), ADVANTAGES, TEXTS, 0.2, 0.5, moved(net(), 0.1)
    )
    by_default, by_name = judge(), judge(trained=[range(3)] * IMAGES)
    assert by_default.loss == pytest.approx(by_name.loss, rel=1e-14)
    assert by_default.kl == pytest.approx(by_name.kl, rel=1e-14)
    assert by_default.kl > 0


@pytest.mark.parametrize("kind", ["plain", "guard"])
@pytest.mark.parametrize("trained", [None, SUBSETS])
@pytest.mark.parametrize("sampled", [{}, {"kernel": "cps", "first": 5}], ids=str)
def test_before_any_update_the_loss_is_minus_the_mean_advantage(
    kind: str, trained: list[tuple[int, ...]] | None, sampled: dict[str, Any]
) -> None:
    """Whichever steps are trained, one without noise among them; the gradient is not zero."""
    steps = walk(**sampled).window
    judged = oracle.judge(
        net(), steps, slice(None), ADVANTAGES, TEXTS, 0.2, trained=trained, ratio_kind=kind
    )
    assert judged.loss == pytest.approx(-ADVANTAGES.mean())
    assert abs(judged.gradient["inner"]).max() > 1e-5
    assert (steps[-1].transition.std == 0) == ("kernel" in sampled)


def test_weights_have_mean_one_and_follow_their_formula() -> None:
    steps = walk().window
    stds, dts = [s.transition.std for s in steps], [s.dt for s in steps]
    for kind in ("none", "noise", "inverse-dt"):
        assert oracle.step_weights(steps, kind).mean() == pytest.approx(1)
    noise, inverse = (oracle.step_weights(steps, k) for k in ("noise", "inverse-dt"))
    assert noise[2] / noise[0] == pytest.approx(stds[2] / stds[0])
    assert inverse[2] / inverse[0] == pytest.approx(dts[0] / dts[2])


# ---- GRPO-Guard


@pytest.mark.parametrize("kernel", ["flow", "dance", "cps"])
@pytest.mark.parametrize("by", [0.01, 0.3])
def test_log_ratio_of_guard_is_the_noise_times_the_shift_of_the_mean(
    kernel: str, by: float
) -> None:
    """(logp_new - logp_old + b) std = mean over elements of eps (mean_new - mean_old)."""
    taken = walk(kernel=kernel, eta=0.6)
    for k, step in enumerate(taken.window):
        now = moved(net(), by)
        mean = step.transition.cx * step.before + step.transition.cv * now.velocity(
            step.before, step.sigma, TEXTS
        )
        shift = mean - step.mean
        guard = oracle.log_ratio(step, mean, "guard", "normalised", slice(None))
        np.testing.assert_allclose(guard, (NOISE[:, k] * shift).mean(1), atol=1e-13)
        # Without the bias, a mean that moves at all lowers the log-ratio on average over noise.
        plain = oracle.log_ratio(step, mean, "plain", "normalised", slice(None))
        std = step.transition.std
        expected = (NOISE[:, k] * shift / std - shift**2 / (2 * std**2)).mean(1)
        np.testing.assert_allclose(plain, expected, rtol=1e-9)


# ---- Trajectories


def euler(sigmas: Array) -> list[Array]:
    x, path = INITIAL, [INITIAL]
    for sigma, after in pairwise(sigmas):
        x = x + (after - sigma) * net().velocity(x, float(sigma), TEXTS)
        path.append(x)
    return path


@pytest.mark.parametrize("first", [1, 4, 6])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.01])
def test_a_head_of_first_order_is_euler_on_its_grid(first: int, ratio: float) -> None:
    taken = walk(first, 2, head_ratio=ratio, order=1, tail_ratio=0.9)
    head = max(1, round(first * ratio))
    for found, expected in zip(taken.path[: head + 1], euler(taken.sigmas), strict=False):
        np.testing.assert_allclose(found, expected, atol=1e-13)
    assert len(taken.sigmas) == 1 + head + 2 + (
        max(1, round((6 - first) * 0.9)) if first < 6 else 0
    )
    # The window is where it was, whatever ran before it.
    whole = oracle.schedule(8, 3.0)
    assert [s.sigma for s in taken.window] == pytest.approx(list(whole[first : first + 2]))
    assert [s.index for s in taken.window] == [head, head + 1]


def test_a_shortened_head_is_uniform_in_unshifted_time() -> None:
    times = np.array([1, 0.75, 0.5, 0.375, 0.25, 0])  # of 8 steps: 4 in 2, 2 of the window, 2 in 1
    taken = walk(4, 2, head_ratio=0.5, tail_ratio=0.5)
    np.testing.assert_allclose(taken.sigmas, 3 * times / (1 + 2 * times), atol=1e-15)


@pytest.mark.parametrize("history", ["keep", "restart"])
@pytest.mark.parametrize("head_ratio", [1.0, 0.6])
def test_the_first_step_after_the_window_looks_back_over_it(
    history: str, head_ratio: float
) -> None:
    """With a window of one step, the third prediction is one of the head."""
    taken = walk(6, 1, steps=24, order=3, history=history, head_ratio=head_ratio)
    begin = taken.window[0].index + 1
    sigmas = [float(s) for s in taken.sigmas]
    x0s = [x - s * net().velocity(x, s, TEXTS) for x, s in zip(taken.path, sigmas, strict=True)]
    order = 3 if history == "keep" else 1
    newest = range(begin, begin - order, -1)
    expected = oracle.dpm(
        order,
        "midpoint",
        taken.path[begin],
        [x0s[i] for i in newest],
        [sigmas[i] for i in newest],
        sigmas[begin + 1],
    )
    np.testing.assert_allclose(taken.path[begin + 1], expected, atol=1e-14)


def test_a_head_that_is_not_accelerated_is_euler_whatever_the_order() -> None:
    taken = walk(5, 2, order=3, tail_ratio=0.5)
    for found, expected in zip(taken.path[:6], euler(taken.sigmas), strict=False):
        np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize(
    ("order", "variant"), [(2, "midpoint"), (2, "heun"), (3, "midpoint"), (1, "midpoint")]
)
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_an_accelerated_head_is_diffusers_solver(order: int, variant: str) -> None:
    """On the grid of the oracle, up to the window; their solver holds samples in float32."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    taken = walk(14, 2, steps=16, head_ratio=0.7, order=order, variant=variant)
    head = taken.window[0].index
    assert head == 10
    scheduler: Any = DPMSolverMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="zero",
    )
    # More steps than are taken: its rules for the last two are about the whole trajectory.
    scheduler.set_timesteps(30)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.sigmas[: head + 1] = torch.from_numpy(taken.sigmas[: head + 1])
    x = torch.from_numpy(INITIAL)
    for i in range(head):
        v = torch.from_numpy(net().velocity(x.numpy(), float(taken.sigmas[i]), TEXTS))
        x = scheduler.step(v, scheduler.timesteps[i], x).prev_sample
        np.testing.assert_allclose(x.numpy(), taken.path[i + 1], atol=5e-6)


@pytest.mark.parametrize("decode", ["sample", "x0"])
@pytest.mark.parametrize("kernel", ["flow", "dance", "cps"])
def test_every_step_is_random_and_the_window_is_what_is_trained(kernel: str, decode: str) -> None:
    taken = walk(2, 3, sde="all", kernel=kernel, decode=decode)
    assert [s.index for s in taken.sde] == list(range(8))
    assert taken.window == taken.sde[2:5]
    for k, (before, step, after) in enumerate(
        zip(taken.path[:-1], taken.sde, taken.path[1:], strict=True)
    ):
        assert step.before is before
        assert step.after is after
        std = step.transition.std
        np.testing.assert_allclose(after - step.mean, std * NOISE[:, k], atol=1e-14)
        assert step.dt == pytest.approx(taken.sigmas[k + 1] - taken.sigmas[k])
        density = -((std * NOISE[:, k]) ** 2) / (2 * std**2) if std else np.zeros((IMAGES, 1))
        constant = -math.log(std) - 0.5 * math.log(2 * math.pi) if std else 0.0
        np.testing.assert_allclose(step.log_prob, density.mean(1) + constant, atol=1e-11)
    last = taken.sde[-1]
    x0 = last.before - last.sigma * net().velocity(last.before, last.sigma, TEXTS)
    np.testing.assert_allclose(taken.final, x0 if decode == "x0" else last.after, atol=1e-14)
    # Cps ends without noise, in the prediction of x0: there the two are the same.
    assert np.allclose(taken.final, taken.path[-1]) == (decode == "sample" or kernel == "cps")


def test_each_image_has_the_trajectory_it_has_alone() -> None:
    whole = walk(3, 2, head_ratio=0.7, tail_ratio=0.7, order=2)
    sampler = Sampler(8, 3.0, "flow", 0.7, 0.7, 2, head_ratio=0.7)
    for b in range(IMAGES):
        one = slice(b, b + 1)
        alone = oracle.trajectory(
            net().velocity, sampler, 3, 2, INITIAL[one], NOISE[one], TEXTS[one]
        )
        np.testing.assert_allclose(alone.final, whole.final[one], atol=1e-14)


# ---- Groups


@given(st.lists(st.integers(-2, 2), min_size=4, max_size=9), st.integers(1, 2))
def test_best_and_worst_are_the_ends_of_the_order(values: list[int], k: int) -> None:
    group = np.array([values, values[::-1]], float)
    chosen = oracle.best_and_worst(group, k)
    assert chosen.shape == (2, 2 * k)
    for row, images in zip(group, chosen, strict=True):
        assert sorted(set(images)) == list(images)
        left = np.delete(row, images)
        kept = np.sort(row[images])
        assert list(kept) == sorted(row)[:k] + sorted(row)[-k:]
        assert all(kept[k - 1] <= a <= kept[k] for a in left)


@pytest.mark.parametrize(
    ("group", "k", "expected"),
    [
        ([0.0, 2, 1, -1, 3], 1, [3, 4]),
        ([1.0, 2, 2, 1, 0], 1, [1, 4]),
        ([1.0, 2, 2, 1, 1], 1, [0, 1]),
        ([0.0, 0, 0, 0, 0], 2, [0, 1, 2, 3]),
        ([1.0, 1, 1, 0, 1], 2, [0, 1, 2, 3]),
        ([5.0, 4, 3, 2], 2, [0, 1, 2, 3]),
    ],
)
def test_of_equal_images_the_lower_index_is_taken(
    group: list[float], k: int, expected: list[int]
) -> None:
    assert list(oracle.best_and_worst(np.array([group]), k)[0]) == expected


def test_a_group_is_constant_where_nothing_but_zero_is_in_it() -> None:
    a = np.array([[0.0, 0, 0], [0, 1e-300, 0], [-0.0, 0, 0], [1, -1, 0]])
    assert list(oracle.constant_groups(a)) == [True, False, True, False]
