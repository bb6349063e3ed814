"""Who waits for whom: the least work by a brute-force count, no deadlock, no idle slot."""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.launching.dispatch import Local
from harness.launching.launcher import Launcher
from harness.launching.plan import Saved, describe, foresee
from harness.launching.screen import Progress
from harness.launching.sharing import KEPT, Sharing, will_come
from harness.launching.trunk import Trunk, families, superfluous, trunks
from harness.runs.folder import checkpoints_of, origin
from harness.runs.store import RunState, look_at_all
from harness.slurm.submissions import Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Run
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.shared_prefix import common_iterations
from tests.harness.lab import Lab

FAMILY = """\
name: toy
question: Does it work?
set: {iterations: 12, output.checkpoint_every: 5, evaluation.every: 12}
grid: {window.interval: [3, 6, 12, 13]}
seeds: 2
"""
"""interval=6 parts from 3 after 3 iterations, 12 from 6 after 6; 13 is 12."""
ONE_SEED = FAMILY.replace("seeds: 2", "seeds: 1")
STARTS = {"interval=3": 0, "interval=6": 3, "interval=12": 6, "interval=13": 12}

WINDOWS = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.integers(1, 3),
        st.sampled_from(["constant", "frozen", "linear-decay", "random"]),
        st.sampled_from([20, 30]),
    ),
    min_size=1,
    max_size=7,
    unique=True,
)


def make_runs(windows: list[tuple[int, int, str, int]]) -> list[Run]:
    runs = []
    for number, (interval, stride, strategy, iterations) in enumerate(windows):
        window = {"size": 2, "interval": interval, "stride": stride, "strategy": strategy}
        settings = {"iterations": iterations, "sampler": {"steps": 10}, "window": window}
        config = RunConfig.model_validate(settings)
        runs.append(Run(f"arm{number}", 0, config, config_hash(config)))
    return runs


def waiting(runs: list[Run]) -> dict[str, RunState]:
    return {r.folder_name: RunState(r, Path("none") / r.folder_name, "waiting") for r in runs}


def nothing(state: RunState) -> set[int]:
    """What a run under way that was told nothing will have in the end."""
    return {state.total}


@given(WINDOWS)
def test_every_iteration_is_computed_once_and_no_run_waits_in_a_circle(
    windows: list[tuple[int, int, str, int]],
) -> None:
    runs = make_runs(windows)
    found: dict[str, Trunk] = {}
    for family in families(runs):
        found |= trunks(family, waiting(runs), will_come, nothing)
    # Brute force: a run's iteration is new unless a run before it in the order had it.
    for number, run in enumerate(runs):
        most = max((common_iterations(run.config, r.config) for r in runs[:number]), default=0)
        trunk = found.get(run.folder_name)
        assert (trunk.iterations if trunk else 0) == (most if most >= 2 else 0)
    by_name = {run.folder_name: run for run in runs}
    for name, trunk in found.items():
        assert (
            common_iterations(by_name[name].config, by_name[trunk.source].config)
            >= trunk.iterations
        )
        # The source computes that point itself.
        theirs = found.get(trunk.source)
        assert theirs is None or theirs.iterations < trunk.iterations
        seen = {name}
        while name in found:
            name = found[name].source
            assert name not in seen
            seen.add(name)


def test_a_source_that_does_not_come_is_replaced(tmp_path: Path) -> None:
    runs = make_runs([(5, 1, "constant", 30), (5, 2, "constant", 30), (5, 3, "constant", 30)])
    states = waiting(runs)
    first, second, third = states
    (family,) = families(runs)
    assert {n: t.source for n, t in trunks(family, states, will_come, nothing).items()} == {
        second: first,
        third: first,
    }
    states[first] = RunState(runs[0], tmp_path / first, "failed")
    assert {n: t.source for n, t in trunks(family, states, will_come, nothing).items()} == {
        third: second
    }
    # Past the point and without its checkpoint, it is as good as none.
    states[first] = RunState(runs[0], tmp_path / first, "running", iteration=6)
    assert {n: t.source for n, t in trunks(family, states, will_come, nothing).items()} == {
        third: second
    }
    (tmp_path / first / "checkpoints" / "000005").mkdir(parents=True)
    found = trunks(family, states, will_come, nothing)
    assert {(t.source, t.iterations, t.ready) for t in found.values()} == {(first, 5, True)}
    states[first] = RunState(runs[0], tmp_path / first, "finished", iteration=30)
    assert trunks(family, states, will_come, nothing) == found


def test_what_runs_is_waited_for_only_where_it_was_told_to_leave_a_checkpoint(
    tmp_path: Path,
) -> None:
    runs = make_runs([(8, 1, "constant", 30), (8, 2, "constant", 30), (8, 1, "constant", 40)])
    states = waiting(runs)
    first, second, longer = states
    (family,) = families(runs)
    states[first] = RunState(runs[0], tmp_path / first, "running", iteration=2)

    def found(promise: set[int], queued: bool = False) -> dict[str, tuple[int, bool]]:
        made = trunks(family, states, will_come, lambda s: {*promise, s.total}, queued)
        assert {t.source for n, t in made.items() if n == second} <= {first}
        return {n: (t.iterations, t.ready) for n, t in made.items()}

    # The last checkpoint stays without being asked for.
    assert found(set()) == {longer: (30, False)}
    assert found({8}) == {second: (8, False), longer: (30, False)}
    assert found({5, 9}) == {second: (5, False), longer: (30, False)}
    assert found({1}) == {longer: (30, False)}  # it is past that
    # One that it makes for itself is there now and may be gone when a queue lets others begin.
    (tmp_path / first / "checkpoints" / "000004").mkdir(parents=True)
    assert found(set()) == {second: (4, True), longer: (30, False)}
    assert found(set(), queued=True) == {longer: (30, False)}
    assert found({4}, queued=True) == {second: (4, True), longer: (30, False)}
    # What goes on no more loses nothing.
    states[first] = RunState(runs[0], tmp_path / first, "failed", iteration=5)
    assert found(set(), queued=True)[second] == (4, True)


def test_a_source_that_starts_again_keeps_what_it_had_promised(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(FAMILY.replace("seeds: 2", "seeds: 1"))
    sweep = load_sweep(file)
    first, second, *_ = sweep.runs
    sharing = Sharing(sweep, tmp_path)
    folder = sharing.folder / first.folder_name
    (folder / "checkpoints" / "000005").mkdir(parents=True)
    (folder / KEPT).write_text("[3]")
    alone = [RunState(first, folder, "stopped", iteration=5)]  # as with --only
    found = sharing.plan(alone, will_come)
    assert sharing.start(first, folder, found).run.config.output.keep == (3,)
    asked = {second.folder_name: Trunk(first.folder_name, 6, ready=False)}
    assert sharing.start(first, folder, asked).run.config.output.keep == (3, 6)
    assert json.loads((folder / KEPT).read_text()) == [3, 6]


def test_what_a_queued_run_will_start_from_is_kept_by_a_source_that_goes_on(
    tmp_path: Path,
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(FAMILY.replace("seeds: 2", "seeds: 1"))
    sweep = load_sweep(file)
    first, second, *_ = sweep.runs
    for queued, kept in ((False, ()), (True, (3,))):
        sharing = Sharing(sweep, tmp_path, queued)
        folder = sharing.folder / first.folder_name
        folder.mkdir(parents=True, exist_ok=True)
        ready = {second.folder_name: Trunk(first.folder_name, 3, ready=True)}
        start = sharing.start(second, sharing.folder / second.folder_name, ready)
        assert (start.trunk, start.trunk_iterations) == (folder, 3)
        assert sharing.start(first, folder, {}).run.config.output.keep == kept


def test_what_was_kept_for_others_goes_and_nothing_else() -> None:
    def left(present: list[int], kept: set[int], over: bool = True) -> list[int]:
        gone = superfluous(present, kept, 10, 2, 60, over)
        return [m for m in present if m not in gone]

    assert left([5, 50, 60], {5}) == [50, 60]
    assert left([10, 50, 60], {10}) == [50, 60]
    assert left([50, 58, 60], {50, 58}) == [50, 60]
    assert left([37, 50, 60], set()) == [37, 50, 60]
    assert left([5], {5}, over=False) == [5]
    assert left([5, 10], {5}, over=False) == [10]
    assert left([50, 60], {60}) == [50, 60]


def said(file: Path, runs: Path) -> str:
    sweep = load_sweep(file)
    states = look_at_all(sweep, runs)
    return describe(sweep, states, 2, foresee(sweep, states, runs))


def test_the_plan_says_what_is_saved(lab: Lab) -> None:
    lab.write(FAMILY)
    sweep = lab.sweep
    paths = {
        (run.seed, *(run.config.make_window().start_at(m) for m in range(n)))
        for run in sweep.runs
        for n in range(1, 13)
    }
    saved = 8 * 12 - len(paths)  # nodes of the tree of all paths, seed by seed
    assert saved == 2 * sum(STARTS.values())
    text = said(lab.file, lab.runs)
    assert (
        "shared        6 start from a checkpoint that another makes: 3 to 12 of 12 iterations "
        f"each; saves {saved} of 96 iterations (44 %)"
    ) in text
    assert "  shared       6 of 12 iterations, which are those of interval=6" in text
    code, output = lab.finish("--plan", "--no-share")
    assert (code, "shared" in output) == (0, False)
    code, output = lab.finish("--executor", "inline")
    assert code == 0, output
    assert "shared" not in said(lab.file, lab.runs)
    other = lab.root / "other.yaml"
    other.write_text(FAMILY.replace("name: toy", "name: other").replace("[3, ", "[2, 3, "))
    assert (
        "shared        8 of 10 runs are finished elsewhere and are copied; "
        "saves 96 of 120 iterations (80 %)"
    ) in said(other, lab.runs)


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_a_sweep_with_trunks_ends_with_everything_computed_once(lab: Lab, executor: str) -> None:
    lab.write(FAMILY)
    options = ("--jobs", "2") if executor == "local" else ("--executor", "inline")
    code, output = lab.finish(*options, fake={"*": {"seconds": 0.05}})
    assert code == 0, output
    if executor == "local":  # the second slot does not wait for what the first one makes
        started = re.findall(r"(\S+): started", output)
        assert started[:2] == ["interval=3-seed0", "interval=3-seed1"]
    for state in lab.states().values():
        assert state.state == "finished"
        assert [a.began_at for a in state.attempts] == [STARTS[state.run.arm]]
        lines = (state.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(range(12))
        assert not (state.folder / KEPT).exists()
        # The fake trainer prunes nothing: what is left is its own, and what it started from.
        assert set(checkpoints_of(state.folder)) <= {5, 10, 12, STARTS[state.run.arm]}
    code, output = lab.finish(*options)
    assert (code, "started" in output) == (0, False)


def test_a_later_seed_begins_in_time_for_its_others(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(
        FAMILY.replace("window.interval: [3, 6, 12, 13]", "window.stride: [1, 2, 3, 4]").replace(
            "set: {", "set: {window.interval: 5, "
        )
    )
    sweep = load_sweep(file)
    states = look_at_all(sweep, tmp_path)
    first = next(s for s in states if (s.run.arm, s.run.seed) == ("stride=1", 0))
    (first.folder / "checkpoints" / "000005").mkdir(parents=True)
    states[states.index(first)] = RunState(first.run, first.folder, "finished", iteration=12)
    wanted = [s for s in states if s.state == "waiting"]

    def order(slots: int, left: list[RunState]) -> list[str]:
        launcher = Launcher(
            sweep,
            tmp_path,
            Progress("composition", False),
            lambda _: Local(slots),
            Scheduler(tmp_path / "toy"),
            sharing=Sharing(sweep, tmp_path),
        )
        return [s.run.name for s in launcher._without_waiting(left, states, set())]

    others = [f"stride={k}-seed0" for k in (2, 3, 4)]
    assert order(2, wanted) == [*others, "stride=1-seed1"]
    assert order(3, wanted) == [*others, "stride=1-seed1"]
    assert order(4, wanted) == ["stride=1-seed1", *others]
    last = [s for s in wanted if s.run.seed == 1 or s.run.arm == "stride=4"]
    assert order(2, last) == ["stride=1-seed1", "stride=4-seed0"]


def test_runs_wait_for_no_source_that_fails(lab: Lab) -> None:
    lab.write(ONE_SEED)
    broken = {"interval=3-seed0": {"raise_at": 1}, "interval=6-seed0": {"raise_at": 5}}
    code, output = lab.finish("--jobs", "2", fake=broken)
    assert code == 1
    assert "2 of 4 runs finished" in output
    began = {s.run.arm: [a.began_at for a in s.attempts] for s in lab.states().values()}
    assert began == {
        "interval=3": [0],
        "interval=6": [0],  # as nobody else begins with the same
        "interval=12": [5],  # by the last checkpoint of what failed
        "interval=13": [12],
    }
    code, output = lab.finish("--jobs", "2", "--retry", "failed")
    assert code == 0, output
    assert all(s.state == "finished" for s in lab.states().values())


def test_a_launcher_that_is_killed_leaves_all_to_the_next_one(lab: Lab) -> None:
    lab.write(ONE_SEED)
    launcher = lab.launch("--jobs", "2", fake={"*": {"seconds": 0.1}})
    lab.wait_for(lambda s: s["interval=6-seed0"].iteration >= 4)
    launcher.kill()
    launcher.wait()
    victim = next(s for s in lab.states().values() if s.state == "running")
    os.kill(victim.attempts[-1].pid, signal.SIGKILL)
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    for state in lab.states().values():
        assert lab.iterations(state.run.name) == list(range(12))
        assert state.attempts[-1].began_at >= STARTS[state.run.arm]
        assert not (state.folder / KEPT).exists()


def test_an_arm_that_is_added_while_its_source_runs_does_not_wait_in_vain(lab: Lab) -> None:
    slow = {"interval=6-seed0": {"seconds": 0.8}}  # longer than a launcher takes to begin
    text = ONE_SEED.replace("checkpoint_every: 5", "checkpoint_every: 50")
    lab.write(text.replace("[3, 6, 12, 13]", "[6]"))
    launcher = lab.launch("--jobs", "2", fake=slow)
    lab.wait_for(lambda s: s["interval=6-seed0"].iteration >= 1)
    launcher.kill()  # its job lives on
    launcher.wait()
    lab.write(text.replace("[3, 6, 12, 13]", "[6, 12]"))
    assert lab.states()["interval=6-seed0"].iteration < 6
    code, output = lab.finish("--jobs", "2", fake=slow)
    assert code == 0, output
    theirs, new = (lab.states()[f"interval={tau}-seed0"].attempts for tau in (6, 12))
    assert [a.began_at for a in new] == [0]
    assert new[0].started < (theirs[0].ended or 0.0)


def test_without_sharing_and_with_only_nothing_waits(lab: Lab) -> None:
    lab.write(ONE_SEED)
    code, output = lab.finish("--jobs", "2", "--only", "interval=12", "--only", "interval=13")
    assert code == 0, output
    states = lab.states()
    assert [a.began_at for a in states["interval=12-seed0"].attempts] == [0]
    assert [a.began_at for a in states["interval=13-seed0"].attempts] == [12]
    code, output = lab.finish("--jobs", "2", "--no-share")
    assert code == 0, output
    assert [a.began_at for a in lab.states()["interval=6-seed0"].attempts] == [0]
    assert origin(states["interval=6-seed0"].folder) is None


def test_ten_thousand_runs_are_planned_in_a_moment(tmp_path: Path) -> None:
    def seconds(grid: dict[str, Any], seeds: int) -> tuple[float, int]:
        file = tmp_path / "many.yaml"
        many = {"name": "many", "question": "How many?", "grid": grid, "seeds": seeds}
        file.write_text(json.dumps(many))
        sweep = load_sweep(file)
        states = look_at_all(sweep, tmp_path / "runs")
        begin = time.process_time()
        saved: Saved = foresee(sweep, states, tmp_path / "runs")
        return time.process_time() - begin, len(saved.trunks)

    rates = [1e-5 * (1 + k / 1000) for k in range(1000)]
    shapes: list[tuple[dict[str, Any], int, int]] = [
        ({"window.interval": [15, 20, 25, 30]}, 2500, 7500),
        ({"optimizer.lr": rates}, 10, 0),
        ({"window.threshold": [*range(500)], "window.strategy": ["exp-decay"]}, 20, 500 * 20 - 20),
    ]
    for grid, seeds, count in shapes:
        took, found = seconds(grid, seeds)
        assert found == count
        assert took < 3.0  # some 0.3 s on a free core
    assert list(itertools.islice((tmp_path / "runs").glob("*"), 1)) == []
