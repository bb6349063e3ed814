"""A trajectory before it runs: kinds, grid, and a cost that must be the counted one."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.sampling.plan import make_plan
from mixgrpo.settings.config import SamplerConfig
from tests.mixgrpo import oracle

Given = tuple[SamplerConfig, range]
RATIOS = st.one_of(st.just(1.0), st.floats(0.01, 1))


@st.composite
def samplers(draw: st.DrawFn, sde: tuple[str, ...] = ("window", "all")) -> Given:
    """A sampler and the window's steps in its own grid."""
    steps = draw(st.integers(2, 30))
    size = draw(st.integers(1, steps))
    first = draw(st.integers(0, steps - size))
    settings: dict[str, Any] = {"steps": steps, "shift": draw(st.floats(0.5, 5))}
    settings["sde"] = draw(st.sampled_from(sde))
    if settings["sde"] == "window":
        settings["tail_ratio"] = draw(RATIOS)
        settings["head_ratio"] = draw(RATIOS)
        settings["order"] = draw(st.sampled_from([1, 2, 3]))
    return SamplerConfig(**settings), range(first, first + size)


def plan_of(first: int, size: int, **sampler: Any) -> Any:
    return make_plan(SamplerConfig(**sampler), range(first, first + size))


@given(samplers())
def test_kinds_and_grid(given_: Given) -> None:
    sampler, window = given_
    plan = make_plan(sampler, window)
    head = oracle.shortened(window.start, sampler.head_ratio)
    tail = oracle.shortened(sampler.steps - window.stop, sampler.tail_ratio)
    size = len(window)
    before = "ode" if sampler.head_ratio == 1 else "dpm"
    after = "ode" if sampler.tail_ratio == 1 and sampler.order == 1 else "dpm"
    kinds = [before] * head + ["sde"] * size + [after] * tail
    if sampler.sde == "all":
        kinds = ["sde"] * sampler.steps
    assert list(plan.kinds) == kinds
    assert plan.steps == head + size + tail
    assert plan.window == tuple(range(head, head + size))
    assert plan.sde == (tuple(range(plan.steps)) if sampler.sde == "all" else plan.window)
    assert plan.tail_begin == head + size
    assert plan.shared_steps == (1 if sampler.sde == "all" else head + 1)
    sigmas = plan.sigmas.numpy()
    assert sigmas.dtype == np.float64
    expected = oracle.grid(sampler.steps, sampler.shift, window.stop, tail, window.start, head)
    np.testing.assert_allclose(sigmas, expected, atol=1e-14)


@given(samplers())
def test_the_grid_falls_from_one_to_zero_and_the_window_stays_in_its_place(given_: Given) -> None:
    """Wherever head and tail are shortened, they meet the window at its own sigmas."""
    sampler, window = given_
    plan = make_plan(sampler, window)
    sigmas = plan.sigmas.tolist()
    assert len(sigmas) == plan.steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(after < sigma for sigma, after in pairwise(sigmas))
    whole = make_plan(SamplerConfig(steps=sampler.steps, shift=sampler.shift), window)
    inside = slice(window.start, window.stop + 1)
    begin = plan.window[0]
    assert sigmas[begin : begin + len(window) + 1] == whole.sigmas[inside].tolist()
    assert whole.steps == sampler.steps
    assert plan.steps <= whole.steps


@pytest.mark.parametrize(
    ("first", "ratio", "steps"),
    [
        (0, 0.2, 8),  # Flash*: 4 + round(21 * 0.2)
        (6, 0.4, 16),  # Flash: 10 + round(15 * 0.4)
        (13, 0.2, 19),  # here the released code has one point left and decodes noise
        (18, 0.4, 23),
        (20, 0.1, 25),  # round(0.1) is 0: one step is the least
        (21, 0.2, 25),  # no tail
        (6, 1.0, 25),
    ],
)
def test_length_of_the_tail(first: int, ratio: float, steps: int) -> None:
    plan = plan_of(first, 4, tail_ratio=ratio)
    assert plan.steps == steps
    assert float(plan.sigmas[-1]) == 0.0


def test_evaluations_of_the_specifications_example() -> None:
    plan = plan_of(6, 4)
    assert plan.evaluations(12) == 223
    assert plan.evaluations(12, shared_noise=False) == 300
    flash = plan_of(6, 4, tail_ratio=0.4)
    # l + 1 + N (T~ - l - 1) with T~ = 6 + 4 + 6.
    assert flash.evaluations(12) == 6 + 1 + 12 * (16 - 6 - 1) == 115
    assert flash.evaluations(12, shared_noise=False) == 192


@pytest.mark.parametrize(
    ("first", "ratio", "steps"),
    [
        (11, 0.4, 18),  # round(4.4) + 4 + 10
        (1, 0.2, 25),  # one step is the least
        (0, 0.2, 25),  # no head
        (21, 0.5, 14),  # round(10.5) is 10; no tail
    ],
)
def test_length_of_the_head(first: int, ratio: float, steps: int) -> None:
    plan = plan_of(first, 4, head_ratio=ratio)
    assert plan.steps == steps
    assert plan.window == tuple(range(steps - 25 + first, steps - 25 + first + 4))
    # A shorter head is fewer steps that the group shares.
    assert plan.shared_steps == steps - 25 + first + 1


@given(samplers(), st.integers(2, 24))
def test_shared_is_the_formula_and_never_more(given_: Given, group: int) -> None:
    plan = make_plan(*given_)
    first = 0 if given_[0].sde == "all" else plan.window[0]
    assert plan.evaluations(group) == first + 1 + group * (plan.steps - first - 1)
    assert plan.evaluations(group, shared_noise=False) == group * plan.steps
    assert plan.evaluations(group) < plan.evaluations(group, shared_noise=False)


@given(samplers(), st.integers(1, 8), st.integers(1, 4), st.data())
def test_update_evaluations_by_which_images_meet_at_one_latent(
    given_: Given, share: int, updates: int, data: st.DataObject
) -> None:
    """Counted by walking through the updates: images of one update share a latent or do not."""
    plan = make_plan(*given_)
    size, group = len(plan.window), share * updates
    per_image = data.draw(st.one_of(st.none(), st.integers(1, size)))
    for shared_noise in (True, False):
        count = 0
        for _ in range(updates):
            for step in plan.window[: per_image or size]:
                # Nothing random came before this step, and every image is there.
                together = shared_noise and step == plan.sde[0] and per_image in (None, size)
                count += 1 if together else share
        found = plan.update_evaluations(group, updates, shared_noise, per_image)
        assert found == count
        trained = per_image or size
        if not shared_noise or trained < size:
            assert found == trained * group
        elif given_[0].sde == "window":
            assert found == updates + (size - 1) * group


def test_random_steps_before_the_window_leave_nothing_to_share_in_the_update() -> None:
    plan = plan_of(2, 3, steps=8, sde="all")
    assert plan.shared_steps == 1
    assert plan.evaluations(12) == 1 + 12 * 7
    assert plan.update_evaluations(12, 2) == 12 * 3
    assert plan_of(0, 3, steps=8, sde="all").update_evaluations(12, 2) == 2 + 12 * 2


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_plan_without_a_window_is_an_ode_trajectory_shared_to_its_end(ratio: float) -> None:
    plan = make_plan(SamplerConfig(steps=7, head_ratio=ratio), [])
    assert plan.kinds == ("ode",) * 7
    assert plan.window == plan.sde == ()
    np.testing.assert_allclose(plan.sigmas.numpy(), oracle.schedule(7, 3.0), atol=1e-14)
    assert plan.evaluations(12) == 7
    assert plan.update_evaluations(12) == 0


def test_window_steps_need_not_touch() -> None:
    plan = make_plan(SamplerConfig(steps=10, tail_ratio=0.5), [5, 1, 5])
    assert plan.kinds == ("ode", "sde", "ode", "ode", "ode", "sde", "dpm", "dpm")
    assert plan.evaluations(3) == 2 + 3 * 6
    # The head is what lies before the first of them.
    plan = make_plan(SamplerConfig(steps=10, head_ratio=0.5), [4, 6])
    assert plan.kinds == ("dpm", "dpm", "sde", "ode", "sde", "ode", "ode", "ode")
    assert plan.window == plan.sde == (2, 4)


@pytest.mark.parametrize("window", [[-1, 0], [24, 25], [30]])
def test_a_window_outside_the_trajectory_is_refused(window: list[int]) -> None:
    with pytest.raises(ValueError, match="not within a trajectory"):
        make_plan(SamplerConfig(), window)
