"""Folders of runs without a sweep file: their arms, by what the configurations say."""

import os
import shutil
from pathlib import Path

import pytest

import harness
from harness.study.load import load_sweep
from mixgrpo.files.atomic import write_json
from tests.harness.frames.studies import claim, made, write_study
from tests.harness.synthetic import write_runs


def test_runs_that_differ_in_their_seed_are_an_arm_and_numbers_are_sorted(tmp_path: Path) -> None:
    made(tmp_path, "tau", grid={"window.interval": [15, 5, 3]})
    claim(tmp_path / "runs" / "tau")
    study = harness.load_runs(tmp_path / "runs" / "tau")
    assert list(study.arms.settings) == ["interval=3", "interval=5", "interval=15"]
    assert list(study.runs["window.interval"]) == [3] * 3 + [5] * 3 + [15] * 3
    assert list(study.runs["seed"]) == [0, 1, 2] * 3


def test_an_arm_of_two_lengths_is_two(tmp_path: Path) -> None:
    file = write_study(tmp_path, "tau", grid={"window.interval": [3, 5]}).file
    for iterations in (12, 24):
        write_runs(load_sweep(file, overrides=[f"iterations={iterations}"]), tmp_path / "runs")
    claim(tmp_path / "runs" / "tau")
    study = harness.load_runs(tmp_path / "runs" / "tau")
    assert len(study.arms.settings) == 4
    assert {"interval=3", "interval=3 (2)"} < set(study.arms.settings)
    runs = study.runs.groupby(["window.interval", "iterations"]).size()
    assert dict(runs) == {(3, 12): 3, (3, 24): 3, (5, 12): 3, (5, 24): 3}
    assert set(study.where("iterations == 24").metrics["iteration"]) == set(range(24))


def test_other_code_makes_another_arm(tmp_path: Path) -> None:
    sweep = made(tmp_path, "tau", grid={"window.interval": [3, 5]})
    place = tmp_path / "runs" / "tau"
    claim(place)
    record = {"settings": "0" * 8, "code": {"reward mine": {"mine": "digest"}}}
    write_json(place / sweep.runs[0].folder_name / "code.json", record)
    study = harness.load_runs(place)
    assert sorted(study.arms.settings) == ["interval=3", "interval=3 (2)", "interval=5"]
    assert sorted(study.runs.groupby("arm", observed=False).size()) == [1, 2, 3]


@pytest.mark.parametrize("newer", [0, 1])
def test_of_two_runs_with_the_same_settings_the_newer_is_taken(tmp_path: Path, newer: int) -> None:
    sweep = made(tmp_path, "tau", grid={"window.interval": [3, 5]})
    place = tmp_path / "runs" / "tau"
    claim(place)
    both = [place / sweep.runs[0].folder_name, place / "copy"]
    shutil.copytree(*both)
    os.utime(both[newer] / "result.json", (2e9, 2e9))
    os.utime(both[1 - newer] / "result.json", (1e9, 1e9))
    with pytest.warns(UserWarning, match="has the settings and the seed of") as said:
        study = harness.load_runs(place)
    assert str(said[0].message).startswith(f"left out: {both[1 - newer]}: has")
    assert len(study.runs) == 6


def test_several_folders(tmp_path: Path) -> None:
    made(tmp_path, "one", grid={"window.interval": [3, 5]})
    made(tmp_path, "two", grid={"window.interval": [5, 9]})
    places = [tmp_path / "runs" / study for study in ("one", "two")]
    for place in places:
        claim(place)
    study = harness.load_runs(*places)
    assert len(study.runs) == 9
    assert set(study.where("window.interval == 5").runs["study"]) == {"one, two"}
