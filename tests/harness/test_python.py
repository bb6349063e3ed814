"""`import harness` is quick, and gives what docs/python.md names."""

import subprocess
import sys

import pytest

import harness

HEAVY = ("pandas", "pyarrow", "matplotlib", "torch", "scipy", "harness.frames")


def test_the_import_loads_nothing_heavy() -> None:
    code = f"import harness, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


def test_loading_needs_neither_torch_nor_a_figure() -> None:
    code = (
        "import sys; from harness import load\n"
        "study = load('sweeps/tau.yaml', runs_dir='nowhere')\n"
        "print(len(study.runs), [m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "32 []\n", done.stderr


def test_what_there_is() -> None:
    assert {"load", "load_runs", "Study"} <= set(dir(harness))
    assert harness.Study.__name__ == "Study"
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        harness.laod  # type: ignore[attr-defined]  # noqa: B018
