"""docs/sweeps.md names every key and option there is, and its example is a sweep."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import sweep
from harness.study.load import load_sweep, profile_names
from harness.study.sweepfile import SweepFile
from mixgrpo.errors import ConfigError

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example where it says it lies, beside the presets."""
    found = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0]
    file = tmp_path / found.split()[1]
    shutil.copytree(ROOT / "sweeps" / "presets", file.parent / "presets")
    file.write_text(found, encoding="utf-8")
    return file


def rows(heading: str) -> list[str]:
    """The first cells of the first table below a heading, as code."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)


def test_every_key_is_explained_and_no_other() -> None:
    told = {row.strip("`") for row in rows("The keys")}
    own = {f"arms.<name>.{key}" for key in ("base", "label", "slurm")}
    assert told == {*SweepFile.model_fields, *own}


def test_every_option_is_explained_and_no_other() -> None:
    parameters = [p for p in inspect.signature(sweep.main).parameters if p != "file"]
    options = {"--" + name.strip("_").replace("_", "-") for name in parameters}
    assert set(re.findall(r"`(--[a-z-]+)", " ".join(rows("The command")))) == options


def test_the_example_has_every_key(example: Path) -> None:
    words = set(re.findall(r"\b([a-z_]+):", example.read_text()))
    assert {*SweepFile.model_fields, "label"} - words == {"grid", "within"}


def test_the_example_can_be_planned(example: Path) -> None:
    command = [sys.executable, "-m", "harness.sweep", str(example), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=example.parents[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "flash (laptop): 4 arms x 5 seeds = 20 runs; reference mixgrpo" in done.stdout
    assert "flash: mixgrpo-flash\n" in done.stdout
    assert "same schedule" not in done.stdout


def test_the_example_is_what_the_page_says_of_it(example: Path) -> None:
    assert profile_names(example) == ["laptop", "full"]
    for name in profile_names(example):
        found = load_sweep(example, name)
        assert found.paper_rows["frozen"] == "MixGRPO-Flash*"
        assert [a.label for a in found.arms][1:3] == ["mixgrpo-flash", "frozen window"]


def test_a_view_that_answers_is_one_of_the_files(example: Path) -> None:
    assert load_sweep(example).answered_by == "speedup"
    text = example.read_text()
    example.write_text(text.replace("answered_by: speedup", "answered_by: hybrit"))
    with pytest.raises(ConfigError, match=r"answered_by: hybrit is not one of .* mean hybrid\?"):
        load_sweep(example)
    for wrong in ("answered_by: drift", "answered_by: budget"):
        example.write_text(text.replace("answered_by: speedup", wrong))
        with pytest.raises(ConfigError, match="is not one of the file's views"):
            load_sweep(example)
    example.write_text(re.sub("answered_by:.*", "", text))
    assert load_sweep(example).answered_by == ""
