"""The search file: what it says, and errors that name line, key and fix."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.searching.file import load_search
from harness.searching.space import arm_name, read
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError

SEARCHES = Path(__file__).parents[3] / "sweeps" / "search"

FILE = """\
name: toy
question: Does it work?
set: {iterations: 6}
space:
  window.interval: {low: 1, high: 9}
  window.strategy: [constant, frozen]
  window.stride: {low: 1, high: 3, unless: {window.strategy: frozen}}
  sampler.eta: {low: 0.1, high: 1.0, log: true}
  sampler.tail_ratio: {low: 0.2, high: 1.0, step: 0.2}
trials: 4
"""
OWN = (
    "enqueue: [{window.interval: 5, window.strategy: constant, window.stride: 1, "
    "sampler.eta: 0.7, sampler.tail_ratio: 1.0}]\n"
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("trials: 4", "trails: 4", 10, r"trails: unknown key; did you mean trials\?"),
        ("high: 9}", "hihg: 9}", 5, r"hihg: unknown key; did you mean high\?"),
        ("window.interval:", "window.intervall:", 5, r"did you mean window.interval\?"),
        ("high: 9}", "high: 1}", 5, "low and high are both 1, so there is nothing to search"),
        ("step: 0.2", "step: 0.3", 9, "do not reach high 1.0"),
        ("step: 0.2", "step: 1.0e-320", 9, "too small for the range"),
        ("low: 0.1", "low: 0.0", 8, "log needs a low above 0"),
        ("{window.strategy: frozen}", "{window.size: 1}", 7, "no other setting of the space"),
        ("iterations: 6", "iterations: 6, window.intervall: 2", 3, "did you mean window.interval"),
        ("trials: 4", "trials: 4\nconfirm: {first_seed: 1}", 11, "seed 1 is one of the search's"),
        ("trials: 4", "trials: 4\nmeasure: compositon", 11, r"did you mean composition\?"),
        ("trials: 4", "trials: 4\nobjectives: [seconds]", 11, "reward and one cost"),
        ("trials: 4", "trials: 4\nobjectives: [cost]", 11, "'cost' is none of 'reward', 'seconds'"),
        ("[constant, frozen]", "{choices: []}", 6, "is empty; give at least one value"),
        ("trials: 4", "trials: 4\nbudget: {seconds: 3.0}", 11, "take objectives: .reward."),
        (OWN, OWN.replace("interval: 5", "interval: 50"), 11, "50 is not in its range, 1 to 9"),
        (OWN, OWN.replace("0.7, sampler.tail_ratio: 1.0", "0.7"), 11, "tail_ratio is missing"),
        (OWN, OWN.replace("constant", "frozen"), 11, "stride is not asked for"),
    ],
)
def test_a_mistake_is_named_with_line_key_and_fix(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in FILE + OWN
    with pytest.raises(ConfigError) as raised:
        load_search(write(tmp_path, (FILE + OWN).replace(old, new)))
    assert f"toy.yaml:{line}: " in str(raised.value)
    assert re.search(words, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_best_trial_and_no_reference_confirm_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, FILE.replace("trials: 4", "trials: 4\nconfirm: {best: 1}"))
    with pytest.raises(ConfigError, match="nothing to be compared with; raise best, or enqueue"):
        load_search(file)


def test_without_trials_or_space_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trials: this key is missing"):
        load_search(write(tmp_path, FILE.replace("trials: 4\n", "")))
    with pytest.raises(ConfigError, match="is a sweep file"):
        load_search(SEARCHES.parent / "tau.yaml")
    with pytest.raises(ConfigError, match="is a search file; run it with"):
        load_sweep(SEARCHES / "window.yaml")


def test_more_settings_to_try_first_than_trials_are_refused(tmp_path: Path) -> None:
    own = OWN.partition("[")[2].rpartition("]")[0]
    both = f"enqueue: [{own}, {own.replace('interval: 5', 'interval: 6')}]\n"
    with pytest.raises(ConfigError) as raised:
        load_search(write(tmp_path, FILE.replace("trials: 4", "trials: 1") + both))
    assert str(raised.value).endswith(
        "toy.yaml:10: trials: enqueue has 2 settings, trials is 1; raise trials"
    )
    assert load_search(write(tmp_path, FILE.replace("trials: 4", "trials: 2") + both)).trials == 2


def test_a_setting_that_would_do_nothing_is_not_asked_for(tmp_path: Path) -> None:
    search = load_search(write(tmp_path, FILE))
    params = {"window.interval": 2, "window.strategy": "frozen", "sampler.eta": 0.123456}
    params["sampler.tail_ratio"] = 0.6000000000000001
    asked = read(search.space, params)
    assert asked == {
        "window.interval": 2,
        "window.strategy": "frozen",
        "sampler.eta": 0.123,
        "sampler.tail_ratio": 0.6,
    }
    assert arm_name(asked) == "interval=2,strategy=frozen,eta=0.123,tail_ratio=0.6"
    assert search.config(asked).window.stride == 1
    assert read(search.space, params | {"window.strategy": "constant"}) is None


def test_the_identity_changes_with_what_makes_trials_incomparable_alone(tmp_path: Path) -> None:
    def identity(text: str) -> str:
        return load_search(write(tmp_path, text)).identity

    first = identity(FILE)
    assert identity(FILE.replace("trials: 4", "trials: 9") + "parallel: 3\n") == first
    for old, new in (("high: 9", "high: 8"), ("iterations: 6", "iterations: 7")):
        assert identity(FILE.replace(old, new)) != first
    assert identity(FILE + "seeds: 5\n") != first


def test_what_a_choice_of_the_space_names_is_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code or prompts under the same name make other trials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    prompts, code = tmp_path / "mine.txt", tmp_path / "myopt_of_choice.py"
    (tmp_path / "other.txt").write_text("a green bar\n")
    for key, first, choice, file, texts in (
        ("prompts.train", "other.txt", "mine.txt", prompts, ("a red square\n", "a blue cross\n")),
        ("optimizer.name", "adamw", "myopt_of_choice.Opt", code, ("lr = 1\n", "lr = 1000\n")),
    ):
        found = []
        for text in texts:
            file.write_text(text)
            choices = f"  {key}: [{first}, {choice}]\ntrials:"
            found.append(load_search(write(tmp_path, FILE.replace("trials:", choices))).identity)
        assert found[0] != found[1], key


@pytest.mark.parametrize("profile", ["laptop", "full", "flux"])
def test_the_projects_search_has_the_papers_settings_first(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = load_search(SEARCHES / "window.yaml", profile)
    paper, flash = search.enqueue
    scale = 5 if profile == "laptop" else 1
    assert paper["window.interval"] * scale == 25
    assert (paper["window.size"], paper["window.stride"]) == (4, 1)
    assert flash["sampler.tail_ratio"] == 0.4
    assert flash["window.interval"] * scale == 20
    assert {one.key for one in search.space} == {
        *("window.size", "window.interval", "window.stride", "window.strategy"),
        *("sampler.eta", "sampler.order", "sampler.tail_ratio"),
    }
    interval = next(one for one in search.space if one.key == "window.interval")
    assert interval.bounds == ((2, 10) if profile == "laptop" else (10, 50))


def test_help_needs_neither_torch_nor_optuna() -> None:
    code = "import sys, harness.search; print(*{'torch', 'optuna', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
