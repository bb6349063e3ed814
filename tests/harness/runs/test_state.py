"""The run folder: states, reading what a kill left behind, collecting, atomic writes."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.results import collect
from harness.runs.state import look, sweep_folder, unlisted_runs
from harness.slurm.scheduler import JobState
from harness.study.spec import Run
from mixgrpo.errors import RunError
from mixgrpo.files import atomic, lease
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.runs.folder import OWNER
from tests.harness.lab import Lab
from tests.harness.synthetic import seal


@pytest.fixture
def run(lab: Lab) -> Run:
    return lab.sweep.runs[0]


@pytest.fixture
def folder(lab: Lab, run: Run) -> Path:
    place = sweep_folder(lab.sweep, lab.runs) / run.folder_name
    (place / "attempts").mkdir(parents=True)
    return place


def attempt(folder: Path, number: int, reason: str | None) -> None:
    ended = None if reason is None else 20.0
    record = {"number": number, "pid": 1, "started": 10.0, "ended": ended, "reason": reason}
    (folder / "attempts" / f"{number}.json").write_text(json.dumps(record))


NEEDED = {
    "window_start": 0,
    "window_size": 4,
    "evaluations_computed": 100,
    "backward_computed": 10,
    "nfe_rollout": 25.0,
    "nfe_train": 4.0,
    "seconds_total": 0.1,
}


def finish(folder: Path, iterations: int = 6, **more: Any) -> None:
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    metrics = [
        NEEDED | {"iteration": m, "reward_composition_mean": 0.5, "loss": float(m)}
        for m in range(iterations)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    evals = [
        {"iteration": m, "reward_composition_mean": mean, "seconds_total": 1.0}
        for m, mean in ((0, 0.5), (iterations, 0.6))
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    result = {
        "schema": 1,
        "hash": folder.name.rpartition("-")[2],
        "seed": int((re.findall(r"-seed(\d+)-", folder.name) or [0])[-1]),
        "iterations": iterations,
        "before": {"composition": 0.5},
        "after": {"composition": 0.6},
        "seconds_total": 0.6,
        "evaluations_computed": 600,
        "backward_computed": 60,
        "nfe_rollout": 25.0,
        "nfe_train": 4.0,
    }
    (folder / "result.json").write_text(json.dumps(result | more))
    seal(folder)


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        (["finished"], "lost"),  # and yet without a result
        (["exception"], "failed"),
        (["config"], "failed"),
        (["no-space"], "lost"),
        (["run-error"], "lost"),
        (["stopped"], "stopped"),
        ([None], "lost"),
        (["exception", "stopped"], "stopped"),
        (["something new"], "failed"),
    ],
)
def test_the_newest_attempt_decides(
    reasons: list[str | None], state: str, lab: Lab, run: Run, folder: Path
) -> None:
    for number, reason in enumerate(reasons, 1):
        attempt(folder, number, reason)
    found = look(lab.sweep, run, lab.runs)
    assert found.state == state
    assert found.reason == (reasons[-1] or "killed")


def test_attempt_ten_is_newer_than_attempt_nine(lab: Lab, run: Run, folder: Path) -> None:
    attempt(folder, 9, "stopped")
    attempt(folder, 10, "exception")
    assert look(lab.sweep, run, lab.runs).state == "failed"


def test_a_held_lock_means_running_and_a_result_means_finished(
    lab: Lab, run: Run, folder: Path
) -> None:
    assert look(lab.sweep, run, lab.runs).state == "waiting"
    attempt(folder, 1, None)
    held = lease.acquire(folder / OWNER)
    assert held is not None
    assert look(lab.sweep, run, lab.runs).state == "running"
    finish(folder)
    assert look(lab.sweep, run, lab.runs).state == "finished"
    held.release()
    assert look(lab.sweep, run, lab.runs).state == "finished"


def test_looking_writes_nothing(lab: Lab, run: Run) -> None:
    assert look(lab.sweep, run, lab.runs).state == "waiting"
    collect(lab.sweep, lab.runs)
    assert not lab.runs.exists()


def test_progress_comes_from_whole_lines(lab: Lab, run: Run, folder: Path) -> None:
    finish(folder)
    (folder / "result.json").unlink()
    attempt(folder, 1, None)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 6, "reward_compo')
    state = look(lab.sweep, run, lab.runs)
    assert (state.iteration, state.reward, state.score) == (6, 0.5, 0.6)
    assert state.seconds_per_iteration == 0.1


def test_a_line_cut_short_is_left_out_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_lines(file) == []
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(file) == [{"a": 1}, {"a": 2}]
    file.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: not valid JSON"):
        read_lines(file)


def test_collect_gives_frames_of_the_finished_runs(lab: Lab) -> None:
    sweep = lab.sweep
    place = sweep_folder(sweep, lab.runs)
    for run in sweep.runs[:3]:
        finish(place / run.folder_name)
    results = collect(sweep, lab.runs)
    assert list(results.runs["state"]) == ["finished"] * 3 + ["waiting"]
    first = results.runs.iloc[0]
    assert (first["arm"], first["seed"]) == ("interval=1", 0)
    assert (first["before_composition"], first["after_composition"]) == (0.5, 0.6)
    assert first["evaluations_computed"] == 600
    assert len(results.metrics) == 18
    assert {"arm", "seed", "iteration", "loss"} <= set(results.metrics.columns)
    assert len(results.evaluations) == 6


def test_collect_without_any_run_has_the_columns_that_others_group_by(lab: Lab) -> None:
    results = collect(lab.sweep, lab.runs)
    assert list(results.runs["state"]) == ["waiting"] * 4
    assert {"arm", "seed", "iteration"} <= set(results.metrics.columns)
    assert results.machines == []


def test_collect_is_quick_for_many_runs(lab: Lab) -> None:
    lab.write(lab.file.read_text().replace("seeds: 2", "seeds: 50"))
    sweep = lab.sweep
    for run in sweep.runs:
        finish(sweep_folder(sweep, lab.runs) / run.folder_name, iterations=300)
    begin = time.process_time()
    assert len(collect(sweep, lab.runs).metrics) == 100 * 300
    assert time.process_time() - begin < 5


def test_a_result_of_another_version_names_the_folder_and_the_fix(
    lab: Lab, run: Run, folder: Path
) -> None:
    finish(folder, schema=2)
    with pytest.raises(RunError, match=r"written by another version.*move the folder away"):
        look(lab.sweep, run, lab.runs)
    (folder / "result.json").write_text("[]")
    found = look(lab.sweep, run, lab.runs)
    assert (found.state, found.reason) == ("lost", "damaged")
    assert f"{folder}/result.json: Input should be an object; run the sweep" in str(found.damage)
    (folder / "result.json").unlink()


def test_strangers_are_run_folders_that_nobody_asks_for(lab: Lab, run: Run, folder: Path) -> None:
    place = folder.parent
    (place / "notes").mkdir()
    (place / "launcher.log").touch()
    (place / "old-seed0-00000000" / "attempts").mkdir(parents=True)
    assert unlisted_runs({run.folder_name}, place) == [place / "old-seed0-00000000"]
    assert unlisted_runs(set(), place / "nowhere") == []


def test_an_atomic_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    atomic.write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(file, {"a": float("nan")})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_an_attempt_after_a_submission_counts_more_than_slurms_word_on_it(
    lab: Lab, run: Run, folder: Path
) -> None:
    def seen(place: JobState) -> tuple[str, str | None]:
        found = look(lab.sweep, run, lab.runs, {run.folder_name: place})
        return found.state, found.reason

    attempt(folder, 1, "exception")
    record = folder / "attempts" / "1.json"
    own = {"job_id": "7_0", "started": 100.0, "executor": "slurm"}
    record.write_text(json.dumps(json.loads(record.read_text()) | own | {"reason": None}))
    timeout = JobState("7_0", "00001-a", "gone", "TIMEOUT", created=50.0)
    assert seen(timeout) == ("lost", "time-limit")
    # The same run again, in a process of this machine.
    attempt(folder, 2, "exception")
    record = folder / "attempts" / "2.json"
    local = {"job_id": "31", "started": 200.0, "executor": "local"}
    record.write_text(json.dumps(json.loads(record.read_text()) | local))
    assert seen(timeout) == ("failed", "exception")
    # And handed to Slurm once more, where it was cancelled before it began.
    cancelled = JobState("9_0", "00002-b", "gone", "CANCELLED", created=300.0)
    assert seen(cancelled) == ("stopped", "cancelled")


def test_a_run_that_stopped_while_the_rest_of_its_array_was_cancelled_says_so(
    lab: Lab, run: Run, folder: Path
) -> None:
    attempt(folder, 1, "stopped")
    record = folder / "attempts" / "1.json"
    own = {"job_id": "7_0", "started": 100.0, "executor": "slurm"}
    record.write_text(json.dumps(json.loads(record.read_text()) | own))
    cancelled = JobState("7_0", "00001-a", "gone", "CANCELLED", created=50.0)
    assert look(lab.sweep, run, lab.runs, {run.folder_name: cancelled}).reason == "stopped"
    timeout = JobState("7_0", "00001-a", "gone", "TIMEOUT", created=50.0)
    assert look(lab.sweep, run, lab.runs, {run.folder_name: timeout}).reason == "time-limit"


def test_the_result_of_another_run_is_damage(lab: Lab, run: Run, folder: Path) -> None:
    """As a copy of that run's folder has it."""
    finish(folder, hash="0123abcd")
    found = look(lab.sweep, run, lab.runs)
    assert found.state == "lost"
    assert found.damage is not None
    assert "result.json: is the result of another run (0123abcd); move this" in found.damage
