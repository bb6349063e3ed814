"""The lines of many runs: the same as Python's own parser reads."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from harness.analysis import lines
from harness.analysis.results import Results, collect
from harness.study.spec import Sweep
from tests.harness.synthetic import make_sweep, seal, write_runs

NEEDED = {
    "iteration": 12,
    "window_start": 0,
    "window_size": 4,
    "evaluations_computed": 100,
    "backward_computed": 10,
    "nfe_rollout": 25.0,
    "nfe_train": 4.0,
    "seconds_total": 0.5,
}


@pytest.fixture
def sweep() -> Sweep:
    return make_sweep(intervals=(9, 15), seeds=3, iterations=12)


@pytest.fixture
def runs(sweep: Sweep, tmp_path: Path) -> Path:
    write_runs(sweep, tmp_path)
    return tmp_path


def file_of(sweep: Sweep, runs: Path, index: int, name: str = "metrics.jsonl") -> Path:
    return runs / sweep.name / sweep.runs[index].folder_name / name


def by_hand(sweep: Sweep, runs: Path, name: str) -> pd.DataFrame:
    """What pandas and json make of the same files, arm by arm."""
    order = [arm.name for arm in sweep.arms]
    found = []
    for run in sorted(sweep.runs, key=lambda run: (order.index(run.arm), run.seed)):
        file = runs / sweep.name / run.folder_name / f"{name}.jsonl"
        for text in file.read_text().splitlines():
            found.append({"arm": run.arm, "seed": run.seed, **json.loads(text)})
    return pd.DataFrame(found)


def check(sweep: Sweep, runs: Path, results: Results) -> None:
    for name, frame in (("metrics", results.metrics), ("eval", results.evaluations)):
        plain = frame.assign(arm=frame["arm"].astype("str"))
        pd.testing.assert_frame_equal(plain, by_hand(sweep, runs, name), check_exact=True)


def test_the_tables_are_what_json_and_pandas_make_of_the_files(sweep: Sweep, runs: Path) -> None:
    with file_of(sweep, runs, 1).open("a") as stream:  # a key that others lack, an int among floats
        stream.write(json.dumps(NEEDED | {"loss": 1, "new": 0.1, "seconds_total": 1e-3}) + "\n")
    seal(file_of(sweep, runs, 1).parent)
    check(sweep, runs, collect(sweep, runs))


def test_what_is_no_json_to_others_is_read_as_python_wrote_it(sweep: Sweep, runs: Path) -> None:
    with file_of(sweep, runs, 1).open("a") as stream:
        stream.write(json.dumps(NEEDED | {"loss": math.nan, "kl": math.inf, "new": 0.1}) + "\n")
    seal(file_of(sweep, runs, 1).parent)
    check(sweep, runs, collect(sweep, runs))


def test_a_run_with_a_broken_line_is_named_and_left_out(sweep: Sweep, runs: Path) -> None:
    file = file_of(sweep, runs, 2)
    whole = file.read_text()
    for text, why in (
        (whole + '{"iteration": 12, "lo', "was changed after the run finished"),
        (whole[:-300], "lost 300 of its"),
        ("", "lost "),
    ):
        file.write_text(text)
        results = collect(sweep, runs)
        assert len(results.metrics) == 5 * 12
        assert len(results.evaluations) == 5 * 2
        (said,) = results.left_out
        assert said.startswith(f"{sweep.runs[2].name}: {file}: {why}")
        assert "run the sweep again" in said
        assert list(results.runs["state"]).count("lost") == 1
    # By earlier versions, whose results have no digests.
    for text in (
        '{"iteration"\n' + whole,
        whole.replace('"seconds_total": ', '"seconds_total": "x", "y": '),
    ):
        file.write_text(text)
        seal(file.parent)
        results = collect(sweep, runs)
        assert len(results.metrics) == 5 * 12
        assert str(file) in results.left_out[0]


def test_the_order_of_runs_and_groups_of_files_do_not_matter(
    sweep: Sweep, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "RUNS_AT_ONCE", 4)
    check(sweep, runs, collect(sweep, runs))
    found = collect(sweep, runs).runs
    assert list(zip(found["arm"], found["seed"], strict=True)) == [
        (arm.name, seed) for arm in sweep.arms for seed in sweep.seeds
    ]
