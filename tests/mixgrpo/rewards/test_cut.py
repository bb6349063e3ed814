"""Prompts that a reward cuts are counted, and said whenever their number has doubled."""

import warnings

from mixgrpo.rewards.cut import Cut


def said(cut: Cut, *prompts: str) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        cut.add(prompts)
    return [str(warning.message) for warning in found]


def test_the_count_is_said_at_the_first_and_whenever_it_has_doubled() -> None:
    cut = Cut("reward hps", 77)
    assert said(cut) == []
    (first,) = said(cut, "a")
    assert first.startswith("reward hps: it reads the first 77 tokens of a prompt")
    assert "cut so far: 1, " in first
    assert "'a'" in first
    assert said(cut, "a", "a") == []  # a known one
    counts = [said(cut, f"prompt {i}") for i in range(2, 40)]
    assert [i for i, texts in enumerate(counts, 2) if texts] == [2, 4, 8, 16, 32]
    assert "cut so far: 32, " in counts[30][0]


def test_many_at_once_are_one_warning() -> None:
    cut = Cut("reward hps", 77)
    (text,) = said(cut, *(f"prompt {i}" for i in range(100)))
    assert "cut so far: 100, " in text
    assert said(cut, *(f"other {i}" for i in range(99))) == []
    assert len(said(cut, "and one more")) == 1
