"""How many first iterations two runs share: compared with the windows, one by one."""

import time
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.maths.window import AtEnd, Strategy
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.continuation import MOST, common_iterations, common_length, path

WINDOWS = st.fixed_dictionaries(
    {
        "interval": st.integers(1, 6),
        "stride": st.integers(1, 4),
        "strategy": st.sampled_from(["frozen", "random", "constant", "linear-decay", "exp-decay"]),
        "at_end": st.sampled_from(["hold", "restart", "released"]),
        "start": st.integers(0, 3),
        "threshold": st.integers(0, 8),
        "decay": st.sampled_from([0.0, 0.1, 1.0]),
    }
)
DRIFT = st.booleans()


def config(window: dict[str, Any], iterations: int = 30, **sections: Any) -> RunConfig:
    settings = {
        "seed": 1,
        "iterations": iterations,
        "sampler": {"steps": 12},
        "window": {"size": 3, **window},
    }
    return RunConfig.model_validate(settings | sections)


@given(WINDOWS, WINDOWS, st.integers(1, 40), st.integers(1, 40), DRIFT)
def test_runs_are_one_until_a_window_stands_elsewhere_or_drift_is_measured(
    one: dict[str, Any], other: dict[str, Any], first: int, second: int, drift: bool
) -> None:
    a = config(one, first, health={"drift": drift})
    b = config(other, second, health={"drift": drift})
    common = common_iterations(a, b)
    assert common == common_iterations(b, a)
    windows = a.make_window(), b.make_window()

    def seen(m: int) -> list[tuple[Any, ...]]:
        return [(w.steps_at(m), w.moves_at(m) if drift else None) for w in windows]

    assert all(seen(m)[0] == seen(m)[1] for m in range(common))
    if common < min(first, second):
        assert seen(common)[0] != seen(common)[1]


@given(st.text("ab", max_size=9), st.text("ab", max_size=9))
def test_the_common_length_of_two_paths(a: str, b: str) -> None:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    assert common_length(a, b) == count


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 30),
        ({"iterations": 20}, 20),
        ({"window": {"size": 3, "interval": 4}}, 4),
        ({"window": {"size": 3, "interval": 5, "interval_min": 2}}, 30),
        ({"seed": 2}, 0),
        ({"window": {"size": 2, "interval": 5}}, 0),
        ({"window": {"size": 3, "interval": 5, "count": 2}}, 0),
        ({"optimizer": {"lr": 2e-5}}, 0),
        ({"rollout": {"noise": "own"}}, 0),
        ({"evaluation": {"every": 10}}, 0),
        ({"rewards": {"held_out": ("strict", "palette")}}, 0),
        ({"health": {"drift": False}}, 0),
        ({"health": {"gradient_conflict": False}}, 0),
        ({"output": {"samples": 3}}, 0),
        ({"output": {"checkpoint_every": 3, "keep": (4,), "export": False}}, 30),
    ],
)
def test_what_must_be_equal(changes: dict[str, Any], expected: int) -> None:
    base = config({"interval": 5})
    settings = base.model_dump() | changes
    for name, value in changes.items():
        if isinstance(value, dict):
            settings[name] = base.model_dump()[name] | value
    assert common_iterations(base, RunConfig.model_validate(settings)) == expected


def test_a_rate_that_goes_by_the_length_of_the_run_is_common_to_none_of_another_length() -> None:
    constant = [config({}, n, optimizer={"warmup": 3}) for n in (20, 30)]
    assert common_iterations(*constant) == 20
    falling = [config({}, n, optimizer={"schedule": "cosine"}) for n in (20, 30)]
    assert common_iterations(*falling) == 0


def test_a_random_window_draws_the_same_from_the_same_seed() -> None:
    window = {"strategy": "random"}
    # Drift is measured at the first iteration, then every `interval`.
    assert common_iterations(config(window | {"interval": 4}), config(window)) == 4
    calm = {"drift": False}
    others = [config(window | {"interval": tau}, health=calm) for tau in (4, 7)]
    assert common_iterations(*others) == 30


@given(
    st.sampled_from(get_args(Strategy)),
    st.sampled_from(get_args(AtEnd)),
    st.integers(1, 9),
    st.integers(1, 80),
    st.booleans(),
)
def test_a_path_has_a_letter_for_each_iteration(
    strategy: Strategy, at_end: AtEnd, interval: int, iterations: int, drift: bool
) -> None:
    config = RunConfig.model_validate(
        {
            "iterations": iterations,
            "sampler": {"steps": 9},
            "window": {"strategy": strategy, "at_end": at_end, "interval": interval},
            "health": {"drift": drift},
        }
    )
    window = config.make_window()
    assert path(config) == "".join(
        chr(2 * window.start_at(m) + (drift and window.moves_at(m))) for m in range(iterations)
    )


def test_of_very_long_runs_the_first_iterations_are_compared() -> None:
    begin = time.process_time()
    one, other = RunConfig(iterations=10**9), RunConfig(iterations=10**9 - 1)
    assert common_iterations(one, other) == MOST
    assert time.process_time() - begin < 1
