"""Hundreds of arms: texts, tables and figures stay readable, and work grows with the runs alone."""

import time
from pathlib import Path

import pytest

from harness.analysis.analyse import analyse
from harness.analysis.results import collect
from harness.launching import status
from harness.launching.plan import describe
from harness.reporting import drawing, figures, findings
from harness.reporting.write import write_report
from harness.runs import state, store
from harness.runs.state import RunState
from harness.study.load import known_folders, load_sweep
from harness.study.spec import Run, same_schedules
from mixgrpo.settings.config import RunConfig

from .synthetic import make_sweep, write_runs


def sweep_file(folder: Path, text: str) -> Path:
    file = folder / "scale.yaml"
    file.write_text(f"name: scale\nquestion: How many?\n{text}")
    return file


def many(arms: int, seeds: int) -> str:
    rates = ", ".join(f"{1 + k / arms}e-5" for k in range(arms))
    return f"grid: {{optimizer.lr: [{rates}]}}\nseeds: {seeds}\n"


@pytest.mark.parametrize("shape", ["arms", "seeds"])
def test_the_plan_takes_time_in_proportion_to_the_runs(tmp_path: Path, shape: str) -> None:
    def plan(count: int) -> float:
        text = many(count, 1) if shape == "arms" else many(1, count)
        file = sweep_file(tmp_path, text)
        begin = time.process_time()
        sweep = load_sweep(file)
        known_folders(file, sweep)
        describe(sweep, state.look_at_all(sweep, tmp_path / "runs"), 2)
        return time.process_time() - begin

    plan(100)  # first calls take longer
    # Sixteen times as many: 16 where it is linear, 256 where it is quadratic. The shortest of
    # three, since one may be stopped by a collection of all that earlier tests left.
    assert min(plan(6400) for _ in range(3)) <= 30 * min(plan(400) for _ in range(3))


def test_stored_runs_are_found_in_time_in_proportion_to_the_runs(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        """Of looking for the runs of a sweep, half of which another one has."""
        sweep, runs_dir = load_sweep(sweep_file(tmp_path, many(count, 1))), tmp_path / f"{count}"
        (runs_dir / "other").mkdir(parents=True)
        for run in sweep.runs[: count // 2]:
            folder = store.stored_folder(run, runs_dir)
            folder.mkdir(parents=True)
            store.link(runs_dir / "other" / run.folder_name, folder)
        begin = time.process_time()
        assert len(store.find_stored(sweep.runs, runs_dir)) == count // 2
        assert len(store.links(runs_dir)) == count // 2
        return time.process_time() - begin

    # Eight times as many: 8 where it is linear, 64 where it is quadratic.
    assert seconds(1600) <= 30 * seconds(200)


def test_results_by_arm_take_time_in_proportion_to_the_runs() -> None:
    def seconds(count: int) -> float:
        runs = [Run(f"arm{k}", 0, RunConfig(), "0" * 8) for k in range(count)]
        states = [RunState(r, Path(), "finished", score=0.6, before=0.5) for r in runs]
        took = []
        for _ in range(3):
            begin = time.process_time()
            assert len(status._arms(states)) == count
            took.append(time.process_time() - begin)
        return min(took)

    # Sixteen times as many: 16 where it is linear, 256 where it is quadratic.
    assert seconds(6400) <= 60 * seconds(400)


def test_the_plan_of_many_arms_lists_some_and_the_reference(tmp_path: Path) -> None:
    text = many(100, 3) + "reference: {optimizer.lr: 1.5e-5}\n"
    sweep = load_sweep(sweep_file(tmp_path, text))
    said = describe(sweep, state.look_at_all(sweep, tmp_path / "runs"), 2)
    assert "100 arms x 3 seeds = 300 runs" in said
    assert said.count("  window ") == 20
    assert f"{sweep.reference}: learning rate = 1.5e-05 (reference)" in said
    assert "and 80 more arms (--only ARM shows one)" in said
    assert "300 of 300 runs to do" in said


def test_arms_with_the_same_schedule_are_one_group(tmp_path: Path) -> None:
    thresholds = ", ".join(str(13 + k) for k in range(30))
    text = f"""\
set: {{window.strategy: exp-decay}}
grid: {{window.threshold: [{thresholds}]}}
seeds: 1
"""
    sweep = load_sweep(sweep_file(tmp_path, text))
    groups = same_schedules(sweep)
    assert groups == [tuple(arm.name for arm in sweep.arms)]
    said = describe(sweep, state.look_at_all(sweep, tmp_path / "runs"), 2)
    (line,) = (line for line in said.splitlines() if line.startswith("same schedule:"))
    assert line.startswith("same schedule: threshold=13, threshold=14, ")
    assert "threshold=32 and 10 more have their windows" in line


def test_known_folders_are_those_of_every_profile(tmp_path: Path) -> None:
    text = """\
grid: {window.interval: [15, 25]}
seeds: 2
profiles: {laptop: {set: {iterations: 30}}, full: {set: {iterations: 300}}}
"""
    file = sweep_file(tmp_path, text)
    known = known_folders(file)
    assert len(known) == 8
    for profile, overrides in (("laptop", ()), ("full", ()), ("full", ("optimizer.lr=1e-4",))):
        assert known_folders(file, load_sweep(file, profile, overrides)) == known


def test_figures_of_many_arms_show_some_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DPI", 30)
    sweep = make_sweep(intervals=tuple(range(1, 31)), seeds=3, iterations=24, reference=30)
    write_runs(sweep, tmp_path / "runs")
    analysis = analyse(sweep, collect(sweep, tmp_path / "runs"))
    drawn = drawing.drawn_arms(analysis)
    assert drawn == [*(f"interval={k}" for k in range(1, 24)), "interval=30"]
    assert len(findings.answer(analysis)) < 1500
    page = write_report(sweep, tmp_path / "runs", tmp_path / "out")
    # Seven captions, each beside its picture and in its place.
    assert page.read_text().count("Of 30 arms, 24 are drawn; the tables have all.") == 2 * 7
    table = (page.parent / "table.csv").read_text()
    assert len(table.splitlines()) == 31
