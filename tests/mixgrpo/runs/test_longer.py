"""`mixgrpo.train --set iterations=N` on a folder that has the same run with fewer: it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixgrpo import train
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from tests.mixgrpo import toy
from tests.mixgrpo.outcomes import outcome

pytestmark = pytest.mark.usefixtures("toy_site")


def config(iterations: int, **sections: Any) -> RunConfig:
    given = {"evaluation": {"every": 2}, "output": {"checkpoint_every": 4}, **sections}
    return toy.config(iterations=iterations, **given)


def compared(folder: Path) -> dict[str, Any]:
    """What must be the same; the pictures of the shorter run's own end stay."""
    found = outcome(folder)
    found["samples"] = {k: v for k, v in found["samples"].items() if "000003" not in k}
    return found


def test_a_finished_run_goes_on_to_the_bytes_of_a_longer_one(tmp_path: Path) -> None:
    train.run(config(3), tmp_path / "run")
    short = (tmp_path / "run" / "result.json").read_bytes()
    assert train.run(config(6), tmp_path / "run") == "finished"
    train.run(config(6), tmp_path / "at once")
    assert compared(tmp_path / "run") == compared(tmp_path / "at once")
    assert (tmp_path / "run" / "result-000003.json").read_bytes() == short
    evals = (tmp_path / "run" / "eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in evals] == [0, 2, 4, 6]


def test_a_kill_between_the_two_files_leaves_one_of_the_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixgrpo.runs import folder

    train.run(config(3), tmp_path)
    before = outcome(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(config(6), tmp_path)
    monkeypatch.undo()
    assert train.run(config(3), tmp_path) == "finished"
    assert outcome(tmp_path) == before


@pytest.mark.parametrize(
    ("sections", "iterations", "why"),
    [
        ({}, 2, "does not become shorter; choose another folder"),
        ({"optimizer": {"schedule": "cosine"}}, 6, "the learning rate depends on the number of it"),
    ],
)
def test_what_does_not_go_on_says_why_and_changes_nothing(
    tmp_path: Path, sections: dict[str, Any], iterations: int, why: str
) -> None:
    train.run(config(3, **sections), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=rf"is of another run \(iterations: 3, not .*{why}"):
        train.run(config(iterations, **sections), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_was_made_otherwise_is_not_said_to_be_too_long(tmp_path: Path) -> None:
    train.run(config(3), tmp_path)
    with pytest.raises(ConfigError, match="measured with other settings of health or output"):
        train.run(config(6, output={"samples": 3, "checkpoint_every": 4}), tmp_path)
    file = tmp_path / "config.yaml"
    header, _, rest = file.read_text().partition("\n")
    file.write_text(f"{header[:-8]}01234567\n{rest}")  # as if its prompts had changed since
    with pytest.raises(ConfigError, match="prompts or code have changed since it began"):
        train.run(config(6), tmp_path)


def test_a_configuration_that_is_no_text_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\0" + bytes(range(256)))
    with pytest.raises(ConfigError, match=r"config\.yaml: was written by another version"):
        train.run(config(3), tmp_path)


def test_a_run_of_a_sweep_is_continued_by_the_sweep(tmp_path: Path) -> None:
    train.run(config(3), tmp_path)
    (tmp_path / "attempts").mkdir()
    with pytest.raises(ConfigError, match=r"change `iterations` in the sweep file, or"):
        train.run(config(6), tmp_path)
