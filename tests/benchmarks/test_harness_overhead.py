"""The benchmark of the harness, at its smallest size, and what its tables say."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import harness_overhead
from benchmarks.harness_overhead import (
    AGAIN,
    FIRST,
    PLAN,
    STATUS,
    Dispatch,
    Timing,
    dispatch,
    measure,
    seconds_table,
    targets_table,
    timed,
)
from benchmarks.run_folders import all_states, write_finished, write_sweep_file
from harness.analysis.results import collect
from harness.runs.state import look_at_all
from harness.study.load import load_sweep
from mixgrpo.errors import RunError


def test_the_folders_hold_what_real_runs_leave(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep_file(tmp_path, 2, 25))
    write_finished(sweep, tmp_path)
    with all_states(sweep, tmp_path, harness_overhead.hold):
        states = [state.state for state in look_at_all(sweep, tmp_path)]
        assert states.count("finished") == 45
        assert states[::10] == ["failed", "lost", "stopped", "waiting", "running"]
    results = collect(sweep, tmp_path)
    assert len(results.metrics) == 50 * 300
    assert len(results.evaluations) == 50 * 21
    assert results.metrics["seconds_total"].nunique() > 0.9 * len(results.metrics)
    assert results.runs["after_composition"].nunique() == 50


def test_every_command_is_timed_on_the_smallest_size() -> None:
    timings = measure("few arms", 2, 5)
    assert {t.runs for t in timings} == {10}
    assert {PLAN, STATUS, FIRST, AGAIN} < {t.what for t in timings}
    assert all(t.seconds > 0.01 and t.memory_bytes > 10e6 for t in timings)
    table = seconds_table(timings)
    assert all(f"| few arms | {t.what} |" in table for t in timings)
    first, again = (min(t.seconds for t in timings if t.what == what) for what in (FIRST, AGAIN))
    assert again < first / 2


def test_what_starting_a_run_takes_is_measured() -> None:
    found = dispatch("local", 2)
    assert found.runs == 2
    assert found.overhead_s is not None
    assert 0 < found.overhead_s <= 2 * found.seconds


def test_a_command_that_fails_stops_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"harness\.sweep .*ended with 2: error: .*no such file"):
        timed("harness.sweep", str(tmp_path / "none.yaml"))


def test_growth_is_the_cost_of_a_run_relative_to_that_at_100() -> None:
    timings = [Timing("few arms", n, PLAN, s, 10**6) for n, s in ((100, 1.0), (10_000, 250.0))]
    assert seconds_table(timings).splitlines()[-1] == (
        "| few arms | plan | 1.00 s, 1 MB | 250.00 s, 1 MB | 2.50 |"
    )


def test_a_target_is_met_or_not() -> None:
    timings = [
        Timing("few arms", 10_000, what, seconds, 10**6)
        for what, seconds in ((PLAN, 2.1), (STATUS, 2.0), (FIRST, 50.0), (AGAIN, 1.0))
    ]
    lines = targets_table(timings, {"sweep": 0.2}, [Dispatch("local", 10, 9.0, 6.5)]).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == [
        f"{word} |" for word in ("no", "yes", "yes", "yes", "yes", "no")
    ]


def test_the_timings_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(shape: str, arms: int, seeds: int) -> list[Timing]:
        return [
            Timing(shape, arms * seeds, what, 1.0, 10**6) for what in (PLAN, STATUS, FIRST, AGAIN)
        ]

    monkeypatch.setattr(harness_overhead, "measure", quick)
    monkeypatch.setattr(harness_overhead, "help_seconds", lambda: {"sweep": 0.2})
    harness_overhead.main(tmp_path, [10, 100], dispatched=0)
    data = json.loads((tmp_path / "harness_overhead.json").read_text())
    assert {t["runs"] for t in data["timings"]} == {10, 100}
    assert (
        "| plan, 100 runs | 1.00 s | 2 s | yes |" in (tmp_path / "harness_overhead.md").read_text()
    )


def test_the_readme_says_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    page = (root / "benchmarks" / "results" / "harness_overhead.md").read_text()
    readme = " ".join((root / "README.md").read_text().split())
    rows = dict(re.findall(r"^\| (.*?), 10,000 runs \| (.*?) s \|", page, re.MULTILINE))
    assert (
        f"a plan takes {rows['plan']} s, a status {rows['status']} s, a first report "
        f"{rows['first report']} s and the same report again {rows['same report']} s."
    ) in readme
    assert all(row.endswith("| yes |") for row in page.splitlines() if ", 10,000 runs |" in row)
