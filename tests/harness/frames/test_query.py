"""Conditions on runs, against the same ones by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.frames.query import fulfilled
from mixgrpo.errors import ConfigError
from tests.harness.frames.studies import made

SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"window.size": 1, "model.guidance": None, "sampler.sde": "all", "health.drift": True},
    "b": {"window.size": 4, "model.guidance": 3.5, "sampler.sde": "window", "health.drift": False},
    "c": {"window.size": 6, "model.guidance": 1.0, "sampler.sde": "window", "health.drift": True},
}
RUNS = pd.DataFrame(
    [{"arm": arm, "seed": seed, "state": "finished"} for arm in SETTINGS for seed in range(3)]
).astype({"arm": pd.CategoricalDtype([*SETTINGS])})


@pytest.mark.parametrize(
    ("condition", "arms"),
    [
        ("window.size >= 4", "bc"),
        ("4 <= window.size < 6", "b"),
        ("`window.size` == 1", "a"),
        ("window.size in [1, 6] and not health.drift == False", "ac"),
        ("model.guidance > 0.5", "bc"),
        ("sampler.sde == 'window' or arm == 'a'", "abc"),
        ("sampler.sde == 'window.size'", ""),
        ("arm != 'a'", "bc"),
        ("sampler.sde.str.startswith('win')", "bc"),
        ("health.drift", "ac"),
        ('window.size + 1 > 1e0 + 3 and state == "finished"', "bc"),
    ],
)
def test_the_runs_that_fulfil_a_condition(condition: str, arms: str) -> None:
    found = RUNS[fulfilled(RUNS, SETTINGS, condition)]
    assert [f"{arm}{seed}" for arm, seed in zip(found["arm"], found["seed"], strict=True)] == [
        f"{arm}{seed}" for arm in arms for seed in range(3)
    ]


@given(st.integers(-1, 8), st.integers(0, 3), st.sampled_from(["and", "or"]))
def test_two_columns(size: int, seed: int, word: str) -> None:
    found = fulfilled(RUNS, SETTINGS, f"window.size > {size} {word} seed == {seed}")
    join = all if word == "and" else any
    assert list(found) == [
        join((SETTINGS[arm]["window.size"] > size, of == seed))
        for arm, of in zip(RUNS["arm"], RUNS["seed"], strict=True)
    ]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("window.siz >= 4", "no column window.siz; did you mean window.size?"),
        ("tau >= 4", "no column tau; `runs` has the columns"),
        ("sede == 1", "no column sede; did you mean seed?"),
        ("wholly.unknown == 1", "no column wholly.unknown; "),
        ("window.size >=", "is no condition on runs: "),
        ("window.size", "is no condition on runs; compare a column with a value"),
        ("1 == 1", "is no condition on runs; compare a column with a value"),
        ("", "is no condition on runs: "),
        ("sampler.sde > 3", "is no condition on runs: "),
        ("seed = 3", "is no condition on runs"),
        ("@seed == 3", "is no condition on runs: "),
        ("seed.nonsense() == 3", "is no condition on runs: "),
        ("seed == 'unfinished", "no column unfinished"),
    ],
)
def test_what_is_no_condition_is_one_line(condition: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        fulfilled(RUNS, SETTINGS, condition)
    assert said in str(error.value)
    assert str(error.value).startswith(f"where: {condition}: ")
    assert "\n" not in str(error.value)


def test_a_condition_is_a_text() -> None:
    with pytest.raises(ConfigError, match="expected a text such as"):
        fulfilled(RUNS, SETTINGS, 3)  # type: ignore[arg-type]


def test_all_frames_of_a_study_are_filtered(tmp_path: Path) -> None:
    sweep = made(tmp_path, "tau", reference={"window.interval": 5})
    study = harness.load(sweep.file, runs_dir=tmp_path / "runs")
    part = study.where("window.interval <= 5 and seed != 1")
    for kind in ("runs", "metrics", "evaluations"):
        whole, found = getattr(study, kind), getattr(part, kind)
        mine = whole["window.interval"].isin([3, 5]) & whole["seed"].isin([0, 2])
        pd.testing.assert_frame_equal(
            found, whole[mine].reset_index(drop=True), check_categorical=False
        )
        assert list(found["arm"].cat.categories) == ["interval=3", "interval=5"]
    assert list(part.compare()["pairs"]) == [2]
    assert len(study.where("window.size == 4").runs) == 9  # a setting that does not vary
    assert len(study.where("window.size == 5").runs) == 0
    with pytest.raises(ConfigError, match="interval=5 is not among these runs; say which"):
        study.where("arm != 'interval=5'").compare()
