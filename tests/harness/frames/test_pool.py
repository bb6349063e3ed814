"""Several studies in one: a run that two ask for is there once, one setting is one arm."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError
from tests.harness.frames.studies import SET, made, write_study


@pytest.fixture
def two(tmp_path: Path) -> tuple[Sweep, Sweep]:
    """A study of the interval and one of the size, which share the setting of 4 steps and 5."""
    return (
        made(tmp_path, "tau", reference={"window.interval": 5}),
        made(
            tmp_path,
            "size",
            grid={"window.size": [2, 4]},
            seeds=5,
            set={**SET, "window.interval": 5},
            reference={"window.size": 4},
        ),
    )


def test_a_run_of_two_studies_is_one_row(two: tuple[Sweep, Sweep], tmp_path: Path) -> None:
    one, other = two
    study = harness.load(one.file, other.file, runs_dir=tmp_path / "runs")
    hashes = {run.hash for run in (*one.runs, *other.runs)}
    assert len(hashes) == 9 + 10 - 3
    assert sorted(study.runs["hash"]) == sorted(hashes)
    assert list(study.runs["arm"].cat.categories) == [
        *("interval=3", "interval=5", "interval=15", "size=2")
    ]
    shared = study.runs[study.runs["arm"] == "interval=5"]
    assert list(shared["seed"]) == [0, 1, 2, 3, 4]
    assert list(shared["study"]) == ["tau, size"] * 3 + ["size"] * 2
    assert list(study.runs.groupby("arm", observed=True)["window.size"].first()) == [4, 4, 4, 2]
    assert len(study.evaluations) == 16 * 3
    assert not study.evaluations.duplicated(["arm", "seed", "iteration"]).any()
    # Both files name the same setting as their reference, so that it is the study's.
    compared = study.compare().set_index("arm")
    assert set(compared["reference"]) == {"interval=5"}
    assert dict(compared["pairs"]) == {"interval=3": 3, "interval=15": 3, "size=2": 5}
    assert (study.name, study.question) == ("tau, size", "What of tau? What of size?")


def test_the_finished_one_of_two_copies_is_taken(two: tuple[Sweep, Sweep], tmp_path: Path) -> None:
    one, other = two
    gone = next(run for run in one.runs if run.arm == "interval=5" and run.seed == 1)
    shutil.rmtree(tmp_path / "runs" / "tau" / gone.folder_name)
    study = harness.load(one.file, other.file, runs_dir=tmp_path / "runs")
    assert set(study.runs["state"]) == {"finished"}
    assert len(study.metrics) == 16 * 24
    (row,) = study.runs[study.runs["hash"] == gone.hash].to_dict("records")
    assert row["study"] == "tau, size"


def test_one_name_for_two_settings_is_told_apart(tmp_path: Path) -> None:
    files = [
        made(
            tmp_path, study, arms={"default": {"window.size": size}, "other": {"window.size": 3}}
        ).file
        for study, size in (("first", 2), ("second", 4))
    ]
    study = harness.load(*files, runs_dir=tmp_path / "runs")
    assert list(study.arms.settings) == ["first/default", "other", "second/default"]
    frames = [harness.load(file, runs_dir=tmp_path / "runs").metrics for file in files]
    for arm, frame in zip(("first/default", "second/default"), frames, strict=True):
        pd.testing.assert_series_equal(
            study.metrics[study.metrics["arm"] == arm]["reward_composition_mean"],
            frame[frame["arm"] == "default"]["reward_composition_mean"],
            check_index=False,
        )


def test_references_and_measures_that_differ_must_be_said(tmp_path: Path) -> None:
    arms = {"a": {"window.size": 2}, "b": {"window.size": 3}}
    one = made(tmp_path, "one", arms=arms, reference="a")
    other = made(tmp_path, "other", arms=arms, reference="b", measure="palette")
    study = harness.load(one.file, other.file, runs_dir=tmp_path / "runs")
    with pytest.raises(ConfigError, match="has several, composition, palette; say which: compos"):
        study.compare()
    with pytest.raises(ConfigError, match=r"a has another one in each study, a, b; say which"):
        study.compare("palette")
    assert list(study.compare("palette", "b")["arm"]) == ["a"]


def test_the_order_of_held_out_rewards_makes_no_other_arm(tmp_path: Path) -> None:
    files = [
        write_study(
            tmp_path, study, arms={"a": {"rewards.held_out": held}, "b": {"window.size": 2}}
        ).file
        for study, held in (("one", ["strict", "clarity"]), ("two", ["clarity", "strict"]))
    ]
    with pytest.warns(UserWarning, match="no finished run"):
        study = harness.load(*files, runs_dir=tmp_path, reports_dir=tmp_path)
    assert len(study.runs) == 6
