"""A search's figures and its table: what stands at a name is that name's."""

import random
from pathlib import Path

import pytest

from harness.searching.file import Search, load_search
from harness.searching.outcome import Outcome
from harness.searching.plots import front, history, importances, slices
from harness.searching.records import asked_of, rows_of, to_frame
from harness.searching.study import Trial

FILE = """\
name: toy
question: Does it work?
space:
  window.interval: {low: 1, high: 9, unless: {window.strategy: frozen}}
  window.strategy: [constant, frozen]
  sampler.eta: {low: 0.1, high: 1.0, log: true}
  health.drift: [true, false]
trials: 40
enqueue: [{window.interval: 5, window.strategy: constant, sampler.eta: 0.7, health.drift: true}]
"""


@pytest.fixture
def search(tmp_path: Path) -> Search:
    (tmp_path / "toy.yaml").write_text(FILE)
    return load_search(tmp_path / "toy.yaml")


@pytest.fixture
def trials(search: Search) -> list[Trial]:
    """The reward rises with eta alone, the evaluations with the interval alone."""
    draw, made = random.Random(0), [Trial(0, "complete", search.enqueue[0], enqueued=True)]
    for number in range(1, 40):
        asked = {"window.strategy": draw.choice(["constant", "frozen"])}
        if asked["window.strategy"] == "constant":
            asked = {"window.interval": draw.randint(1, 9), **asked}
        asked |= {"sampler.eta": round(draw.uniform(0.1, 1.0), 2), "health.drift": number % 2 == 0}
        made.append(Trial(number, "complete", asked))
    return [
        Trial(
            one.number,
            "pruned" if one.number == 3 else "complete",
            one.asked,
            enqueued=one.enqueued,
            rewards={0: one.asked["sampler.eta"]} if one.asked and one.number != 3 else {},
            evaluations=100.0 * (one.asked or {}).get("window.interval", 5),
            seconds=1.0,
        )
        for one in made
    ]


def test_the_table_keeps_the_settings_of_every_trial(search: Search, trials: list[Trial]) -> None:
    rows = rows_of(to_frame(search, trials))
    assert {n: asked_of(search, row) for n, row in rows.items()} == {
        trial.number: trial.asked for trial in trials
    }


def test_a_bar_of_importance_stands_at_its_settings_name(
    search: Search, trials: list[Trial]
) -> None:
    figure = importances(Outcome(search, to_frame(search, trials)))
    longest = []
    for axes in figure.axes:
        widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
        longest.append(search.space[widths.index(max(widths))].label)
    assert [axes.get_title() for axes in figure.axes] == ["for reward", "for evaluations"]
    assert longest == ["η", "τ"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [one.label for one in search.space]


def test_no_figure_depends_on_there_being_a_reference(search: Search, trials: list[Trial]) -> None:
    frame = to_frame(search, trials[1:])
    for draw in (front, history, slices):
        labels = [
            line.get_label() for axes in draw(Outcome(search, frame)).axes for line in axes.lines
        ]
        assert "the reference" not in labels
