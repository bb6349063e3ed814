"""Fixtures for the tests of the harness."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 512 KiB where the lab keeps its runs. To be asked for before `lab`."""
    place = tmp_path / "runs"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let the tests mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


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
