"""Commands that messages print: each is provoked, taken out of the message as it is, and run."""

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.study.load import load_sweep
from harness.text import command_for

from .lab import HERE, SEARCHED, SMALL, Lab

ROOT = HERE.parents[1]
COMMAND = re.compile(r"python -m (?:harness|mixgrpo)\.\w+(?: (?:'[^']*'|[^\s`';()]+))*")
RUN_CONFIG = "iterations: 2\n"
SEARCH = """\
name: toy-search
question: Which?
trials: 2
seeds: 3
space: {window.interval: [1, 2, 3]}
"""


def run(words: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": SEARCHED, "CUDA_VISIBLE_DEVICES": "", "FAKE_TRAIN": "{}"},
        capture_output=True,
        text=True,
    )


def advised(text: str) -> list[list[str]]:
    """The commands in a message, each as words without `python`."""
    return [shlex.split(found.group().rstrip(".,"))[1:] for found in COMMAND.finditer(text)]


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "given_to", "advice", "dry"),
    [
        ("run.yaml", RUN_CONFIG, "harness.sweep", "mixgrpo.train", ["--dry-run"]),
        ("search.yaml", SEARCH, "harness.sweep", "harness.search", ["--plan"]),
        ("toy.yaml", SMALL, "harness.search", "harness.sweep", ["--plan"]),
        ("toy.yaml", SMALL, "mixgrpo.train", "harness.sweep", ["--plan"]),
        ("toy.yaml", SMALL, "harness.report", "harness.sweep", ["--plan"]),
        ("search.yaml", SEARCH, "harness.search --report", "harness.search", ["--plan"]),
    ],
)
def test_a_file_for_another_command_names_one_that_takes_it(
    tmp_path: Path, name: str, text: str, given_to: str, advice: str, dry: list[str]
) -> None:
    """In a folder whose name a shell would take for two words."""
    write(tmp_path / "my sweeps", name, text)
    module, *options = given_to.split()
    refused = run(["-m", module, f"my sweeps/{name}", *options], tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    commands = advised(refused.stderr)
    assert [words[1] for words in commands] == [advice], refused.stderr
    done = run([*commands[0], *dry], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_failed_run_is_looked_at_and_run_again_as_the_messages_say(lab: Lab) -> None:
    place = lab.root / "a b"
    place.mkdir()
    lab.root = place
    lab.write(SMALL)
    code, output = lab.finish("--jobs", "2", fake={"interval=3-seed0": {"raise_at": 2}})
    assert code == 1
    status = run(["-m", "harness.status", str(lab.file), "--runs", str(lab.runs)], place)
    for text in (output, status.stdout):
        commands = advised(text)
        assert [words[1] for words in commands] == ["harness.logs"], text
        shown = run(commands[0], place)
        assert (shown.returncode, "was told to raise" in shown.stdout) == (0, True), shown.stderr
    found = re.search(r"runs again by the same command with (--\w+ \w+)", output)
    assert found is not None
    code, output = lab.finish("--jobs", "2", *found[1].split())
    assert code == 0, output


@pytest.mark.parametrize("words", [[], ["--retry", "failed"]])
def test_what_failed_by_a_wrong_setting_is_to_be_corrected_first(
    lab: Lab, words: list[str]
) -> None:
    lab.write(SMALL)
    wrong = {"interval=3-seed0": {"config_error": "the key api_key_env names is not set"}}
    code, output = lab.finish("--jobs", "2", *words, fake=wrong)
    assert code == 1
    advice = "correct the file, or what the error names, and run the same command"
    (line,) = (line for line in output.splitlines() if advice in line)
    assert ("(with --retry failed where the file is the same)" in line) == (not words)
    assert "what failed by an exception" not in output
    # As both say: corrected, and the same command.
    assert lab.finish("--jobs", "2", "--retry", "failed")[0] == 0


def test_the_message_of_a_failed_reward_names_the_option_that_a_sweep_needs() -> None:
    from mixgrpo.rewards import calls

    assert "(harness.sweep and harness.search: with --retry failed)" in calls._MEND


def test_a_file_that_looks_like_an_option_is_advised_as_a_path(tmp_path: Path) -> None:
    write(tmp_path, "-x.yaml", SMALL)
    for module in ("mixgrpo.train", "harness.search"):
        refused = run(["-m", module, "./-x.yaml"], tmp_path)
        assert refused.returncode == 2, refused.stderr
        (words,) = advised(refused.stderr)
        assert words == ["-m", "harness.sweep", "./-x.yaml"]
        assert run([*words, "--plan"], tmp_path).returncode == 0
    sweep = load_sweep(Path(os.path.relpath(tmp_path / "-x.yaml")))
    sweep = replace(sweep, file=Path("-x.yaml"))
    assert command_for("harness.sweep", sweep) == "python -m harness.sweep ./-x.yaml"


def test_a_command_for_a_chosen_sweep_is_that_sweep_again(tmp_path: Path) -> None:
    text = SMALL + "profiles:\n  small: {}\n  other: {seeds: 2}\n"
    file = write(tmp_path / "my sweeps", "toy.yaml", text)
    sweep = load_sweep(file, "other", ["prompts.train=null", "iterations=4"])
    words = shlex.split(command_for("harness.sweep", sweep, "--plan", runs=tmp_path / "r 1"))
    done = run(words[1:], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "toy (other): 2 arms x 2 seeds = 4 runs" in done.stdout
    assert "(4 iterations)" in done.stdout


KNOWN: dict[str, str] = {
    "harness/text.py": "what the others are made with",
    "harness/analysis/measurements.py": "harness.sweep, by `command_for`",
    "harness/overall/page.py": "says what made a page: `harness.report --all`, in tests/docs",
    "harness/reporting/page.py": "",
    "harness/reference.py": "says what made docs/sweep-reference.md, in tests/docs",
    "harness/report.py": "command_sweep and command_report, in tests/harness/test_report.py",
    "harness/reporting/content.py": "the same",
    "harness/runs/logs.py": "names harness.status, which takes a file",
    "harness/searching/confirm.py": "says what made a confirmation's file",
    "mixgrpo/models/embeddings.py": "names mixgrpo.embed, run in tests/mixgrpo/test_embed.py",
    "mixgrpo/reference.py": "says what made docs/settings.md, in tests/docs",
    "mixgrpo/scenes/clarity.py": "what made the weights",
    "mixgrpo/pretrain.py": "what made the weights",
}
"""Files whose texts name a command, and where that is run, if not here."""


def texts(file: Path) -> list[str]:
    """The string literals of a module, without its docstrings."""
    tree = ast.parse(file.read_text())
    bare = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


def test_every_text_that_names_a_command_is_known() -> None:
    """A new one is put together by `harness.text` and run here, or listed with who runs it."""
    found = {
        file.relative_to(ROOT).as_posix()
        for package in ("harness", "mixgrpo")
        for file in (ROOT / package).rglob("*.py")
        if any("python -m " in text for text in texts(file))
    }
    assert found <= set(KNOWN), found - set(KNOWN)


def test_what_is_taken_out_of_a_message() -> None:
    text = "run `python -m harness.sweep 'a b.yaml' --set x=1` first; or python -m harness.logs a."
    assert advised(text) == [
        ["-m", "harness.sweep", "a b.yaml", "--set", "x=1"],
        ["-m", "harness.logs", "a"],
    ]


def test_a_search_whose_own_settings_alone_are_best_promises_no_confirmation(
    tmp_path: Path,
) -> None:
    """Nothing is to be confirmed: the page must not say that a command confirms it."""
    import pandas as pd

    from harness.searching import confirm
    from harness.searching.file import load_search
    from harness.searching.outcome import Outcome, answer, more

    file = write(
        tmp_path / "my sweeps", "search.yaml", SEARCH + "enqueue: [{window.interval: 2}]\n"
    )
    search = load_search(file)
    trials = pd.DataFrame(
        {
            "number": [0, 1],
            "arm": ["own", "other"],
            "state": ["complete", "pruned"],
            "enqueued": [True, False],
            "free": [False, False],
            "feasible": [True, True],
            "reward": [0.7, float("nan")],
            "evaluations": [100.0, float("nan")],
            "spent": [3.0, 1.0],
            "window.interval": [2, 1],
        }
    )
    assert confirm.sweep_text(search, trials, tmp_path) is None
    outcome = Outcome(search, trials)
    assert answer(outcome) == (
        "Nothing is to be confirmed: no finished trial beats the file's own settings."
    )
    text = more(outcome)[0]
    assert text.startswith("What is left of the search")
    (words,) = advised(text)
    done = run([*words, "--plan"], file.parent)
    assert done.returncode == 0, done.stderr
    unfinished = Outcome(search, trials.assign(state="running"))
    assert "too few trials have finished" in answer(unfinished)
