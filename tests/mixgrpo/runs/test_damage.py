"""Whoever reads a run's model refuses a damaged one, and says what can be read instead."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixgrpo import cli, evaluate, generate, to_pipeline, train
from mixgrpo.errors import RunError
from mixgrpo.files import records
from mixgrpo.models.embeddings import EmbeddingStore
from mixgrpo.runs.load import load_run
from tests.mixgrpo import toy

pytestmark = pytest.mark.usefixtures("toy_site")

COMMANDS = {
    "evaluate": (evaluate.main, "evaluation.txt"),
    "generate": (generate.main, "images"),
    "to_pipeline": (to_pipeline.main, "pipeline"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.run(toy.config(output={"checkpoints_kept": 3}), folder) == "finished"
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def overwrite(file: Path, count: int = 8) -> None:
    data = bytearray(file.read_bytes())
    middle = len(data) - 40
    data[middle : middle + count] = bytes(b ^ 0xFF for b in data[middle : middle + count])
    file.write_bytes(data)


def into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def into_file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{
        f"{how} {name}": lambda place, name=name, change=change: change(place / name)
        for name in (
            *(f"{group}.safetensors" for group in ("average", "weights", "optimizer")),
            "manifest.json",
        )
        for how, change in {
            "overwritten": overwrite,
            "cut short": lambda file: file.write_bytes(file.read_bytes()[:-5]),
            "empty": lambda file: file.write_bytes(b""),
            "without": Path.unlink,
            "a folder for": into_folder,
        }.items()
    },
    "weights for averages": lambda place: (place / "weights.safetensors").replace(
        place / "average.safetensors"
    ),
    "deep nesting": lambda place: (place / "manifest.json").write_text("[" * 100_000),
    "no files": lambda place: (place / "manifest.json").write_text(
        '{"format": 1, "iteration": 4, "files": {}, "made_on": {}}'
    ),
    "a file elsewhere": lambda place: (place / "manifest.json").write_text(
        '{"format": 1, "iteration": 4, "files": {"../../config.yaml": "0"}, "made_on": {}}'
    ),
    "nothing": shutil.rmtree,
    "a file": into_file,
}


def said(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and what stands on the standard error."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.run(COMMANDS[words[0]][0])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_other_checkpoint_is_taken_for_a_damaged_newest_one(run: Path, damage: str) -> None:
    DAMAGE[damage](run / "checkpoints" / "000004")
    with pytest.raises(RunError) as error:
        load_run(run)
    text = str(error.value)
    assert "checkpoints/000004: " in text
    assert "\n" not in text
    if damage != "no files":  # that one is whole by its own account
        (other,) = re.findall(r"--checkpoint (\d+)", text)
        assert load_run(run, int(other)).iteration == int(other) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_refuse_it_and_take_what_they_name(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    overwrite(run / "checkpoints" / "000004" / "average.safetensors")
    overwrite(run / "checkpoints" / "000003" / "weights.safetensors")
    out = COMMANDS[command][1]
    words = [command, "run", "--out", out]
    code, text = said(words, monkeypatch, capsys)
    assert code == 1
    newest = run / "checkpoints" / "000004"
    assert text.startswith(f"error: {newest}: corrupt checkpoint (average.safetensors")
    assert not Path(out).exists()
    (option,) = re.findall(r"--checkpoint \d+", text)
    assert option == "--checkpoint 2"
    code, text = said([*words, *option.split()], monkeypatch, capsys)
    # The toy is no pipeline of diffusers: that it says so shows that it read the checkpoint.
    assert (code, Path(out).exists()) == ((2, False) if command == "to_pipeline" else (0, True))


def test_what_is_asked_for_by_its_number_is_refused_too_before_any_image(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    overwrite(run / "checkpoints" / "000003" / "average.safetensors")
    words = ["generate", "run", "--out", "images", "--checkpoint", "2", "--checkpoint", "3"]
    code, text = said(words, monkeypatch, capsys)
    assert code == 1
    assert "000003: corrupt checkpoint" in text
    assert "--checkpoint 4 takes" in text
    assert not Path("images").exists()


def test_another_runs_checkpoint_is_not_taken_for_the_runs_own(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert train.run(toy.config(seed=1), other) == "finished"
    newest = sorted((other / "checkpoints").iterdir())[-1]
    shutil.rmtree(run / "checkpoints" / newest.name)
    shutil.copytree(newest, run / "checkpoints" / newest.name)
    for asked in (None, int(newest.name)):
        with pytest.raises(RunError, match="is another run's checkpoint"):
            load_run(run, asked)
    # Without measurements, as a model is passed on, there is nothing that it could contradict.
    for name in (records.METRICS, records.EVALUATIONS):
        (run / name).unlink()
    assert load_run(run).iteration == int(newest.name)


def test_where_none_is_whole_the_base_model_is_offered_and_not_taken(run: Path) -> None:
    for place in (run / "checkpoints").iterdir():
        overwrite(place / "average.safetensors")
    with pytest.raises(RunError, match="no other one is whole; --checkpoint 0 takes the model"):
        load_run(run)
    assert load_run(run, 0).iteration == 0


def test_a_changed_embedding_is_not_used(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a", "b"], {"text": torch.arange(64.0).view(2, 32)})
    (shard,) = store.folder.glob("[!.]*.safetensors")
    overwrite(shard)
    with pytest.raises(RunError, match="remove it, and its prompts are encoded again"):
        EmbeddingStore(tmp_path, "tiny").get(["a", "b"])
    shard.unlink()
    assert EmbeddingStore(tmp_path, "tiny").missing(["a", "b"]) == ["a", "b"]


def test_a_late_line_of_a_process_that_slept_is_no_damage(run: Path) -> None:
    """Results of before there were digests: their lines are counted."""
    result = json.loads((run / "result.json").read_text())
    del result["digests"]
    (run / "result.json").write_text(json.dumps(result))
    known = records.parse(records.Result, "result.json", json.dumps(result).encode())
    every = toy.config().evaluation.every
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        late = {**json.loads(lines[0]), "seconds_total": 99.0}
        (run / name).write_text("".join([*lines, json.dumps(late) + "\n"]))
        records.check_lines(run, known, every)
        late_ones = [json.dumps(late) + "\n"] * 2
        (run / name).write_text("".join([*lines[:-1], *late_ones]))
        with pytest.raises(records.DamagedFileError, match=name):
            records.check_lines(run, known, every)
        (run / name).write_text("".join(lines))


@pytest.mark.usefixtures("toy_site")
@pytest.mark.parametrize("group", ["weights", "average", "optimizer"])
def test_a_checkpoint_whose_manifest_lacks_a_file_is_an_error(tmp_path: Path, group: str) -> None:
    config = toy.config(iterations=1)
    assert train.run(config, tmp_path) == "finished"
    (tmp_path / "result.json").unlink()
    file = tmp_path / "checkpoints" / "000001" / "manifest.json"
    said = json.loads(file.read_bytes())
    del said["files"][f"{group}.safetensors"]
    file.write_text(json.dumps(said))
    with pytest.raises(RunError, match=f"lacks its {group}"):
        train.run(config, tmp_path)
