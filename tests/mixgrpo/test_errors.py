"""Errors with parts, and several of them at once."""

import pickle
import subprocess
import sys

import pytest

from mixgrpo.errors import ConfigError, ErrorList, Place, all_errors, shown


def test_an_error_is_one_sentence_or_its_parts() -> None:
    assert str(ConfigError("it is wrong")) == "it is wrong"
    error = ConfigError("is 3", place=Place("a.yaml", 7), key="window.size", fix="write 4")
    assert str(error) == "a.yaml:7: window.size: is 3; write 4"
    assert (error.file, error.line, error.key, error.fix) == ("a.yaml", 7, "window.size", "write 4")
    assert error.without_place == "window.size: is 3; write 4"
    assert str(ConfigError("is 3", place=Place("--set x=3"))) == "--set x=3: is 3"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_several_errors_are_one_exception_and_each_is_said_once() -> None:
    errors = ErrorList()
    for text in ("a", "b", "a"):
        with errors.collected():
            raise ConfigError(text, place=Place("f", 1))
    with pytest.raises(ConfigError) as raised:
        errors.raise_all()
    assert [str(one) for one in raised.value.errors] == ["f:1: a", "f:1: b"]
    assert str(raised.value) == "f:1: a (and 1 more error)"
    nested = all_errors([raised.value, ConfigError("c")])
    assert [one.message for one in nested.errors] == ["a", "b", "c"]
    ErrorList().raise_all()


def test_the_command_line_prints_a_line_for_each() -> None:
    code = (
        "from mixgrpo.cli import run\nfrom mixgrpo.errors import *\n"
        "def main(): raise all_errors(ConfigError(str(i)) for i in range({}))\nrun(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(2)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: 0\nerror: 1\n")
    done = subprocess.run(
        [sys.executable, "-c", code.format(25)], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "error: and 5 more errors"
    assert done.stderr.count("\n") == 21


def test_a_value_is_shown_in_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 10**6)) <= 60
    assert shown(10**5000) == "a very large int"
