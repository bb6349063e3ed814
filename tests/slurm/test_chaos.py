"""Three minutes of faults at random on a sweep in Slurm, after which its books must balance."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .chaos_faults import FAULTS
from .cluster import REPOSITORY
from .conftest import reason_to_skip

MINUTES = 3
PATIENCE_S = 900


def test_a_sweep_survives_every_fault_with_the_table_of_an_undisturbed_one(tmp_path: Path) -> None:
    why_not = reason_to_skip()
    if why_not:
        pytest.skip(why_not)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("a disk of known size needs the right to mount one")
    subprocess.run(["umount", str(tmp_path)], check=True)
    command = [sys.executable, "-m", "tests.slurm.chaos", "--minutes", str(MINUTES), "--seed", "0"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    for fault in FAULTS:
        count = re.search(rf"^ +(\d+)  {re.escape(fault)}$", done.stdout, re.MULTILINE)
        assert count is not None
        assert int(count[1]) >= 1, fault
