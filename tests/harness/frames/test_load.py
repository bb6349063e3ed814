"""The frames of a study, against its files read by json and pandas alone."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

import harness
from harness.runs.state import run_folder
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError, RunError
from tests.harness.frames.studies import claim, made, write_study
from tests.harness.launching.toys import launch, write_sweep
from tests.harness.synthetic import write_runs
from tests.mixgrpo.toy import ROOT


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> tuple[Sweep, Path]:
    """Two arms and seeds that really trained, and the folder they lie in."""
    place = tmp_path_factory.mktemp("toys")
    held_out = {"rewards.held_out": ["contrast", "constant"]}
    arms = {"b": {"optimizer.lr": 0.01}, "a": {"optimizer.lr": 0.02, **held_out}}
    sweep = write_sweep(place, arms, seeds=2)
    launch(sweep, place / "runs")
    return sweep, place


def folders(sweep: Sweep, place: Path) -> list[Path]:
    """Of all runs, arm by arm, then by seed."""
    return [
        place / "runs" / sweep.name / run.folder_name
        for arm in sweep.arms
        for run in sweep.runs
        if run.arm == arm.name
    ]


def test_a_row_a_run_with_typed_settings_and_results(toys: tuple[Sweep, Path]) -> None:
    sweep, place = toys
    runs = harness.load(sweep.file, runs_dir=place / "runs").runs
    assert list(runs["arm"]) == ["b", "b", "a", "a"]
    assert list(runs["arm"].cat.categories) == ["b", "a"]
    assert list(runs.columns[:7]) == [
        *("study", "arm", "rewards.held_out", "optimizer.lr", "seed", "hash", "state")
    ]
    assert set(runs["state"]) == {"finished"}
    assert set(runs["study"]) == {"toy"}
    assert runs["optimizer.lr"].dtype == "float64"
    for row, folder in zip(runs.to_dict("records"), folders(sweep, place), strict=True):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        result = json.loads((folder / "result.json").read_text())
        assert row["optimizer.lr"] == config["optimizer"]["lr"]
        assert row["rewards.held_out"] == " + ".join(config["rewards"]["held_out"])
        assert (row["hash"], row["seed"]) == (result["hash"], config["seed"])
        for key in ("seconds_total", "evaluations_computed", "nfe_rollout", "iterations"):
            assert row[key] == result[key]
        for moment in ("before", "after"):
            for name, value in result[moment].items():
                assert row[f"{moment}_{name}"] == value


@pytest.mark.parametrize("kind", ["metrics", "evaluations"])
def test_a_row_a_line_of_the_files(toys: tuple[Sweep, Path], kind: str) -> None:
    sweep, place = toys
    found = getattr(harness.load(sweep.file, runs_dir=place / "runs"), kind)
    name = {"metrics": "metrics.jsonl", "evaluations": "eval.jsonl"}[kind]
    parts = [pd.read_json(folder / name, lines=True) for folder in folders(sweep, place)]
    expected = pd.concat(parts, ignore_index=True).drop(columns="scores_sha256", errors="ignore")
    assert list(found.columns[:5]) == [
        *("arm", "rewards.held_out", "optimizer.lr", "seed", "iteration")
    ]
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)
    assert list(found["optimizer.lr"].unique()) == [0.01, 0.02]


def test_a_row_an_image(toys: tuple[Sweep, Path]) -> None:
    sweep, place = toys
    study = harness.load(sweep.file, runs_dir=place / "runs")
    parts = [
        pd.read_parquet(file).drop(columns="seed").assign(iteration=int(file.stem))
        for folder in folders(sweep, place)
        for file in sorted((folder / "scores").iterdir())
    ]
    expected = pd.concat(parts, ignore_index=True)
    found = study.scores
    assert len(found) == 4 * 5 * 4
    pd.testing.assert_frame_equal(
        found[expected.columns].astype({"prompt": "str"}),
        expected.astype({"prompt": "str"}),
        check_dtype=False,
    )
    assert study.scores is found
    part = study.where("seed == 1").scores
    assert len(part) == len(found) / 2
    assert set(part["seed"]) == {1}


def test_a_damaged_score_is_named(toys: tuple[Sweep, Path], tmp_path: Path) -> None:
    sweep, place = toys
    shutil.copytree(place / "runs", tmp_path / "runs", symlinks=True)
    study = harness.load(sweep.file, runs_dir=tmp_path / "runs")
    file = next((tmp_path / "runs" / "toy" / sweep.runs[0].folder_name / "scores").iterdir())
    file.write_bytes(b"")
    with pytest.warns(UserWarning, match=f"left out: {sweep.runs[0].name}: {re.escape(str(file))}"):
        assert len(study.scores) == 3 * 5 * 4


def test_without_the_sweep_file_it_is_the_same(toys: tuple[Sweep, Path]) -> None:
    sweep, place = toys
    of_file = harness.load(sweep.file, runs_dir=place / "runs").where("arm == 'a'")
    of_folder = harness.load_runs(place / "runs" / "toy")
    assert list(of_folder.runs["arm"].cat.categories) == ["a", "b"]
    for kind in ("runs", "metrics", "evaluations", "scores"):
        one, other = getattr(of_file, kind), getattr(of_folder.where("arm == 'a'"), kind)
        pd.testing.assert_frame_equal(one, other[one.columns], check_categorical=False)
    assert of_folder.measure == "brightness"
    with pytest.raises(ConfigError, match=r"no sweep file names one for a; say which.*: a, b"):
        of_folder.compare()
    assert list(of_folder.compare(reference={"optimizer.lr": 0.01})["arm"]) == ["a"]
    single = harness.load_runs(folders(sweep, place)[0])
    assert list(zip(single.runs["arm"], single.runs["seed"], strict=True)) == [("b", 0)]


def test_measurements_of_a_report_where_no_run_is(tmp_path: Path) -> None:
    file, reports = ROOT / "sweeps" / "tau.yaml", ROOT / "reports"
    study = harness.load(file, runs_dir=tmp_path, reports_dir=reports)
    assert len(study.finished) == len(pd.read_parquet(reports / "tau" / "runs.parquet"))
    evals = pd.read_parquet(reports / "tau" / "evals.parquet")
    last = evals[evals["iteration"] == 60]
    found = study.runs.set_index(["arm", "seed"])["after_composition"]
    of_last = last["arm"], last["seed"], last["reward_composition_mean"]
    for arm, seed, value in zip(*of_last, strict=True):
        assert found[arm, seed] == value
    with pytest.warns(UserWarning, match="tau: no scores of single images"):
        assert len(study.scores) == 0


def test_runs_that_have_not_finished_have_a_state(tmp_path: Path) -> None:
    sweep = write_study(tmp_path, "tau")
    write_runs(sweep, tmp_path / "runs", skip=frozenset({("interval=5", 1)}))
    study = harness.load(sweep.file, runs_dir=tmp_path / "runs")
    assert list(study.runs["state"]).count("waiting") == 1
    assert list(study.runs["window.interval"]) == [3] * 3 + [5] * 3 + [15] * 3
    assert (len(study.finished), len(study.evaluations)) == (8, 8 * 3)
    assert repr(study) == "<Study tau: 3 arms, 8 of 9 runs finished>"
    compared = study.compare(reference="interval=5")
    assert list(compared["pairs"]) == [2, 2]
    assert set(compared["reason"]) == {"too few pairs"}


def test_no_finished_run_is_said(tmp_path: Path) -> None:
    sweep = write_study(tmp_path, "tau")
    with pytest.warns(UserWarning, match=r"tau.yaml: no finished run in .* and no measurements in"):
        study = harness.load(sweep.file, runs_dir=tmp_path, reports_dir=tmp_path)
    assert set(study.runs["state"]) == {"waiting"}
    assert len(study.metrics) == len(study.scores) == 0
    assert "0 of 9 runs finished" in study._repr_html_()
    for use in (study.compare, study.plot.learning, study.plot.differences):
        with pytest.raises(RunError, match="tau: no finished run; "):
            use()


def test_a_damaged_run_is_named_and_left_out(tmp_path: Path) -> None:
    sweep = made(tmp_path, "tau")
    claim(tmp_path / "runs" / "tau")
    file = run_folder(tmp_path / "runs" / "tau", sweep.runs[0]) / "metrics.jsonl"
    file.write_text(file.read_text()[:-10])
    named = f"left out: interval=3-seed0: {re.escape(str(file))}"
    with pytest.warns(UserWarning, match=named):
        study = harness.load(sweep.file, runs_dir=tmp_path / "runs")
    assert list(study.runs["state"]).count("lost") == 1
    assert len(study.metrics) == 8 * 24
    with pytest.warns(UserWarning, match=named):
        found = harness.load_runs(tmp_path / "runs" / "tau")
    assert len(found.metrics) == 8 * 24
    for text in ("iterations: many\n", "[", "- 3\n", "# schema 0, run 1\niterations: 3\n"):
        (file.parent / "config.yaml").write_text(text)
        with pytest.warns(UserWarning, match="its configuration cannot be read") as said:
            found = harness.load_runs(tmp_path / "runs" / "tau")
        assert str(file.parent) in str(said[0].message)
        assert len(found.runs) == 8


def test_links_are_followed_and_what_stands_for_them(tmp_path: Path) -> None:
    sweep = made(tmp_path, "tau", grid={"window.interval": [3, 5]})
    place, store = tmp_path / "runs" / "tau", tmp_path / "runs" / ".store"
    claim(place)
    store.mkdir()
    for k, run in enumerate(sweep.runs):
        shutil.move(place / run.folder_name, store / f"{k:016x}")
        if k % 2:
            (place / run.folder_name).symlink_to(f"../.store/{k:016x}")
        else:
            (place / run.folder_name).write_text(json.dumps({"stored": f"../.store/{k:016x}"}))
    for study in (harness.load(sweep.file, runs_dir=tmp_path / "runs"), harness.load_runs(place)):
        assert (len(study.finished), len(study.metrics)) == (6, 6 * 24)


def test_mistakes_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="name a sweep file, such as"):
        harness.load()
    with pytest.raises(ConfigError, match=r"tau\.yaml: no such file"):
        harness.load("tau.yaml")
    with pytest.raises(ConfigError, match="name a folder of runs, such as"):
        harness.load_runs()
    with pytest.raises(ConfigError, match="load_runs: runs: no such folder"):
        harness.load_runs("runs")
    made(tmp_path, "tau")
    with pytest.raises(ConfigError, match=r"no runs there; name the folder of one sweep, such as "):
        harness.load_runs("runs")


def test_overrides_are_those_of_the_command(tmp_path: Path) -> None:
    file = write_study(tmp_path, "tau").file
    write_runs(load_sweep(file, overrides=["rollout.group_size=8"]), tmp_path / "runs")
    study = harness.load(file, overrides=["rollout.group_size=8"], runs_dir=tmp_path / "runs")
    assert len(study.finished) == len(study.where("rollout.group_size == 8").runs) == 9


def test_a_notebook_shows_the_arms(tmp_path: Path) -> None:
    sweep = made(tmp_path, "tau", question="Is τ < 5?")
    study = harness.load(sweep.file, runs_dir=tmp_path / "runs")
    html = study._repr_html_()
    assert "<b>tau</b> Is τ &lt; 5?" in html
    assert "<th>window.interval</th>" in html
    mean = study.runs[study.runs["arm"] == "interval=5"]["after_composition"].mean()
    assert f"<td>{mean:.4f}</td>" in html
