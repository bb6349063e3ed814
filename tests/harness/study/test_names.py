"""Names of folders: what would be too long is shortened, found again, and said at the plan."""

from pathlib import Path

import pytest

from harness.runs.logs import find_run
from harness.searching.file import load_search
from harness.study.load import load_sweep
from harness.study.names import MOST_BYTES, check_paths, run_folder, shorten
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from tests.harness.lab import Lab

LONG = Path(*[f"a-folder-with-a-long-name-{i}" for i in range(12)])


def test_names_that_fit_are_what_they_always_were() -> None:
    assert run_folder("interval=15", 3, "0a1b2c3d") == "interval=15-seed3-0a1b2c3d"
    exact = "a" * (MOST_BYTES - len("-seed3-0a1b2c3d"))
    assert run_folder(exact, 3, "0a1b2c3d") == f"{exact}-seed3-0a1b2c3d"
    assert len(run_folder(exact + "a", 3, "0a1b2c3d")) < MOST_BYTES


def test_bytes_count_not_characters_and_none_is_cut_in_two() -> None:
    text = "ü" * 100
    assert shorten(text, 200) == text
    short = shorten(text, 199)
    assert len(short.encode()) <= 199
    assert short.startswith("ü" * 90)
    assert shorten("ü" * 100 + "a", 199) != shorten("ü" * 100 + "b", 199)


def test_a_grid_over_long_paths_runs_reports_its_names_and_is_found_again(lab: Lab) -> None:
    (lab.root / LONG).mkdir(parents=True)
    values = [str(lab.root / LONG / name) for name in ("one.txt", "two.txt")]
    for colour, value in zip(("red", "blue"), values, strict=True):
        Path(value).write_text(f"a {colour} square\n")
    lab.write(
        "name: toy\nquestion: Which?\nset: {iterations: 2}\n"
        f"grid: {{prompts.held_out: {values}, window.interval: [1, 3]}}\nseeds: 1\n"
    )
    code, output = lab.finish("--jobs", "2")
    assert (code, output.count("error")) == (0, 0), output
    sweep = lab.sweep
    folders = {run.name: lab.runs / "toy" / run.folder_name for run in sweep.runs}
    assert len(set(folders.values())) == 4
    for name, folder in folders.items():
        assert len(folder.name.encode()) <= MOST_BYTES < len(name)
        assert (folder / "result.json").exists()
        assert find_run(name, lab.runs) == folder
        assert find_run(folder.name, lab.runs) == folder


def test_a_path_that_is_too_long_for_the_system_is_said_at_the_plan(lab: Lab) -> None:
    deep = Path(*["d" * 200] * 20)
    code, output = lab.finish("--plan", "--runs", str(lab.root / deep))
    assert code == 2
    assert output.startswith("error: --runs")
    assert "may have; name a shorter folder" in output
    code, output = lab.finish("--runs", str(lab.root / ("d" * 300)))
    assert code == 2
    assert "has 300 bytes, and the file system there allows 255" in output
    assert output.count("\n") == 1
    assert [path.name for path in lab.root.iterdir()] == ["toy.yaml"]


def test_what_the_file_system_says_of_itself_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.pathconf", lambda *_: 143)  # as ecryptfs has it
    with pytest.raises(
        ConfigError, match=r"--runs: the name a{40}\.\.\. has 144 bytes.*allows 143"
    ):
        check_paths([Path("/tmp") / ("a" * 144), Path("/tmp/b")], "--runs")
    check_paths([Path("/tmp") / ("a" * 143)], "--runs")


def test_values_that_are_equal_as_names_make_arms_of_different_names(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: toy\nquestion: Which?\nseeds: 1\n"
        "grid: {model.checkpoint: ['a b', a/b, A_b, base]}\nset: {model.name: other}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixgrpo.settings.layers._names", lambda _: (["other"], ["composition"]))
        patch.setattr("mixgrpo.settings.layers.reward_names", lambda: ["composition"])
        patch.setattr("mixgrpo.settings.layers.Layers._check_names", lambda *_: None)
        names = [arm.name for arm in load_sweep(file).arms]
    assert names[0] == "checkpoint=a_b"
    assert names[3] == "checkpoint=base"
    assert len({name.lower() for name in names}) == 4
    assert all(name.lower().startswith("checkpoint=a_b-") for name in names[1:3])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("figures", "reports/figures belongs to the report over all studies"),
        ("Figures", "reports/Figures belongs to the report over all studies"),
        ("README.md", "reports/README.md belongs to the report over all studies"),
        ("con", "Windows has no folder of the name con"),
        ("Aux.v2", "Windows has no folder of the name Aux.v2"),
        ("toy.", "Windows has no folder of the name toy."),
    ],
)
def test_a_studys_name_that_cannot_have_a_folder_of_its_own(
    name: str, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.yaml"
    begin = f"name: {name}\nquestion: Which?\n"
    file.write_text(begin + "seeds: 1\ngrid: {window.interval: [1, 2]}\n")
    with pytest.raises(ConfigError, match=rf"file.yaml:1: name: {why}"):
        load_sweep(file)
    file.write_text(begin + "trials: 2\nspace: {window.size: [1, 2]}\n")
    with pytest.raises(ConfigError, match=rf"file.yaml:1: name: {why}"):
        load_search(file)


def test_choices_of_a_search_that_would_be_one_trial_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        "name: toy\nquestion: Which?\ntrials: 2\nspace:\n  window.size: [1, 2]\n"
        "  prompts.embeddings: [/a b, /a/b]\n"
    )
    with pytest.raises(ConfigError, match=r"file.yaml:6: space: prompts.embeddings: '/a b' and"):
        load_search(file)


def test_the_confirmation_of_a_search_of_a_long_name_can_be_run(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        f"name: {'n' * 64}\nquestion: Which?\ntrials: 2\nspace: {{window.size: [1, 2]}}\n"
    )
    name = load_search(file, overrides=["iterations=3"]).confirm_name
    assert name.endswith("-confirm")
    assert len(name) == 64
    assert RunConfig.model_validate({"output": {"project": name}})  # it is a Name
