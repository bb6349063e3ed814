"""Many runs: sweeps, how they run, and what they say.

import harness
study = harness.load("sweeps/tau.yaml")      # data frames, comparisons, plots (docs/python.md)
study = harness.load_runs("runs/tau")        # without the sweep file
"""

from typing import TYPE_CHECKING, Any

import mixgrpo  # noqa: F401  # first, so that a command hears signals while it is imported

if TYPE_CHECKING:
    from harness.frames.load import load as load
    from harness.frames.load import load_runs as load_runs
    from harness.frames.study import Study as Study

_FROM_PYTHON = {
    "load": "harness.frames.load",
    "load_runs": "harness.frames.load",
    "Study": "harness.frames.study",
}


def __getattr__(name: str) -> Any:
    """What is for users of Python is imported when it is asked for: commands start without it."""
    if name in _FROM_PYTHON:
        from importlib import import_module

        return getattr(import_module(_FROM_PYTHON[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_PYTHON})
