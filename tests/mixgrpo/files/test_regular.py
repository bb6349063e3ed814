"""What a user names as a file may be a pipe, a device or a whole disk: each is one error, at once.

Nothing waits for a writer, and nothing takes all memory."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.launching.resources import SITE_VARIABLE, _site
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError
from mixgrpo.files import contents as module
from mixgrpo.files.contents import contents
from mixgrpo.files.prompts import MOST_BYTES, prompts_digest, read_prompts
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.settings.yamlfile import read_yaml

NOT_REGULAR = "is a pipe, a socket or a device, not a regular file"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A read that waits for ever is a failure, and one that takes all memory, too."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "device", "link to a device"])
def strange(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "device":
        return Path("/dev/zero")
    place = tmp_path / "strange.txt"
    if request.param == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    return place


def _config(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(sections)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("prompts.train", lambda p: config_hash(_config(prompts={"train": str(p)}))),
        ("prompts.held_out", lambda p: config_hash(_config(prompts={"held_out": str(p)}))),
        ("model.checkpoint", lambda p: config_hash(_config(model={"checkpoint": str(p)}))),
        (
            "model.checkpoint",
            lambda p: config_hash(
                _config(
                    model={"name": "flux", "checkpoint": str(p)},
                    prompts={"train": __file__, "held_out": __file__},
                    rewards={"train": {"pickscore": 1.0}, "held_out": ("hps",)},
                )
            ),
        ),
        (
            "rewards.options.pickscore: checkpoint",
            lambda p: config_hash(
                _config(
                    rewards={
                        "train": {"pickscore": 1.0},
                        "options": {"pickscore": {"checkpoint": str(p)}},
                    }
                )
            ),
        ),
        ("", read_prompts),
        ("", read_yaml),
        ("", contents),
        ("", load_sweep),
    ],
)
def test_a_pipe_or_a_device_in_place_of_a_file_is_one_error(
    key: str, what: Callable[[Path], object], strange: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        what(strange)
    said = str(refused.value)
    assert said.startswith(f"{key}: {strange}: " if key else f"{strange}: ")
    assert NOT_REGULAR in said
    assert "\n" not in said


def test_a_site_file_that_is_a_pipe_is_one_error(
    strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SITE_VARIABLE, str(strange))
    with pytest.raises(ConfigError, match=NOT_REGULAR):
        _site()


def test_a_pipeline_whose_index_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model_index.json")
    os.mkfifo(tmp_path / "other.safetensors")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert module.pipeline_contents(tmp_path) == contents(tmp_path)


def test_a_file_of_prompts_has_a_limit(tmp_path: Path) -> None:
    place = tmp_path / "large.txt"
    with place.open("wb") as stream:
        os.truncate(stream.fileno(), MOST_BYTES + 1)  # sparse
    with pytest.raises(ConfigError, match="has more than 1,073,741,824 bytes; is it a file of pro"):
        read_prompts(place)


def test_a_folder_of_everything_is_no_folder_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 10)
    monkeypatch.setattr(module, "_sampled", None)  # nothing is read before they are counted
    for folder in range(4):
        (tmp_path / str(folder)).mkdir()
        for file in range(3):
            (tmp_path / str(folder) / str(file)).write_text("a")
    said = "has more than 10 files and folders; is this a folder of weights?"
    with pytest.raises(ConfigError, match=f"^model.checkpoint: {tmp_path}: {said}"):
        config_hash(_config(model={"checkpoint": str(tmp_path)}))


def test_prompts_of_the_process_s_own_pipe_are_read_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from mixgrpo.files.prompts import read_prompts\n"
        "for _ in range(2): print(read_prompts(Path('/dev/stdin')))\n"
        "from mixgrpo.files.prompts import prompts_digest\n"
        "try: prompts_digest(Path('/dev/stdin'))\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="a\nb\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[:2] == ["['a', 'b']"] * 2, done.stderr
    assert "/dev/stdin: is read by several processes" in done.stdout
    # As a regular file it is like any other.
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    with (tmp_path / "prompts.txt").open() as stream:
        code = code.partition("from mixgrpo.files.prompts import prompts_digest")[0]
        code += "from mixgrpo.files.prompts import *; print(prompts_digest(Path('/dev/stdin')))"
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=stream, capture_output=True, text=True, timeout=60
        )
    assert done.stdout.splitlines()[2] == prompts_digest(tmp_path / "prompts.txt"), done.stderr


def _little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, 3_000_000_000))


@pytest.mark.parametrize("words", [["harness.sweep", "--plan"], ["mixgrpo.embed"]])
def test_a_command_given_a_device_ends_at_once(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        "name: one\nquestion: Is it?\ngrid: {window.interval: [1, 2]}\nseeds: 1\n"
        "set: {prompts.train: /dev/zero}\n"
    )
    given = [file] if words[0] == "harness.sweep" else ["/dev/zero"]
    done = subprocess.run(
        [sys.executable, "-m", words[0], *map(str, given), *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_little_memory,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert f"/dev/zero: {NOT_REGULAR}; write the prompts to a file" in done.stderr
    assert done.stderr.count("\n") == 1
