"""Fixtures for the tests of the harness."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    lab.write()
    yield lab
    for launcher in lab.launchers:
        if launcher.poll() is None:
            launcher.kill()
            launcher.communicate()
    for state in lab.states().values():
        if state.state == "running" and state.attempts:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.attempts[-1].pid, signal.SIGKILL)
