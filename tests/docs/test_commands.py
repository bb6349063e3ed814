"""Every command that README.md and docs/ tell a reader to type does what it says there."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.study.load import load_sweep
from tests.docs.commands import CANNOT, ELSEWHERE, ROOT, RUN, everything, told
from tests.harness.synthetic import write_runs
from tests.mixgrpo import toy
from tests.mixgrpo.models.tiny import write_flux
from tests.test_pipelines import small

MEANS = {
    "FILE": "sweeps/tau.yaml",
    "CONFIG": "toy.yaml",
    "DIR": "runs/toy",
    "FOLDER": "my-pipeline",
    "RUN": "runs/toy",
}
ONLY_HERE = {
    "python -m harness.logs RUN": {"RUN": "interval=5-seed0"},
    "python -m harness.logs RUN --follow": {"RUN": "interval=5-seed0"},
    "python -m mixgrpo.to_pipeline RUN --out my-flux": {"RUN": "runs/flux"},
    "python -m mixgrpo.to_pipeline DIR --out FOLDER": {"DIR": "runs/flux"},
}
IN_A_NEW_FOLDER = ("mkdir prompts", "cp my-prompts.txt", "cp my-other-prompts.txt")


def test_every_command_of_the_pages_is_known_and_no_other() -> None:
    """If not: say in tests/docs/commands.py what becomes of it."""
    known = [*RUN, *ELSEWHERE, *CANNOT]
    assert len(set(known)) == len(known)
    assert set(everything()) == set(known)


def test_what_is_run_elsewhere_is_run_there() -> None:
    for command, (file, text) in ELSEWHERE.items():
        assert text in (ROOT / file).read_text(encoding="utf-8"), command


def test_every_reason_is_given() -> None:
    assert all(len(reason.split()) > 3 for reason in CANNOT.values())


def test_commands_are_found_in_blocks_and_in_prose() -> None:
    text = (
        "Say `python -m a\nb` here, and `x`.\n\n"
        "1. First.\n\n    ```sh\n    hf one; hf two \\\n      three   # both\n    # nothing\n"
        "    ```\n\n"
        '```python\n"""`python -m no`"""\n```\n'
    )
    assert told(text) == ["hf one", "hf two three", "python -m a b"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A folder as a reader has it, in small: sweep files, prompts, finished runs, a tiny FLUX."""
    place = tmp_path_factory.mktemp("reader")
    _sweeps(place)
    (place / "my-prompts.txt").write_text("a cat\na dog\n")
    (place / "my-other-prompts.txt").write_text("a house\na tree\n")
    (place / "prompts").mkdir()
    (place / "prompts" / "train.txt").write_text("a cat\na dog\n")
    (place / "prompts" / "held_out.txt").write_text("a house\na tree\n")
    (place / "prompts" / "held_out.json").write_text('["a house", "a tree"]')
    long = toy.settings(iterations=60, output={"checkpoint_every": 10}, evaluation={"every": 30})
    (place / "toy.yaml").write_text(yaml.safe_dump(long))
    (place / "run.yaml").write_text("base: sweeps/presets/flux.yaml\n")
    (place / "home").mkdir()
    binaries = place / "bin"
    binaries.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel"):
        # A cluster without jobs, whatever this machine has.
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    for name in ("python", "python3"):
        (binaries / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (binaries / name).chmod(0o755)
    return place


def _sweeps(place: Path) -> None:
    """The real files with three seeds; FLUX is a tiny one and its preset a few steps."""
    presets = place / "sweeps" / "presets"
    presets.mkdir(parents=True)
    (place / "sweeps" / "search").mkdir()
    for folder in ("sweeps", "sweeps/presets", "sweeps/search"):
        for file in (ROOT / folder).glob("*.yaml"):
            text = file.read_text(encoding="utf-8").replace("\nseeds: 8\n", "\nseeds: 3\n")
            (place / folder / file.name).write_text(text, encoding="utf-8")
    tiny = small(write_flux(place / "flux"))
    settings: dict[str, Any] = {"model": {"name": "flux"}, "iterations": 2}
    for key, value in tiny.items():
        section, _, name = key.rpartition(".")
        # The sweep files' windows are for the 25 steps of the paper.
        if section not in ("", "sampler", "window"):
            settings.setdefault(section, {})[name] = value
    settings["prompts"] = {"train": "prompts/train.txt", "held_out": "prompts/held_out.txt"}
    (presets / "flux.yaml").write_text(yaml.safe_dump(settings))
    finished = load_sweep(place / "sweeps" / "tau.yaml")
    write_runs(finished, place / "runs")
    for run in finished.runs:
        folder = place / "runs" / "tau" / run.folder_name
        (folder / "log").mkdir()
        (folder / "log" / "1.log").write_text("the log of a run\n")
        (folder / "attempts").mkdir()
        attempt = {"number": 1, "pid": 1, "job_id": None, "started": 0.0, "ended": 1.0}
        attempt |= {"reason": "finished", "error": None, "executor": "local", "log": "log/1.log"}
        (folder / "attempts" / "1.json").write_text(json.dumps(attempt))


def run_as_written(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """What a command prints; it must end with 0. Those of the trainer run in this process."""
    meaning = MEANS | ONLY_HERE.get(command, {})
    line = re.sub(r"\b[A-Z]+\b", lambda found: meaning.get(found[0], found[0]), command)
    words = shlex.split(line)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", str(place / "embeddings"))
    if words[:2] == ["python", "-m"] and words[2].startswith("mixgrpo."):
        monkeypatch.setattr(sys, "argv", words[2:])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        out, err = capfd.readouterr()
        assert ended.value.code in (0, None), err
        return out + err
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives back what a command that ends with its process may leave changed."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs(
    command: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if command.startswith(IN_A_NEW_FOLDER):
        for name in ("my-prompts.txt", "my-other-prompts.txt"):
            (tmp_path / name).write_text("a cat\n")
        if not command.startswith("mkdir"):
            (tmp_path / "prompts").mkdir()
        (tmp_path / "home").mkdir()
        place = tmp_path
    for folder in {"runs/toy", "runs/flux"} & {
        (MEANS | ONLY_HERE.get(command, {})).get(word, "") for word in command.split()
    }:
        _train(folder, place, monkeypatch, capfd)
    said = run_as_written(command, place, monkeypatch, capfd)
    expected = RUN[command]
    assert (place / expected).exists() if isinstance(expected, Path) else expected in said


def _train(
    folder: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The finished run that a command is about."""
    commands = {
        "runs/toy": "python -m mixgrpo.train CONFIG --out DIR",
        "runs/flux": "python -m mixgrpo.train sweeps/presets/flux-lora.yaml --out runs/flux",
    }
    if not (place / folder / "result.json").exists():
        run_as_written(commands[folder], place, monkeypatch, capfd)
        assert (place / folder / "result.json").exists()
