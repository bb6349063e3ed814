"""A trajectory before it runs: kinds, grid, and a cost that must be the counted one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.config import SamplerConfig
from mixgrpo.plan import make_plan
from tests.mixgrpo import oracle


@st.composite
def samplers(draw: st.DrawFn) -> tuple[SamplerConfig, range]:
    steps = draw(st.integers(2, 30))
    size = draw(st.integers(1, steps))
    first = draw(st.integers(0, steps - size))
    sampler = SamplerConfig(
        steps=steps,
        shift=draw(st.floats(0.5, 5)),
        tail_ratio=draw(st.floats(0.01, 1)),
        order=draw(st.sampled_from([1, 2, 3])),
    )
    return sampler, range(first, first + size)


def plan_of(first: int, size: int, **sampler: Any) -> Any:
    return make_plan(SamplerConfig(**sampler), range(first, first + size))


@given(samplers())
def test_kinds_and_grid(given_: tuple[SamplerConfig, range]) -> None:
    sampler, window = given_
    plan = make_plan(sampler, window)
    begin = window.stop
    rest = sampler.steps - begin
    tail = max(1, round(rest * sampler.tail_ratio)) if rest else 0
    after = "ode" if sampler.tail_ratio == 1 and sampler.order == 1 else "dpm"
    assert list(plan.kinds) == ["ode"] * window.start + ["sde"] * len(window) + [after] * tail
    assert plan.steps == begin + tail
    assert plan.window == tuple(window)
    sigmas = plan.sigmas.numpy()
    assert len(sigmas) == plan.steps + 1
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    assert (np.diff(sigmas) < 0).all()
    expected = oracle.grid(sampler.steps, sampler.shift, begin, tail)
    np.testing.assert_allclose(sigmas, expected, atol=1e-14)


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


@given(samplers(), st.integers(2, 24), st.integers(1, 4))
def test_shared_is_the_formula_and_never_more(
    given_: tuple[SamplerConfig, range], group: int, updates: int
) -> None:
    plan = make_plan(*given_)
    first = plan.window[0]
    assert plan.evaluations(group) == first + 1 + group * (plan.steps - first - 1)
    assert plan.evaluations(group, shared_noise=False) == group * plan.steps
    assert plan.evaluations(group) < plan.evaluations(group, shared_noise=False)
    size = len(plan.window)
    group *= updates
    assert plan.update_evaluations(group, updates) == updates + group * (size - 1)
    assert plan.update_evaluations(group, updates, shared_noise=False) == group * size


def test_a_plan_without_a_window_is_an_ode_trajectory_shared_to_its_end() -> None:
    plan = make_plan(SamplerConfig(steps=7), [])
    assert plan.kinds == ("ode",) * 7
    assert plan.evaluations(12) == 7
    assert plan.update_evaluations(12) == 0


def test_window_steps_need_not_touch() -> None:
    plan = make_plan(SamplerConfig(steps=10, tail_ratio=0.5), [5, 1, 5])
    assert plan.kinds == ("ode", "sde", "ode", "ode", "ode", "sde", "dpm", "dpm")
    assert plan.evaluations(3) == 2 + 3 * 6


@pytest.mark.parametrize("window", [[-1, 0], [24, 25], [30]])
def test_a_window_outside_the_trajectory_is_refused(window: list[int]) -> None:
    with pytest.raises(ValueError, match="not within a trajectory"):
        make_plan(SamplerConfig(), window)
