"""The plan of a sweep, in text: runs, windows, network evaluations, seconds. Starts nothing."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.launching.lengths import Beginning, beginnings
from harness.runs.folder import checkpoints_of
from harness.runs.progress import counts, seconds_per_run
from harness.runs.state import LIVE, RunState
from harness.runs.store import find_of_other_code, find_stored
from harness.study.arms import Arm
from harness.study.spec import Sweep, same_schedules
from harness.text import listed
from mixgrpo.files.records import RESULT
from mixgrpo.sampling.plan import run_cost
from mixgrpo.settings.config import RunConfig
from mixgrpo.text.words import duration

_MANY_STRETCHES = 6
_MANY_STAYS = 10_000
_MOST = 20
"""The most arms, and groups of arms, that are listed one by one."""


@dataclass(frozen=True)
class Saved:
    """What need not be computed again, by the names of the runs' folders."""

    stored: dict[str, Path]
    """The folders of runs that are finished already, for another sweep."""
    beginnings: dict[str, Beginning]
    """The checkpoints from which other runs start."""
    from_zero: list[str]
    """Why runs start from zero though runs of another length exist, a line for each reason."""

    def iterations(self, state: RunState) -> int:
        """The iterations that a run need not compute."""
        name = state.run.folder_name
        if name in self.stored:
            return state.total
        return self.beginnings[name].iterations if name in self.beginnings else 0


def foresee(
    sweep: Sweep, states: list[RunState], runs_dir: Path, accept_code_change: bool = False
) -> Saved:
    """What the launcher would not compute again. `states`: those of the sweep's runs, or of some of
    them."""
    waiting = [state.run for state in states if state.state == "waiting"]
    stored = find_stored(waiting, runs_dir)
    if accept_code_change:
        stored = find_of_other_code(waiting, runs_dir) | stored
    stored = {name: folder for name, folder in stored.items() if (folder / RESULT).exists()}
    new = [
        state.run
        for state in states
        if state.state not in (*LIVE, "finished")
        and not checkpoints_of(state.folder)
        and state.run.folder_name not in stored
    ]
    return Saved(stored, *beginnings(sweep, runs_dir, new))


def describe(
    sweep: Sweep, states: list[RunState], slots: int | None, saved: Saved | None = None
) -> str:
    """The plan of `sweep` for `slots` slots (None: a queue). `saved`: what need not be computed."""
    lines = [
        f"{sweep.name}{f' ({sweep.profile})' if sweep.profile else ''}: {len(sweep.arms)} arms x "
        f"{len(sweep.seeds)} seeds = {_runs(sweep)}; reference {sweep.reference}, "
        f"measure {sweep.measure}"
    ]
    left: list[float] = []
    unknown = 0
    states_of: dict[str, list[RunState]] = {}
    for state in states:
        states_of.setdefault(state.run.arm, []).append(state)
    arms = [arm for arm in sweep.arms if arm.name in states_of]
    shown = _shown(sweep, arms)
    for arm in arms:
        of_arm = states_of[arm.name]
        missing = [state for state in of_arm if state.state != "finished"]
        seconds = seconds_per_run(of_arm)
        if arm.name in shown:
            lines += ["", *_arm(sweep, arm, of_arm, seconds)]
            lines += _first_beginning(of_arm, saved) if saved else []
        if seconds is None:
            unknown += len(missing)
        else:
            given = {s.run.name: saved.iterations(s) if saved else 0 for s in missing}
            done = [max(s.iteration, given[s.run.name]) / s.total for s in missing]
            left += [seconds * (1 - part) for part in done]
    if len(shown) < len(arms):
        lines += ["", f"and {len(arms) - len(shown)} more arms (--only ARM shows one)"]
    lines += ["", _total(states, left, unknown, slots)]
    lines += [*_shared(states, saved), *saved.from_zero] if saved else []
    groups = same_schedules(sweep)
    lines += [
        f"same schedule: {listed(group, _MOST)} have their windows at the same steps in every "
        "iteration and differ in nothing else; one of them is enough"
        for group in groups[:_MOST]
    ]
    if len(groups) > _MOST:
        lines.append(f"and {len(groups) - _MOST} more groups of arms with the same schedule")
    return "\n".join(lines)


def _runs(sweep: Sweep) -> str:
    count = len(sweep.arms) * len(sweep.seeds)
    word = "needed now" if sweep.looks else "chosen"
    part = f", of which {len(sweep.runs):,} {word}" if len(sweep.runs) < count else ""
    return f"{count} runs{part}"


def _shown(sweep: Sweep, arms: list[Arm]) -> set[str]:
    """The first arms, and the reference in any case."""
    first = [arm.name for arm in arms if arm.name != sweep.reference]
    return {sweep.reference, *first[: _MOST - 1]} & {arm.name for arm in arms}


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


def _first_beginning(states: list[RunState], saved: Saved) -> Iterator[str]:
    """The first of an arm's runs that starts from another run's checkpoint."""
    for state in states:
        if beginning := saved.beginnings.get(state.run.folder_name):
            done = beginning.iterations
            yield f"  continues    {beginning.source.name} after its {done} iterations"
            return


def _shared(states: list[RunState], saved: Saved) -> Iterator[str]:
    """What is not computed again, in one line; no line where that is nothing."""
    missing = [state for state in states if state.state != "finished"]
    stored = [state for state in missing if state.run.folder_name in saved.stored]
    starting = [state for state in missing if state.run.folder_name in saved.beginnings]
    if not (stored or starting):
        return
    parts = []
    if stored:
        verb = "is" if len(stored) == 1 else "are"
        parts.append(
            f"{len(stored):,} of {len(states):,} runs {verb} finished already, for another sweep"
        )
    if starting:
        verb = "continues a run" if len(starting) == 1 else "continue runs"
        parts.append(f"{len(starting):,} {verb} of another length")
    total = sum(state.total - state.iteration for state in missing)
    given = sum(saved.iterations(state) - state.iteration for state in (*stored, *starting))
    parts.append(
        f"saves {given:,} of {total:,} iterations ({given / total:.0%})".replace("%", " %")
    )
    yield f"shared        {'; '.join(parts)}"


def _total(states: list[RunState], left: list[float], unknown: int, slots: int | None) -> str:
    missing = sum(state.state != "finished" for state in states)
    if not missing:
        return "nothing to run: all runs are finished"
    text = f"{missing} of {len(states)} runs to do"
    if slots is None:
        return text
    text += f", {slots} at a time"
    if left:
        text += f": about {duration(max(sum(left) / slots, *left))}"
        if unknown:
            text += f" without {unknown} whose time is unknown"
    return text


def evaluations(config: RunConfig) -> int:
    """Network evaluations of one run's training: rollouts and updates, after sharing."""
    return run_cost(config).forward


def window_path(config: RunConfig) -> str:
    """The window's path, in words: `steps 0-3 to 19-22: start 0-19, 5 iterations each`."""
    window, size = config.make_window(), config.window.size
    starts = window.iterations_at(config.iterations)
    lowest, highest = min(starts), max(starts)
    span = f"steps {_steps(lowest, size)}"
    if lowest == highest:
        return f"{span} all the time"
    span += f" to {_steps(highest, size)}"
    if config.window.strategy == "random":
        return f"{span}, drawn at every iteration"
    stays = list(itertools.islice(window.stays(config.iterations), _MANY_STAYS + 1))
    stretches = _stretches(stays)
    if len(stretches) > _MANY_STRETCHES:
        lengths = [n for _, n in stays]
        count = f"{len(stays)}" if len(stays) <= _MANY_STAYS else f"more than {_MANY_STAYS:,}"
        return f"{span}: {count} stays of {min(lengths)} to {max(lengths)} iterations"
    return f"{span}: start " + "; ".join(stretches)


def _part_of_window(config: RunConfig) -> str:
    trained = config.trained_per_image
    if trained == config.window.size:
        return ""
    return f"; {trained} of these {config.window.size} steps are trained, drawn for every image"


def _steps(start: int, size: int) -> str:
    return f"{start}-{start + size - 1}" if size > 1 else f"{start}"


def _stretches(stays: list[tuple[int, int]]) -> list[str]:
    """The window's stays, (start, iterations), with those of equal length and stride merged."""
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
