"""The window's path: what each strategy must do, and what holds for all of them."""

import math
import time
from collections import Counter
from fractions import Fraction
from itertools import groupby
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mixgrpo.maths.window import AtEnd, Strategy, Window

PROGRESSIVE = ["constant", "linear-decay", "exp-decay"]


AT_ENDS: tuple[AtEnd, ...] = get_args(AtEnd)


@st.composite
def windows(
    draw: st.DrawFn,
    strategies: tuple[str, ...] = get_args(Strategy),
    at_ends: tuple[AtEnd, ...] = AT_ENDS,
) -> Window:
    at_end = draw(st.sampled_from(at_ends))
    # The released code never touches the last two steps.
    kept = 2 if at_end == "released" else 0
    steps = draw(st.integers(1 + kept, 40))
    stop = draw(st.one_of(st.none(), st.integers(1, steps)))
    bound = min(stop or steps, steps - kept)
    size = draw(st.integers(1, bound))
    interval = draw(st.integers(1, 30))
    return Window(
        steps=steps,
        size=size,
        interval=interval,
        stride=draw(st.integers(1, 5)),
        strategy=draw(st.sampled_from(strategies)),
        at_end=at_end,
        start=draw(st.integers(0, bound - size)),
        stop=stop,
        seed=draw(st.integers(0, 1000)),
        interval_min=draw(st.integers(1, interval)),
        decay=draw(st.floats(0, 1)),
        threshold=draw(st.integers(0, 20)),
    )


def last_position(w: Window) -> int:
    """L: the window ends before `stop`, and before T - 2 where it does as the released code."""
    bounds = [w.steps] + ([w.stop] if w.stop else [])
    if w.at_end == "released":
        bounds.append(w.steps - 2)
    return min(bounds) - w.size


def make(strategy: Strategy = "constant", **changes: Any) -> Window:
    given: dict[str, Any] = {"steps": 25, "size": 4, "interval": 25, "stride": 1} | changes
    return Window(strategy=strategy, **given)


@given(windows(), st.integers(0, 3000))
def test_window_is_whole_and_inside(window: Window, iteration: int) -> None:
    steps = list(window.steps_at(iteration))
    assert len(steps) == window.size
    assert steps == list(range(steps[0], steps[0] + window.size))
    assert steps[0] >= 0
    assert steps[-1] < window.steps
    assert steps[-1] < (window.stop or window.steps)
    if window.at_end == "released":
        assert steps[-1] < window.steps - 2
    assert window.start <= steps[0] <= last_position(window) == window.last
    assert window.start_at(iteration) == steps[0]


@given(windows(), st.lists(st.integers(0, 500), min_size=1, max_size=8))
def test_window_has_no_memory(window: Window, iterations: list[int]) -> None:
    fresh = [Window(**_fields(window)).start_at(m) for m in iterations]
    assert [window.start_at(m) for m in reversed(iterations)][::-1] == fresh


def _fields(window: Window) -> dict[str, Any]:
    return {name: getattr(window, name) for name in Window.__dataclass_fields__}


def intervals_by_the_formula(w: Window, position: int) -> int:
    last = last_position(w)
    if w.strategy == "linear-decay" and w.at_end == "released":
        share = Fraction(position, last + w.size)
        return max(1, math.trunc(w.interval * (1 - share) + w.interval_min * share))
    if w.strategy == "linear-decay":
        fraction = Fraction(position, last) if last else Fraction(0)
        return math.ceil(w.interval + (w.interval_min - w.interval) * fraction)
    if w.strategy == "exp-decay":
        return math.ceil(w.interval * math.exp(-w.decay * max(0, position - w.threshold)))
    return w.interval


@given(windows(("constant", "linear-decay", "exp-decay")))
def test_progressive_path_step_by_step(w: Window) -> None:
    """A direct simulation with a state: move when the interval at this position has passed."""
    last, position, stayed = last_position(w), w.start, 0
    for m in range(400):
        assert w.start_at(m) == min(position, last)
        stayed += 1
        if stayed == intervals_by_the_formula(w, position):
            stayed = 0
            if w.at_end == "released":
                # It goes on as if windows could begin anywhere before their bound.
                position += w.stride
                if position >= last + w.size:
                    position = w.start
            elif position < last:
                position = min(last, position + w.stride)
            elif w.at_end == "restart":
                position = w.start


@given(windows(("linear-decay",)), st.data())
def test_linear_decay_is_exact(w: Window, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, w.last))
    assert w.interval_at(position) == intervals_by_the_formula(w, position)


def test_linear_decay_does_not_round_up_a_whole_number() -> None:
    # In floating point 25 - 24 * (k / L) may come out a little above a whole number.
    for last in range(1, 120):
        w = make("linear-decay", steps=last + 1, size=1, interval=last + 1)
        assert [w.interval_at(k) for k in range(last + 1)] == [
            last + 1 - k for k in range(last + 1)
        ]


@given(
    st.integers(0, 5000), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20), st.booleans()
)
def test_constant_is_the_closed_form(m: int, tau: int, stride: int, size: int, hold: bool) -> None:
    w = make(size=size, interval=tau, stride=stride, at_end="hold" if hold else "restart")
    last = 25 - size
    if not hold:
        # From 0 to L takes ceil(L / s) shifts; L's own interval must pass as well.
        m %= (math.ceil(last / stride) + 1) * tau
    assert w.start_at(m) == min(last, stride * (m // tau))


def test_hold_and_restart_at_the_end() -> None:
    hold = make(interval=2, steps=6, at_end="hold")
    restart = make(interval=2, steps=6, at_end="restart")
    assert [hold.start_at(m) for m in range(10)] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [restart.start_at(m) for m in range(10)] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]
    assert hold.start_at(10**9) == 2


@given(st.integers(0, 5000), st.integers(1, 40), st.integers(1, 6), st.integers(0, 19))
def test_released_is_the_closed_form(m: int, tau: int, stride: int, start: int) -> None:
    w = make(interval=tau, stride=stride, start=start, at_end="released")
    shifts = (m // tau) % math.ceil((23 - start) / stride)
    assert w.start_at(m) == min(19, start + stride * shifts)


def test_released_at_the_papers_setting() -> None:
    """Windows of the released code: 4 steps up to first step 19, then shorter ones to 22."""
    w = make(at_end="released")
    assert [w.start_at(25 * p) for p in range(24)] == [*range(20), 19, 19, 19, 0]
    assert [w.start_at(m) for m in (474, 475, 574, 575, 576)] == [18, 19, 19, 0, 0]
    # Up to there it is where the others are.
    assert [w.start_at(m) for m in range(500)] == [make().start_at(m) for m in range(500)]


RELEASED = {
    "constant": [25 * p for p in range(24)],
    "linear-decay": [
        *(0, 10, 19, 28, 36, 44, 52, 59, 66, 72, 78, 84),
        *(89, 94, 98, 102, 106, 109, 112, 114, 116, 118, 119, 120),
    ],
    "exp-decay": [*range(0, 351, 25), 373, 394, 413, 430, 446, 460, 473, 485, 496],
}
"""The iteration at which the released code's l becomes 0, 1, 2, ...: T = 25, tau 25, decay from 10
to 1, k = 0.1 above step 13. At the last one it is 23, and the code fails or rolls back."""


@pytest.mark.parametrize("strategy", RELEASED)
def test_released_shifts_when_the_released_code_does(strategy: Strategy) -> None:
    begins = RELEASED[strategy]
    interval = 10 if strategy == "linear-decay" else 25
    w = make(strategy, interval=interval, interval_min=1, at_end="released")
    whole = begins[-1]
    for m in range(3 * whole + 7):
        position = max(p for p, begin in enumerate(begins) if begin <= m % whole)
        assert w.start_at(m) == min(19, position)
        assert w.released_size_at(m) == min(4, 23 - position)


def test_stop_bounds_the_released_path_too() -> None:
    w = make(interval=1, size=2, stop=6, at_end="released")
    assert [w.start_at(m) for m in range(8)] == [0, 1, 2, 3, 4, 4, 0, 1]


@given(windows(at_ends=("hold", "restart")))
def test_stop_is_the_end_of_a_shorter_trajectory(w: Window) -> None:
    shorter = Window(**_fields(w) | {"steps": w.stop or w.steps, "stop": None})
    assert [w.start_at(m) for m in range(200)] == [shorter.start_at(m) for m in range(200)]


@given(windows())
def test_moves_are_the_iterations_that_begin_a_stay(w: Window) -> None:
    starts = [w.start_at(m) for m in range(200)]
    moves = [m for m in range(200) if w.moves_at(m)]
    if w.strategy in PROGRESSIVE:
        assert moves == [0, *(m for m in range(1, 200) if starts[m] != starts[m - 1])]
    else:
        assert moves == list(range(0, 200, w.interval))


def test_restart_goes_back_to_the_start_not_to_zero() -> None:
    w = make(interval=1, steps=8, start=2, at_end="restart")
    assert [w.start_at(m) for m in range(6)] == [2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("start", [0, 7, 21])
def test_frozen_stays_at_its_start(start: int) -> None:
    assert {make("frozen", start=start).start_at(m) for m in range(1000)} == {start}


def test_random_is_uniform_over_all_whole_windows() -> None:
    w = make("random", steps=13, size=4, seed=5)
    counts = Counter(w.start_at(m) for m in range(20_000))
    assert sorted(counts) == list(range(10))
    assert chisquare(list(counts.values())).pvalue > 1e-4


@given(windows(("random",)))
def test_random_goes_from_start_to_the_last_position_and_nowhere_else(w: Window) -> None:
    """Of 40 positions at most, 1,500 draws miss one with a probability below 1e-14."""
    seen = {w.start_at(m) for m in range(1500)}
    assert seen == set(range(w.start, last_position(w) + 1))


def test_random_is_uniform_between_start_and_stop() -> None:
    w = make("random", size=3, start=2, stop=13, seed=5)
    counts = Counter(w.start_at(m) for m in range(20_000))
    assert sorted(counts) == list(range(2, 11))
    assert chisquare(list(counts.values())).pvalue > 1e-4


def test_random_is_drawn_from_seed_and_iteration_alone() -> None:
    a, b, other = make("random", seed=1), make("random", seed=1), make("random", seed=2)
    path = [a.start_at(m) for m in range(300)]
    assert [b.start_at(m) for m in reversed(range(300))][::-1] == path
    assert [other.start_at(m) for m in range(300)] != path
    # Nothing of a progressive window's description moves it.
    assert [make("random", seed=1, interval=3, stride=2).start_at(m) for m in range(300)] == path


def test_random_is_the_same_on_every_machine() -> None:
    w = make("random", seed=0)
    assert [w.start_at(m) for m in range(8)] == [6, 11, 5, 15, 0, 13, 12, 20]


def test_the_papers_run_reaches_start_11() -> None:
    w = make()
    assert w.start_at(299) == 11
    assert max(max(w.steps_at(m)) for m in range(300)) == 14


def test_the_papers_exponential_decay_is_its_constant_schedule() -> None:
    constant, decaying = make(), make("exp-decay", decay=0.1, threshold=13)
    assert [constant.start_at(m) for m in range(300)] == [decaying.start_at(m) for m in range(300)]
    assert [constant.start_at(m) for m in range(420)] != [decaying.start_at(m) for m in range(420)]


def test_iteration_576_at_tau_25_where_the_released_code_crashes() -> None:
    assert list(make().steps_at(576)) == [21, 22, 23, 24]


@pytest.mark.parametrize("strategy", PROGRESSIVE)
def test_a_window_as_long_as_the_trajectory_never_moves(strategy: Strategy) -> None:
    for at_end in AT_ENDS:
        w = make(strategy, size=23 if at_end == "released" else 25, at_end=at_end)
        assert {w.start_at(m) for m in range(100)} == {0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"interval": 0},
        {"stride": 0},
        {"interval_min": 0},
        {"start": -1},
        {"start": 22},
        {"size": 26},
        {"stop": 3},
        {"stop": 10, "start": 7},
        {"at_end": "released", "size": 24},
        {"at_end": "released", "start": 20},
    ],
)
def test_a_window_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|longer than"):
        make(**wrong)


def test_a_negative_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        make().start_at(-1)


def test_where_the_released_window_would_shrink() -> None:
    """T = 25, w = 4: whole up to first step 19, then 3, 2, 1 steps, then again."""
    window = Window(25, 4, 10, 1, "constant", at_end="released")
    sizes = [window.released_size_at(10 * p + 3) for p in range(25)]
    assert sizes == [4] * 20 + [3, 2, 1] + [4, 4]
    assert {len(window.steps_at(m)) for m in range(400)} == {4}
    hold = Window(25, 4, 10, 1, "constant")
    assert {hold.released_size_at(m) for m in range(400)} == {4}


@given(windows(), st.integers(1, 700))
def test_stays_are_those_of_single_iterations(window: Window, iterations: int) -> None:
    starts = [window.start_at(m) for m in range(iterations)]
    stays = [(start, len(list(same))) for start, same in groupby(starts)]
    assert list(window.stays(iterations)) == stays
    assert window.iterations_at(iterations) == Counter(starts)


def test_a_run_of_any_length_is_planned_in_a_moment() -> None:
    begin = time.process_time()
    for strategy in get_args(Strategy):
        for at_end in get_args(AtEnd):
            window = make(strategy, steps=25, size=4, at_end=at_end)
            counts = window.iterations_at(10**9)
            assert sum(counts.values()) == 10**9
            if strategy == "random":  # as often each
                assert max(counts.values()) - min(counts.values()) <= 1
    assert time.process_time() - begin < 1
