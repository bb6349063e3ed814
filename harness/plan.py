"""What a sweep would do, in text: runs, windows, network evaluations, seconds. Starts nothing."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from harness.arms import Arm
from harness.progress import counts, duration, seconds_per_run
from harness.spec import Sweep, same_schedules
from harness.store import RunState, look_at_all
from mixgrpo.config import RunConfig
from mixgrpo.plan import iteration_cost

_MANY_STRETCHES = 6


def describe(sweep: Sweep, runs_dir: Path, slots: int) -> str:
    """The plan of `sweep` on `slots` slots, given what already lies under `runs_dir`."""
    states = look_at_all(sweep, runs_dir)
    lines = [
        f"{sweep.name}{f' ({sweep.profile})' if sweep.profile else ''}: {len(sweep.arms)} arms x "
        f"{len(sweep.seeds)} seeds = {len(sweep.runs)} runs; reference {sweep.reference}, "
        f"measure {sweep.measure}"
    ]
    left: list[float] = []
    unknown = 0
    for arm in sweep.arms:
        own = [state for state in states if state.run.arm == arm.name]
        if not own:
            continue
        missing = [state for state in own if state.state != "finished"]
        seconds = seconds_per_run(own)
        lines += ["", *_arm(sweep, arm, own, seconds)]
        if seconds is None:
            unknown += len(missing)
        else:
            left += [seconds * (1 - s.iteration / s.total) for s in missing]
    lines += ["", _total(states, left, unknown, slots)]
    lines += [
        f"same schedule: {a} and {b} have their windows at the same steps in every iteration and "
        "differ in nothing else; one of them is enough"
        for a, b in same_schedules(sweep)
    ]
    return "\n".join(lines)


def _arm(sweep: Sweep, arm: Arm, states: list[RunState], seconds: float | None) -> Iterator[str]:
    config = states[0].run.config
    have = ", ".join(f"{n} {name}" for name, n in counts(states).items())
    reference = " (reference)" if arm.name == sweep.reference else ""
    yield f"{arm.name}: {arm.label}{reference}"
    yield f"  runs         {len(states)}: {have}"
    if arm.base is not None:
        yield f"  base         {arm.base}"
    yield f"  window       {window_path(config)}{_part_of_window(config)}"
    per_run = evaluations(config)
    yield (
        f"  evaluations  {per_run / config.iterations:,.0f} per iteration, {per_run:,} per run "
        f"({config.iterations} iterations)"
    )
    yield "  seconds      " + (
        f"about {duration(seconds)} per run"
        if seconds is not None
        else "unknown: no run of this configuration has finished in one go"
    )


def _total(states: list[RunState], left: list[float], unknown: int, slots: int) -> str:
    missing = sum(state.state != "finished" for state in states)
    if not missing:
        return "nothing to run: all runs are finished"
    text = f"{missing} of {len(states)} runs to do, {slots} at a time"
    if left:
        text += f": about {duration(max(sum(left) / slots, *left))}"
        if unknown:
            text += f" without {unknown} whose time is unknown"
    return text


def evaluations(config: RunConfig) -> int:
    """Network evaluations of one run's training: rollouts and updates, after sharing."""
    window = config.make_window()
    cost: dict[int, int] = {}
    total = 0
    for m in range(config.iterations):
        start = window.start_at(m)
        if start not in cost:
            cost[start] = iteration_cost(config, m).forward
        total += cost[start]
    return total


def window_path(config: RunConfig) -> str:
    """Where the window goes, in words: `steps 0-3 to 19-22: start 0-19, 5 iterations each`."""
    window, size = config.make_window(), config.window.size
    starts = [window.start_at(m) for m in range(config.iterations)]
    lowest, highest = min(starts), max(starts)
    span = f"steps {_steps(lowest, size)}"
    if lowest == highest:
        return f"{span} all the time"
    span += f" to {_steps(highest, size)}"
    if config.window.strategy == "random":
        return f"{span}, drawn anew at every iteration"
    stays = [(start, len(list(same))) for start, same in itertools.groupby(starts)]
    stretches = _stretches(stays)
    if len(stretches) > _MANY_STRETCHES:
        lengths = [n for _, n in stays]
        return f"{span}: {len(stays)} stays of {min(lengths)} to {max(lengths)} iterations"
    return f"{span}: start " + "; ".join(stretches)


def _part_of_window(config: RunConfig) -> str:
    trained = config.trained_per_image
    if trained == config.window.size:
        return ""
    return f"; {trained} of these {config.window.size} steps are trained, drawn for every image"


def _steps(start: int, size: int) -> str:
    return f"{start}-{start + size - 1}" if size > 1 else f"{start}"


def _stretches(stays: list[tuple[int, int]]) -> list[str]:
    """Stays of the same length and an even stride, put together."""
    groups: list[list[tuple[int, int]]] = []
    for start, length in stays:
        group = groups[-1] if groups else []
        fits = group and length == group[0][1]
        if fits and len(group) > 1:
            fits = start - group[-1][0] == group[1][0] - group[0][0]
        if fits:
            group.append((start, length))
        else:
            groups.append([(start, length)])
    texts = []
    for group in groups:
        (first, length), last = group[0], group[-1][0]
        if len(group) == 1:
            texts.append(f"{first} for {length}")
            continue
        stride = group[1][0] - first
        by = "" if stride == 1 else f" by {stride}"
        plural = "" if length == 1 else "s"
        texts.append(f"{first}-{last}{by}, {length} iteration{plural} each")
    return texts
