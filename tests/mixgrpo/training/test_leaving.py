"""Code that a run calls neither ends the process without a word nor takes the run elsewhere."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.launching.job import Job, make_job
from harness.runs.folder import read_attempts
from mixgrpo import cli, evaluate, generate, train
from mixgrpo.compute import signals
from mixgrpo.compute.foreign import in_words
from mixgrpo.errors import RepeatableError
from mixgrpo.rewards.calls import score
from mixgrpo.rewards.limit import limited
from mixgrpo.rewards.protocol import FunctionReward
from mixgrpo.settings.configfile import dump_config
from tests.mixgrpo import leaving, toy
from tests.mixgrpo.outcomes import outcome

OWN = toy.config(
    rewards={
        "train": {"leaving": 1.0},
        "held_out": [],
        "classes": {"leaving": "tests.mixgrpo.leaving:Leaving"},
    }
)
HOWS = {
    "exit": "SystemExit: 0",
    "hard": "SystemExit: 0",
    "exec": "SystemExit: os.execv('/bin/true')",
    "interrupt": "KeyboardInterrupt",
    "cancelled": "CancelledError",
    "generator": "GeneratorExit",
}


@pytest.fixture(autouse=True)
def model(toy_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by the name `leaving`."""
    info = tmp_path / "site" / "leaving-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaving\nVersion: 0\n")
    point = "leaving = tests.mixgrpo.leaving:LeavingPolicy.load"
    (info / "entry_points.txt").write_text(f"[mixgrpo.models]\n{point}\n")
    monkeypatch.syspath_prepend(info.parent)


def command(
    main: Any, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and what was said on stderr of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("where", "code", "names"),
    [
        ("init", 2, "leaving"),
        ("score", 1, "reward leaving on"),
        ("velocity", 1, "leaving.py, line"),
    ],
)
def test_an_exit_is_a_failure_with_its_name(
    where: str,
    code: int,
    names: str,
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = OWN.model_copy(update={"model": OWN.model.model_copy(update={"name": "leaving"})})
    monkeypatch.chdir(tmp_path)  # code that files there name is the user's own
    (tmp_path / "run.yaml").write_text(dump_config(config))
    words = [str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    monkeypatch.setenv("LEAVES", f"{where}:{how}")
    ended, err = command(train.main, words, monkeypatch, capsys)
    error = err.splitlines()[-1]
    assert ended == code, err
    assert error.startswith("error: ")
    for said in (names, HOWS[how], "leaving.py, line", "must raise an exception"):
        assert said in error
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.delenv("LEAVES")
    assert train.run(config, tmp_path / "run") == "finished"


@pytest.mark.parametrize("main", [evaluate.main, generate.main])
@pytest.mark.parametrize("how", HOWS)
def test_commands_that_read_a_run_fail_too(
    main: Any,
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = OWN.model_copy(update={"model": OWN.model.model_copy(update={"name": "leaving"})})
    assert train.run(config, tmp_path / "run") == "finished"
    monkeypatch.setenv("LEAVES", f"decode:{how}")
    monkeypatch.chdir(tmp_path)
    ended, err = command(main, [str(tmp_path / "run")], monkeypatch, capsys)
    assert ended == 1, err
    assert HOWS[how] in err.splitlines()[-1]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("where", ["init", "score", "velocity"])
def test_a_job_records_it_as_a_failure(
    where: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OWN.model_copy(update={"model": OWN.model.model_copy(update={"name": "leaving"})})
    (tmp_path / "run").mkdir()
    job: Job = make_job(tmp_path / "run", config)
    monkeypatch.setenv("LEAVES", f"{where}:{how}")
    ended = job.run(lambda: False)
    [attempt] = read_attempts(tmp_path / "run")
    assert ended == attempt.reason == ("config" if where == "init" else "exception")
    assert attempt.error is not None
    assert HOWS[how] in attempt.error
    assert "leaving.py, line" in attempt.error


@pytest.mark.filterwarnings("ignore:9 of the 9 held-out prompts are also trained on")
@pytest.mark.parametrize("where", ["init", "score", "velocity"])
def test_a_run_stays_where_it_began(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though its code changes the working directory: every name was relative."""
    monkeypatch.chdir(tmp_path)
    prompts = {"train": "prompts.txt", "held_out": "prompts.txt"}
    Path("prompts.txt").write_text("\n".join(toy.PROMPTS))
    models = OWN.model.model_copy(update={"name": "leaving"})
    files = OWN.prompts.model_copy(update=prompts)
    options = {"options": {"leaving": {"checkpoint": "prompts.txt"}}}
    rewards = OWN.rewards.model_copy(update=options)
    config = OWN.model_copy(update={"model": models, "prompts": files, "rewards": rewards})
    assert train.run(config, Path("undisturbed")) == "finished"
    Path("run.yaml").write_text(dump_config(config))
    monkeypatch.setenv("LEAVES", f"{where}:chdir")

    def run(main: Any, words: list[str]) -> None:
        os.chdir(tmp_path)
        leaving.went.clear()
        code, err = command(main, words, monkeypatch, capsys)
        assert code == 0, err
        assert where in leaving.went, "the test's code was called"

    run(train.main, ["run.yaml", "--out", "run"])
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    run(evaluate.main, ["run", "--out", "scores.txt"])
    assert "leaving" in (tmp_path / "scores.txt").read_text()
    if where == "velocity":  # it asks no reward
        run(generate.main, ["run", "--checkpoint", "4", "--out", "images", "--sheet", "sheet.png"])
        assert (tmp_path / "sheet.png").exists()
        assert list((tmp_path / "images").glob("*.png"))
    made = {p.name for p in tmp_path.iterdir()}
    assert made <= {
        "site",
        "prompts.txt",
        "run.yaml",
        "run",
        "undisturbed",
        "scores.txt",
        "images",
        "sheet.png",
    }


@pytest.mark.filterwarnings("ignore:2 of the 2 held-out prompts are also trained on")
@pytest.mark.parametrize("part", ["Red", "SGD"])
def test_what_is_imported_by_a_check_takes_the_run_nowhere(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command imports the modules of a reward and an optimizer before it begins."""
    (tmp_path / f"wanderer{part}.py").write_text(
        "import os, torch\nfrom torch.optim import SGD\nfrom tests.mixgrpo.toy import Red\n"
        "os.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    red = "wandererRed:Red" if part == "Red" else "tests.mixgrpo.toy:Red"
    optimizer = {"name": "wandererSGD.SGD"} if part == "SGD" else {}
    classes = {"red": red, "leaving": "tests.mixgrpo.leaving:Leaving"}
    rewards = {"train": {"red": 1.0}, "held_out": ["leaving"], "classes": classes}
    rewards["options"] = {"leaving": {"checkpoint": "prompts.txt"}}  # read after the module
    Path("prompts.txt").write_text("\n".join(toy.PROMPTS))
    config = toy.config(rewards=rewards, prompts={"train": "prompts.txt"}, optimizer=optimizer)
    Path("run.yaml").write_text(dump_config(config))
    code, err = command(train.main, ["run.yaml", "--out", "run"], monkeypatch, capsys)
    assert code == 0, err
    assert (tmp_path / "run" / "result.json").exists()
    assert torch.get_default_dtype() == torch.float32


SAID = "error: os._exit(0) was called in {}; code that a run calls must raise an exception"
ENDS = {
    "another thread": (
        "t = threading.Thread(target=os._exit, args=(0,), name='t'); t.start(); t.join()",
        1,
        [SAID.format("t")],
    ),
    "after an error": (
        "atexit.register(os._exit, 0); raise ConfigError('no')",
        2,
        ["error: no", SAID.format("MainThread")],
    ),
    "after a defect": (
        "atexit.register(os._exit, 0); raise ValueError",
        1,
        ["ValueError", SAID.format("MainThread")],
    ),
    "after success": ("atexit.register(os._exit, 0)", 0, []),
    "another thread executes": (
        "t = threading.Thread(target=os.execve, args=('/bin/true', ['true'], {})); t.start(); "
        "t.join()",
        1,
        ["error: os.execve('/bin/true') was called; code that a run calls must raise an exception"],
    ),
    "another program in a child": (
        "child = os.fork() or os.execv('/bin/true', ['true']); "
        "assert os.waitpid(child, 0)[1] == 0; subprocess.run(['true'], check=True)",
        0,
        [],
    ),
    "with a code": ("atexit.register(os._exit, 5)", 5, []),
    "a child": ("child = os.fork() or os._exit(0); assert os.waitpid(child, 0)[1] == 0", 0, []),
}


@pytest.mark.parametrize("how", ENDS)
def test_no_process_ends_with_0_without_its_result(how: str) -> None:
    body, code, said = ENDS[how]
    source = (
        "import atexit, ctypes, os, subprocess, threading\nfrom mixgrpo import cli\n"
        f"from mixgrpo.errors import ConfigError\ndef main() -> None:\n    {body}\ncli.run(main)"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    lines = ended.stderr.splitlines()
    assert ended.returncode == code, ended.stderr
    assert bool(lines) == bool(said)
    for line, text in zip(lines[-len(said) :], said, strict=False):
        assert line.startswith(text)


SPOILS = {
    "wraps, and lets go": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer); sys.stdout = None",
    "wraps, and puts back": "before = sys.stdout; sys.stdout = io.TextIOWrapper(before.buffer, "
    "encoding='utf-8'); print('inside'); sys.stdout = before",
    "detaches": "sys.stdout = io.TextIOWrapper(sys.stdout.detach())",
    "closes": "sys.stdout.close(); sys.stderr.close()",
    "closes the first ones": "sys.__stdout__.close(); sys.__stderr__.close()",
    "replaces": "sys.stdout = sys.stderr = open(os.devnull, 'w')",
    "removes": "sys.stdout = sys.stderr = None",
    "prints what the terminal lacks": "print('\u2212')",
}


ANYWHERE = [how for how in SPOILS if how not in ("replaces", "removes", "wraps, and lets go")]
"""Of a model, which is called again and again, the others are its own affair."""


@pytest.mark.parametrize(
    ("how", "guarded"),
    [(how, True) for how in SPOILS] + [(how, False) for how in ANYWHERE],
    ids=[f"{how} in a reward" for how in SPOILS] + [f"{how} elsewhere" for how in ANYWHERE],
)
def test_what_is_said_is_heard_whatever_became_of_the_streams(how: str, guarded: bool) -> None:
    source = (
        "import io, os, sys, warnings\nfrom mixgrpo import cli\n"
        "from mixgrpo.compute.foreign import settings_restored\n"
        f"def spoil() -> None:\n    {SPOILS[how]}\n"
        "def main() -> None:\n    cli.say('before')\n    cli.say_warnings()\n"
        + ("    with settings_restored(): spoil()\n" * 2 if guarded else "    spoil()\n")
        + "    cli.say('after'); cli.warn('also'); warnings.warn('and'); sys.exit('x')\n"
        + "cli.run(main)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )

    def own(text: str) -> list[str]:
        return [line for line in text.splitlines() if line not in ("inside", "\\u2212")]

    # A command's own lines alone are on stdout: they may be JSON.
    said = ended.stdout.splitlines() if guarded else own(ended.stdout)
    assert said == ["before", "after"], ended.stderr
    lines = own(ended.stderr)
    assert lines[:2] == ["also", "warning: and"], ended.stderr
    assert lines[-1].startswith("error: SystemExit: x")
    assert (ended.returncode, len(lines)) == (1, 3)


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_process_that_a_reward_forked_does_not_come_back(seconds: float | None) -> None:
    """It would train on, and write what the run itself writes."""
    children = []

    def forks(images: Tensor, prompts: list[str]) -> Tensor:
        child = os.fork()
        if child:
            children.append(child)
        return images.mean((1, 2, 3))

    reward = limited(FunctionReward("forks", forks), seconds)
    score(reward, torch.zeros(2, 3, 2, 2), ["a", "b"])
    [child] = children
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_pool_of_processes_in_a_reward_ends() -> None:
    """It ends its workers by SIGTERM, which the command itself hears and notes."""

    def pooled(images: Tensor, prompts: list[str]) -> Tensor:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return torch.tensor([float(n) for n in pool.map(len, prompts)])

    reward = limited(FunctionReward("pooled", pooled), 60)
    with signals.noted() as noted:
        assert score(reward, torch.zeros(2, 3, 2, 2), ["a", "bcd"]).tolist() == [1, 3]
    assert noted == []


def test_an_exit_is_told_from_where_it_was_called_also_where_a_tracker_replaced_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wandb.sdk.lib.exit_hooks import ExitHooks

    for name in ("exit", "excepthook"):  # what the hook replaces comes back
        monkeypatch.setattr(sys, name, getattr(sys, name))
    ExitHooks().hook()
    with pytest.raises(SystemExit) as error:
        sys.exit(0)
    assert f"raised in {__file__}, line" in in_words(error.value)


def test_an_error_that_cannot_be_shown_has_its_name() -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            raise ValueError

    def fails(images: Tensor, prompts: list[str]) -> Tensor:
        raise Shy

    with pytest.raises(RepeatableError, match=r"reward shy on 1 images.*: Shy; fix the reward"):
        score(FunctionReward("shy", fails), torch.zeros(1, 3, 2, 2), ["a"])
