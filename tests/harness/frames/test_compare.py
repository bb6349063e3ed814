"""Comparisons, against paired t intervals by scipy from the result files alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import harness
from harness.evidence.moderation import moderate
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError
from tests.harness.frames.studies import made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    place = tmp_path_factory.mktemp("compared")
    how: dict[str, Any] = {"seeds": 6, "reference": {"window.interval": 5}}
    effects = {"interval=3": 0.2, "interval=15": -0.2}
    return made(place, "tau", effects, grid={"window.interval": [3, 5, 9, 15]}, **how), place


@pytest.fixture
def study(place: tuple[Sweep, Path]) -> harness.Study:
    return harness.load(place[0].file, runs_dir=place[1] / "runs")


def after(place: tuple[Sweep, Path], arm: str, reward: str = "composition") -> NDArray[np.float64]:
    """A reward after training by seed, as the result files have it."""
    sweep, folder = place
    files = [
        folder / "runs" / "tau" / run.folder_name / "result.json"
        for run in sweep.runs
        if run.arm == arm
    ]
    return np.array([json.loads(file.read_text())["after"][reward] for file in files])


def test_the_default_is_the_files_measure_and_reference(
    study: harness.Study, place: tuple[Sweep, Path]
) -> None:
    found = study.compare()
    assert list(found.columns) == [
        *("arm", "window.interval", "reference", "pairs", "difference", "low", "high"),
        *("verdict", "reason", "level", "sd", "degrees_of_freedom"),
    ]
    others = ["interval=3", "interval=9", "interval=15"]
    assert list(found["arm"]) == others
    assert list(found["window.interval"]) == [3, 9, 15]
    differences = {arm: after(place, arm) - after(place, "interval=5") for arm in others}
    spreads = moderate({arm: list(values) for arm, values in differences.items()})
    for row in found.to_dict("records"):
        values, spread = differences[row["arm"]], spreads[row["arm"]]
        assert row["pairs"] == 6
        assert row["difference"] == pytest.approx(values.mean())
        assert row["level"] == pytest.approx(1 - 0.05 / 3)
        assert row["sd"] == spread.sd >= values.std(ddof=1) * (1 - 1e-12)
        low, high = stats.t.interval(
            row["level"], spread.degrees_of_freedom, values.mean(), spread.sd / np.sqrt(6)
        )
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert list(found["verdict"]) == ["better", "undecided", "worse"]


def test_two_arms_have_the_plain_paired_interval(
    study: harness.Study, place: tuple[Sweep, Path]
) -> None:
    part = study.where("window.interval <= 5")
    (row,) = part.compare("strict", "interval=3", level=0.9).to_dict("records")
    test = stats.ttest_rel(*(after(place, arm, "strict") for arm in ("interval=5", "interval=3")))
    low, high = test.confidence_interval(0.9)
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["level"] == 0.9


def test_a_margin_can_make_arms_equal(study: harness.Study) -> None:
    half = study.compare().set_index("arm").loc["interval=9", ["low", "high"]].abs().max()
    for factor, verdict in ((1.01, "equal"), (0.99, "undecided")):
        found = study.compare(margin=float(half * factor)).set_index("arm")
        assert found["verdict"]["interval=9"] == verdict


@pytest.mark.parametrize(
    "reference",
    [
        "interval=9",
        {"window.interval": 9},
        {"window": {"interval": 9, "size": 4}},
        {"window.interval": 9, "rewards.held_out": ["palette", "strict"]},
    ],
)
def test_ways_to_name_the_reference(study: harness.Study, reference: Any) -> None:
    found = study.compare(reference=reference)
    assert set(found["reference"]) == {"interval=9"}
    assert list(found["arm"]) == ["interval=3", "interval=5", "interval=15"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"measure": "compositon"}, "no reward compositon; did you mean composition?"),
        ({"reference": "interval=4"}, "no arm interval=4; did you mean interval="),
        ({"reference": {"window.interval": 4}}, "no arm has {'window.interval': 4}; the arms are"),
        ({"reference": {"window.size": 4}}, "4 arms have {'window.size': 4}; name one of them: i"),
        ({"reference": {"window.intervall": 4}}, "no setting window.intervall; did you mean windo"),
        ({"reference": 5}, "expected an arm's name or settings such as"),
        ({"reference": {}}, "expected an arm's name or settings such as"),
        ({"margin": 0}, "margin: expected a number above 0, not 0"),
        ({"margin": "20 %"}, "margin: expected a number above 0, not '20 %'"),
        ({"level": 1}, "level: expected a number between 0 and 1, not 1"),
        ({"level": float("nan")}, "level: expected a number between 0 and 1, not nan"),
    ],
)
def test_mistakes_are_one_line(study: harness.Study, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        study.compare(**arguments)
    assert said in str(error.value)


def test_one_arm_has_nothing_to_be_compared_with(study: harness.Study) -> None:
    with pytest.raises(ConfigError, match="interval=5 is the only arm; nothing to compare"):
        study.where("window.interval == 5").compare()


def test_arms_within_a_group_have_its_reference(tmp_path: Path) -> None:
    sweep = made(
        tmp_path,
        "groups",
        grid={"window.size": [2, 4], "window.interval": [3, 5]},
        reference={"window.interval": 5},
        within="window.size",
    )
    found = harness.load(sweep.file, runs_dir=tmp_path / "runs").compare()
    assert dict(zip(found["arm"], found["reference"], strict=True)) == {
        "size=2,interval=3": "size=2,interval=5",
        "size=4,interval=3": "size=4,interval=5",
    }
