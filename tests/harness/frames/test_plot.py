"""Axes of a study's figures: what is drawn is what the frames say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import harness
from mixgrpo.errors import ConfigError
from tests.harness.frames.studies import made


@pytest.fixture
def study(tmp_path: Path) -> Iterator[harness.Study]:
    sweep = made(tmp_path, "tau", reference={"window.interval": 5})
    pyplot.switch_backend("agg")
    yield harness.load(sweep.file, runs_dir=tmp_path / "runs")
    pyplot.close("all")


def curves(axes: Axes) -> dict[str, tuple[Any, Any]]:
    return {
        str(line.get_label()): (np.array(line.get_xdata()), np.array(line.get_ydata()))
        for line in axes.get_lines()
    }


def test_learning_is_the_mean_over_seeds(study: harness.Study) -> None:
    axes = study.plot.learning()
    drawn = curves(axes)
    means = study.evaluations.groupby(["window.interval", "iteration"])["reward_composition_mean"]
    assert list(drawn) == ["τ = 3", "τ = 5", "τ = 15"]
    for interval in (3, 5, 15):
        x, y = drawn[f"τ = {interval}"]
        assert list(x) == [0, 12, 24]
        np.testing.assert_allclose(y, means.mean()[interval])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("iterations", "composition")


def test_learning_over_what_was_spent(study: harness.Study) -> None:
    spent = study.runs.groupby("window.interval")["evaluations_computed"].mean()
    for interval, total in spent.items():
        x, _ = curves(study.plot.learning("palette", x="evaluations"))[f"τ = {interval}"]
        assert x[0] == 0
        assert x[-1] == pytest.approx(total)
    assert curves(study.plot.learning(x="seconds"))["τ = 3"][0][-1] > 0


def test_differences_are_those_of_compare(study: harness.Study) -> None:
    _, given = pyplot.subplots()
    axes = study.plot.differences("strict", {"window.interval": 3}, margin=0.1, axes=given)
    assert axes is given
    compared = study.compare("strict", {"window.interval": 3}, margin=0.1)
    _, *lines = axes.get_lines()  # the first is at zero
    rows = compared.to_dict("records")
    for row, interval, mark in zip(rows, lines[::2], lines[1::2], strict=True):
        assert list(interval.get_xdata()) == [row["low"], row["high"]]
        assert list(mark.get_xdata()) == [row["difference"]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["τ = 5", "τ = 15"]
    assert axes.get_xlabel() == "difference in strict to τ = 3"


def test_mistakes_are_one_line_and_open_no_figure(study: harness.Study) -> None:
    with pytest.raises(ConfigError, match="no reward compositon; did you mean composition"):
        study.plot.learning("compositon")
    with pytest.raises(ConfigError, match="learning: x: no iteration; did you mean iterations"):
        study.plot.learning(x="iteration")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no arm interval=4"):
        study.plot.differences(reference="interval=4")
    assert pyplot.get_fignums() == []


def test_an_arm_has_one_colour_in_a_part_of_the_study(study: harness.Study) -> None:
    def colours(one: harness.Study) -> dict[str, Any]:
        return {str(line.get_label()): line.get_color() for line in one.plot.learning().get_lines()}

    whole, part = colours(study), colours(study.where("window.interval != 5"))
    assert part == {label: whole[label] for label in ("τ = 3", "τ = 15")}
