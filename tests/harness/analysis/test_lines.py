"""The lines of many runs: the same as Python's own parser reads, and each file parsed once."""

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.analysis import lines
from harness.analysis.lines import FOLDER
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


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were parsed, as folder/name."""
    found: list[str] = []
    original = lines._parse

    def parse(files: dict[str, Path], *rest: Any) -> Any:
        found.extend(f"{file.parent.name}/{file.name}" for file in files.values())
        return original(files, *rest)

    monkeypatch.setattr(lines, "_parse", parse)
    return found


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
    for name, frame in (("metrics", results.metrics), ("eval", results.evals)):
        plain = frame.assign(arm=frame["arm"].astype("str"))
        pd.testing.assert_frame_equal(plain, by_hand(sweep, runs, name), check_exact=True)


def test_the_tables_are_what_json_and_pandas_make_of_the_files(sweep: Sweep, runs: Path) -> None:
    with file_of(sweep, runs, 1).open("a") as stream:  # a key that others lack, an int among floats
        stream.write(json.dumps(NEEDED | {"loss": 1, "new": 0.1, "seconds_total": 1e-3}) + "\n")
    seal(file_of(sweep, runs, 1).parent)
    check(sweep, runs, collect(sweep, runs))
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
        assert len(results.evals) == 5 * 2
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


def test_a_file_is_parsed_again_only_when_it_has_changed(
    sweep: Sweep, runs: Path, parsed: list[str]
) -> None:
    collect(sweep, runs)
    assert len(parsed) == 2 * 6
    parsed.clear()
    check(sweep, runs, collect(sweep, runs))
    assert parsed == []
    file = file_of(sweep, runs, 3)
    file.write_text(file.read_text().replace("seconds_rollout", "seconds_Rollout"))
    seal(file.parent)
    check(sweep, runs, collect(sweep, runs))
    assert parsed == [f"{file.parent.name}/{file.name}"]


def test_a_run_that_finishes_later_costs_its_own_reading(
    sweep: Sweep, runs: Path, parsed: list[str]
) -> None:
    result = file_of(sweep, runs, 2, "result.json")
    content = result.read_bytes()
    result.unlink()
    assert len(collect(sweep, runs).metrics) == 5 * 12
    parsed.clear()
    result.write_bytes(content)
    check(sweep, runs, collect(sweep, runs))
    folder = result.parent.name
    assert sorted(parsed) == [f"{folder}/eval.jsonl", f"{folder}/metrics.jsonl"]


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "zeros"])
def test_a_damaged_copy_is_ignored_and_made_anew(
    sweep: Sweep, runs: Path, parsed: list[str], damage: str
) -> None:
    collect(sweep, runs)
    copies = list((runs / sweep.name / FOLDER).glob("*.arrow"))
    assert copies
    for copy in copies:
        content = copy.read_bytes()
        copy.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) // 2],
                "foreign": b"{}",
                "zeros": bytes(len(content)),
            }[damage]
        )
    parsed.clear()
    check(sweep, runs, collect(sweep, runs))
    assert len(parsed) == 2 * 6
    parsed.clear()
    check(sweep, runs, collect(sweep, runs))
    assert parsed == []


def test_without_a_place_for_copies_everything_is_read(
    sweep: Sweep, runs: Path, parsed: list[str]
) -> None:
    (runs / sweep.name / FOLDER).write_text("in the way")
    for _ in range(2):
        check(sweep, runs, collect(sweep, runs))
    assert len(parsed) == 2 * 2 * 6


def test_copies_of_another_profile_stay(sweep: Sweep, runs: Path, parsed: list[str]) -> None:
    other = make_sweep(intervals=(9, 15), seeds=3, iterations=13)
    write_runs(other, runs)
    collect(sweep, runs)
    collect(other, runs)
    parsed.clear()
    check(sweep, runs, collect(sweep, runs))
    check(other, runs, collect(other, runs))
    assert parsed == []


def test_many_small_copies_become_one(
    sweep: Sweep, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SMALL_PIECES", 2)
    results = [file_of(sweep, runs, index, "result.json") for index in range(6)]
    contents = [result.read_bytes() for result in results]
    for result in results:
        result.unlink()
    counts = []
    for result, content in zip(results, contents, strict=True):
        result.write_bytes(content)
        assert collect(sweep, runs).metrics["seed"].count() % 12 == 0
        counts.append(len(list((runs / sweep.name / FOLDER).glob("metrics-*.arrow"))))
    assert counts == [1, 2, 3, 1, 2, 3]
    check(sweep, runs, collect(sweep, runs))


def _collect_and_check(sweep: Sweep, runs: Path) -> None:
    check(sweep, runs, collect(sweep, runs))


def test_two_processes_at_once_read_the_same(sweep: Sweep, runs: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(_collect_and_check, [(sweep, runs)] * 6, chunksize=1)
    assert not list((runs / sweep.name / FOLDER).glob(".*"))
