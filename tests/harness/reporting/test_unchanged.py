"""A report of which nothing has changed is left alone; one of which anything has is made again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.reporting import figures, unchanged
from harness.reporting.unchanged import FOLDER
from harness.reporting.write import write_report
from harness.study.spec import Sweep
from tests.harness.synthetic import make_sweep, seal, write_runs


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 30)


@pytest.fixture
def sweep() -> Sweep:
    return make_sweep(intervals=(9, 15), seeds=3, iterations=24)


@pytest.fixture
def runs(sweep: Sweep, tmp_path: Path) -> Path:
    write_runs(sweep, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that figures are drawn."""
    found: list[int] = []
    original = figures.draw

    def draw(*arguments: object) -> object:
        found.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "draw", draw)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def folder_of(sweep: Sweep, runs: Path, index: int) -> Path:
    return runs / sweep.name / sweep.runs[index].folder_name


def another_score(sweep: Sweep, runs: Path) -> None:
    file = folder_of(sweep, runs, 1) / "result.json"
    result = json.loads(file.read_text())
    before, result["after"]["composition"] = result["after"]["composition"], 0.9
    file.write_text(json.dumps(result))
    evals = file.with_name("eval.jsonl")
    evals.write_text(evals.read_text().replace(str(before), "0.9"))
    seal(file.parent)


def another_line(sweep: Sweep, runs: Path) -> None:
    file = folder_of(sweep, runs, 1) / "metrics.jsonl"
    file.write_text(file.read_text().replace('"window_start": 0', '"window_start": 1', 1))
    seal(file.parent)


def another_picture(sweep: Sweep, runs: Path) -> None:
    for run in sweep.runs:
        pictures = runs / sweep.name / run.folder_name / "samples" / "000000"
        (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())


def another_machine(sweep: Sweep, runs: Path) -> None:
    file = folder_of(sweep, runs, 1) / "env.json"
    file.write_text(file.read_text().replace("a processor", "another processor"))


def a_run_less(sweep: Sweep, runs: Path) -> None:
    (folder_of(sweep, runs, 1) / "result.json").unlink()


def test_the_same_report_is_not_made_twice(
    sweep: Sweep, runs: Path, tmp_path: Path, drawings: list[int]
) -> None:
    page = write_report(sweep, runs, tmp_path / "out")
    before = contents(page.parent)
    assert write_report(sweep, runs, tmp_path / "out") == page
    assert contents(page.parent) == before
    assert len(drawings) == 1


@pytest.mark.parametrize(
    "change", [another_score, another_line, another_picture, another_machine, a_run_less]
)
def test_whatever_changes_in_the_runs_is_in_the_next_report(
    sweep: Sweep,
    runs: Path,
    tmp_path: Path,
    drawings: list[int],
    change: Callable[[Sweep, Path], None],
) -> None:
    before = contents(write_report(sweep, runs, tmp_path / "out").parent)
    change(sweep, runs)
    if change is a_run_less:  # else the fuller report is kept
        (tmp_path / "out" / "tau" / "runs.parquet").unlink()
    after = contents(write_report(sweep, runs, tmp_path / "out").parent)
    fresh = contents(write_report(sweep, runs, tmp_path / "fresh").parent)
    assert after == fresh != before
    assert len(drawings) == 3


def test_another_state_question_or_code_is_another_report(
    sweep: Sweep, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run_less(sweep, runs)
    found = {unchanged.digest(sweep, runs, "tau.yaml")}
    found.add(unchanged.digest(sweep, runs, "other.yaml"))
    found.add(unchanged.digest(replace(sweep, question="Why?"), runs, "tau.yaml"))
    attempts = folder_of(sweep, runs, 1) / "attempts"
    attempts.mkdir()
    attempt = {"number": 1, "pid": 1, "started": 1.0, "ended": 2.0, "reason": "exception"}
    (attempts / "1.json").write_text(json.dumps(attempt))
    found.add(unchanged.digest(sweep, runs, "tau.yaml"))
    monkeypatch.setattr(unchanged, "LIBRARIES", ("numpy",))
    found.add(unchanged.digest(sweep, runs, "tau.yaml"))
    assert len(found) == 5


@pytest.mark.parametrize("name", ["table.md", "index.html", "figures/final.png"])
def test_a_file_of_the_report_that_was_changed_is_written_again(
    sweep: Sweep, runs: Path, tmp_path: Path, name: str
) -> None:
    folder = write_report(sweep, runs, tmp_path / "out").parent
    before = contents(folder)
    (folder / name).write_text("changed by hand")
    write_report(sweep, runs, tmp_path / "out")
    assert contents(folder) == before
    (folder / name).unlink()
    write_report(sweep, runs, tmp_path / "out")
    assert contents(folder) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_of": 1, "files": {"a": 1}}'])
def test_a_record_that_says_nothing_is_no_record(
    sweep: Sweep, runs: Path, tmp_path: Path, drawings: list[int], content: str
) -> None:
    folder = write_report(sweep, runs, tmp_path / "out").parent
    before = contents(folder)
    (record,) = (runs / sweep.name / FOLDER).glob("report-*.json")
    record.write_text(content)
    write_report(sweep, runs, tmp_path / "out")
    assert contents(folder) == before
    assert len(drawings) == 2


def test_a_report_is_made_where_nothing_can_be_kept(
    sweep: Sweep, runs: Path, tmp_path: Path, drawings: list[int]
) -> None:
    (runs / sweep.name / FOLDER).write_text("in the way")
    for _ in range(2):
        assert write_report(sweep, runs, tmp_path / "out").exists()
    assert len(drawings) == 2
