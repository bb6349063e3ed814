"""Two files of one name: the second takes over nothing of the first's."""

import json
import shutil
from pathlib import Path

import pytest

from harness import report
from harness.reporting.write import write_report
from harness.runs import source
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError
from tests.harness.lab import Lab


def test_a_copied_file_with_the_name_left_is_refused_before_anything(lab: Lab) -> None:
    assert lab.finish("--jobs", "2")[0] == 0
    before = sorted(path for path in lab.runs.rglob("*"))
    copy = lab.root / "copy.yaml"
    copy.write_text(lab.file.read_text().replace("[1, 3]", "[2, 4]"))
    first = lab.file
    for options in ([], ["--plan"], ["--prune", "--yes"], ["--detach"], ["--cancel"]):
        lab.launchers.clear()
        code, output = _finish_with(lab, copy, *options)
        assert code == 2, output
        assert output.startswith(f"error: {copy}:1: name: toy is taken by {first}, the file of ")
        assert output.count("\n") == 1
    assert sorted(path for path in lab.runs.rglob("*")) == before
    # A file that was moved takes its runs along, and that is said.
    first.rename(lab.root / "kept")
    code, output = _finish_with(lab, copy, "--jobs", "2")
    assert code == 0, output
    assert f"toy: {first} is gone; its runs belong to {copy} from now on" in output
    assert json.loads((lab.runs / "toy" / "source.json").read_text()) == {"file": "../../copy.yaml"}
    (lab.root / "kept").rename(first)  # which the fixture reads


def _finish_with(lab: Lab, file: Path, *options: str) -> tuple[int, str]:
    """What the sweep of another file than the lab's own says."""
    other = Other(lab.root, executor=lab.executor)
    other.own = file
    return other.finish(*options)


class Other(Lab):
    own: Path

    @property
    def file(self) -> Path:
        return self.own


def test_a_file_that_got_another_name_gives_its_old_one_free(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("name: toy\n")
    other.write_text("name: toy\n")
    runs, reports = tmp_path / "runs" / "toy", tmp_path / "reports" / "toy"
    runs.mkdir(parents=True)
    source.note("toy", one, runs, print)
    with pytest.raises(ConfigError, match=r"other.yaml:1: name: toy is taken by .*one.yaml"):
        source.check("toy", other, runs, reports)
    source.check("toy", one, runs, reports)
    one.write_text("name: toy-2\n")
    source.check("toy", other, runs, reports)


def test_the_folders_may_be_moved_together_and_linked(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "runs" / "toy").mkdir(parents=True)
    (first / "toy.yaml").write_text("name: toy\n")
    source.note("toy", first / "toy.yaml", first / "runs" / "toy", print)
    first.rename(tmp_path / "second")
    (tmp_path / "linked").symlink_to(tmp_path / "second")
    for place in ("second", "linked"):
        root = tmp_path / place
        source.check("toy", root / "toy.yaml", root / "runs" / "toy", root / "reports" / "toy")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"file": 5}', "\0\1"])
def test_a_record_that_says_nothing_stops_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text(text)
    (tmp_path / "toy.yaml").write_text("name: toy\n")
    source.check("toy", tmp_path / "toy.yaml", tmp_path, tmp_path)


def test_a_report_is_not_replaced_by_another_file_with_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one file's profile gives the folder that is another's name."""
    text = "question: Which?\nseeds: 1\ngrid: {window.interval: [1, 2]}\nprofiles: {a: {}, b: {}}\n"
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("name: toy\n" + text)
    other.write_text("name: toy-b\n" + text)
    folder = tmp_path / "reports" / "toy-b"
    folder.mkdir(parents=True)
    (folder / "made.json").write_text(json.dumps({"file": source.relative(one, folder)}))
    assert load_sweep(one, "b").report_name == load_sweep(other).report_name == "toy-b"
    with pytest.raises(ConfigError, match=r"other.yaml:1: name: toy-b is taken by .*one.yaml"):
        write_report(load_sweep(other), tmp_path / "elsewhere", tmp_path / "reports")


def test_report_all_leaves_out_files_of_one_name_and_reports_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = Path(__file__).parents[3]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "search").mkdir(parents=True)
    shutil.copytree(repository / "sweeps" / "presets", tmp_path / "sweeps" / "presets")
    for name in ("tau", "solver"):
        shutil.copy(repository / "sweeps" / f"{name}.yaml", "sweeps")
    shutil.copy("sweeps/tau.yaml", "sweeps/tau-2.yaml")
    Path("sweeps/mine.yaml").write_text("base: presets/scenes.yaml\niterations: 5\n")
    Path("sweeps/broken.yaml").write_text("name: [\n")
    Path("sweeps/search/solver.yaml").write_text("name: Solver\nspace: {}\n")
    written: list[str] = []
    monkeypatch.setattr(
        report, "_write_or_skip", lambda sweep, *_: written.append(sweep.name) or True
    )
    monkeypatch.setattr("harness.overall.page.write_overall", lambda *_: "the page")
    shutil.copy(repository / "sweeps" / "window.yaml", "sweeps")
    with pytest.raises(ConfigError) as error:
        report.main(every=True)
    said = capsys.readouterr()
    assert written == ["window"]
    assert "sweeps/mine.yaml: is a run configuration, not a sweep file; left out" in said.out
    errors = f"error: {error.value}\n{said.err}"
    assert "tau.yaml:1: name: tau is taken by sweeps/tau-2.yaml" in errors
    assert "solver.yaml:1: name: Solver is taken by sweeps/solver.yaml" in errors
    assert "sweeps/broken.yaml" in errors
