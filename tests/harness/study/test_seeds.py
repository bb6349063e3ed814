"""`seeds:` with looks: what it means, and what is said of mistakes."""

from pathlib import Path

import pytest

from harness.study.load import load_sweep
from harness.study.spec import Budget, Sweep
from mixgrpo.errors import ConfigError

USUAL = (5, 8, 12, 16, 24, 32)


def load(folder: Path, seeds: str, grid: str = "[15, 25]", until_decided: bool = False) -> Sweep:
    file = folder / "t.yaml"
    file.write_text(
        f"name: t\nquestion: q\ngrid: {{window.interval: {grid}}}\nseeds: {seeds}\n"
        "profiles:\n  laptop: {}\n  small: {seeds: 2}\n"
    )
    return load_sweep(file, until_decided=until_decided)


@pytest.mark.parametrize(
    ("seeds", "looks", "budget"),
    [
        ("{looks: [5, 8, 12], until: decided}", (5, 8, 12), None),
        ("{until: decided}", USUAL, None),
        ("{until: decided, budget: {core_hours: 2}}", USUAL, Budget(2.0, "core")),
        ("{looks: [3, 4], until: decided, budget: {gpu_hours: 0.5}}", (3, 4), Budget(0.5, "GPU")),
    ],
)
def test_looks(tmp_path: Path, seeds: str, looks: tuple[int, ...], budget: Budget | None) -> None:
    sweep = load(tmp_path, seeds)
    assert (sweep.looks, sweep.budget, sweep.seeds) == (looks, budget, tuple(range(looks[-1])))
    small = load_sweep(tmp_path / "t.yaml", "small")
    assert (small.looks, small.budget, small.seeds) == ((), None, (0, 1))
    # The runs are those of as many fixed seeds.
    assert load(tmp_path, str(looks[-1])).runs == sweep.runs


@pytest.mark.parametrize(
    ("seeds", "key", "words"),
    [
        ("{looks: [8, 5], until: decided}", "seeds.looks", "5 does not come after 8"),
        ("{looks: [5, 5], until: decided}", "seeds.looks", "5 does not come after 5"),
        ("{looks: [2, 5], until: decided}", "seeds.looks", "3 seeds or more, not 2"),
        ("{looks: [5], until: decided}", "seeds.looks", "or a fixed number, seeds: 5"),
        ("{looks: [], until: decided}", "seeds.looks", "give two looks or more"),
        ("{looks: 5, until: decided}", "seeds.looks", "whole numbers of seeds"),
        ("{looks: [5, 8.5], until: decided}", "seeds.looks.1", "whole numbers of seeds"),
        ("{looks: [5, 60000], until: decided}", "seeds.looks", "more than 50,000"),
        ("{looks: [5, 8]}", "seeds", "until: is missing; write until: decided"),
        ("{looks: [5, 8], until: never}", "seeds.until", "'never' is not known"),
        ("{lokks: [5, 8], until: decided}", "seeds.lokks", "did you mean looks?"),
        ("{until: decided, budget: 3}", "seeds.budget", "a number of hours above 0"),
        ("{until: decided, budget: {core_hours: }}", "seeds.budget", "with a number"),
        ("{until: decided, budget: {core_hours: a}}", "seeds.budget.core_hours", "not 'a'"),
        ("{until: decided, budget: {core_hours: 0}}", "seeds.budget.core_hours", "above 0"),
        ("{until: decided, budget: {hours: 1}}", "seeds.budget.hours", "did you mean"),
        (
            "{until: decided, budget: {core_hours: 1, gpu_hours: 1}}",
            "seeds.budget",
            "either core_hours or gpu_hours",
        ),
    ],
)
def test_mistakes(tmp_path: Path, seeds: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, seeds)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path / 't.yaml'}:4: {key}: ")
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(("seeds", "option"), [("{until: decided}", False), ("5", True)])
def test_a_sweep_of_one_arm_decides_nothing(tmp_path: Path, seeds: str, option: bool) -> None:
    with pytest.raises(ConfigError, match=r":4: seeds: no arm is compared with another"):
        load(tmp_path, seeds, "[15]", option)


def test_the_option_needs_seeds_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no seeds follow 2147483647"):
        load(tmp_path, "[2147483647]", until_decided=True)
    more = load(tmp_path, "40", until_decided=True)  # no seed of the file is dropped
    assert (more.seeds, more.looks[-2:]) == (tuple(range(40)), (32, 40))
