"""The code in docs/python.md runs, and prints what the page says."""

import contextlib
import inspect
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

import harness
from harness.frames.plot import Plots
from harness.study.load import load_sweep
from tests.docs.commands import ROOT
from tests.harness.frames.studies import claim
from tests.harness.launching.toys import launch, write_sweep
from tests.harness.synthetic import write_runs

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
_SCORES, _FOLDER = "## The score of every image", "## Without the sweep file"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clone in which nothing has run."""
    for folder in ("sweeps", "reports"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    yield tmp_path
    pyplot.close("all")


def run(text: str, names: dict[str, Any]) -> None:
    """Run the blocks of a part of the page, one after the other."""
    blocks = _BLOCK.findall(text)
    assert blocks
    for code, said in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert re.sub(" +$", "", printed.getvalue(), flags=re.M) == said, code


def test_from_the_committed_measurements(place: Path) -> None:
    names: dict[str, Any] = {}
    run(PAGE.split(_SCORES)[0], names)
    assert (place / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert len(names["compared"]) == 6


def test_the_scores_of_runs(tmp_path: Path, toy_site: Path) -> None:
    sweep = write_sweep(tmp_path, {"a": {}, "b": {"optimizer.lr": 0.02}})
    launch(sweep, tmp_path / "runs")
    names = {"study": harness.load(sweep.file, runs_dir=tmp_path / "runs")}
    run(PAGE.split(_SCORES)[1].split(_FOLDER)[0], names)
    assert len(names["hardest"]) == 2  # prompts


def test_a_folder_of_runs(place: Path) -> None:
    write_runs(load_sweep(place / "sweeps" / "tau.yaml"), place / "runs")
    claim(place / "runs" / "tau")
    names: dict[str, Any] = {"harness": harness}
    run(PAGE.split(_FOLDER)[1], names)
    assert len(names["study"].runs) == 32


def test_the_reference_names_everything_and_nothing_else() -> None:
    table = PAGE.split("## Reference")[1]
    named = dict(re.findall(r"`(?:harness|Study)\.([\w.]+)(?:\((.*?)\))?`", table))
    internal = {"results", "references", "read_scores", "measures", "checked", "chosen_references"}
    fields = {*harness.Study.__dataclass_fields__}
    of_study = {name for name in {*vars(harness.Study), *fields} if name[0] != "_"} - internal
    drawn = {f"plot.{name}" for name in vars(Plots) if name[0] != "_"} - {"plot.study"}
    assert set(named) == {"load", "load_runs", *drawn, *(of_study - {"plot"})}
    for name, arguments in named.items():
        if arguments:
            of = Plots if name.startswith("plot.") else harness if "load" in name else harness.Study
            parameters = inspect.signature(getattr(of, name.rpartition(".")[2])).parameters
            given = [argument.lstrip("*") for argument in arguments.split(", ")]
            assert given == [one for one in parameters if one != "self"], name
