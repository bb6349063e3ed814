"""The one command does what `python -m` of each module does."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.main import COMMANDS

ROOT = Path(__file__).parents[2]
START = "import sys; sys.argv[0] = 'mixgrpo'; from harness.main import main; main()"


def mixgrpo(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", START, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_terminal_that_lacks_a_sign_is_shown_its_code(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "signs.yaml"
    file.write_text(
        "name: signs\nquestion: Is τ = 25 “best” – or −1?\nseeds: 1\n"
        "arms: {a: {label: 'τ ≤ 25', window.interval: 25}, b: {label: Grüße, window.size: 9}}\n",
        encoding="utf-8",
    )
    for words in (["sweep", str(file), "--plan"], ["sweep", str(tmp_path / "no–file.yaml")]):
        done = mixgrpo(*words, **ENCODINGS[encoding])
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr
        assert done.returncode == (0 if "--plan" in words else 2), done.stderr
    assert "file.yaml: no such file" in done.stderr


def test_every_command_is_there_and_none_is_forgotten() -> None:
    for command in COMMANDS.values():
        assert callable(importlib.import_module(command.module).main)
    files = [*ROOT.glob("harness/*.py"), *ROOT.glob("mixgrpo/*.py")]
    commands = {
        f"{file.parent.name}.{file.stem}"
        for file in files
        if re.search(r"(cli\.run|run_command)\(main(, ranks=True)?\)", file.read_text())
    }
    own = {"harness.reference", "mixgrpo.reference", "mixgrpo.pretrain"}  # of developers
    assert {command.module for command in COMMANDS.values()} == commands - own


def test_help_lists_them_without_importing_one() -> None:
    done = mixgrpo("--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", done.stdout, re.MULTILINE)
    script = START.replace("main()", "\ntry: main()\nfinally: print('torch' in sys.modules)")
    asked = [sys.executable, "-c", script, "--help"]
    assert subprocess.check_output(asked, cwd=ROOT, text=True).endswith("False\n")


def test_a_command_is_called_with_its_words_and_ends_with_its_code() -> None:
    done = mixgrpo("sweep", "sweeps/smok.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    expected = "error: sweeps/smok.yaml: no such file; did you mean sweeps/smoke.yaml?\n"
    assert done.stderr == expected
    usage = mixgrpo("status", "--help").stdout
    assert "Usage: mixgrpo status [OPTIONS]" in usage


@pytest.mark.parametrize("words", [["swep"], ["--nope"]])
def test_what_is_no_command_is_one_line(words: list[str]) -> None:
    done = mixgrpo(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: No such ")


def test_the_version_is_the_installed_one() -> None:
    from mixgrpo import __version__

    assert mixgrpo("--version").stdout == f"mixgrpo {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mixgrpo sta", ["status"]),
        ("mixgrpo sweep --re", ["--reports", "--rerun", "--retry"]),
    ],
)
def test_a_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = mixgrpo(_MIXGRPO_COMPLETE="complete_bash", **asked)
    assert done.stdout.split() == offered
