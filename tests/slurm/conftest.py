"""The cluster that the tests of this folder share, whole again before each of them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..harness.lab import Lab
from .cluster import Cluster
from .packages import missing_programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of four nodes with accounting, as the last test left it: tests ask for `slurm`."""
    why_not = reason_to_skip()
    if why_not:
        pytest.skip(why_not)
    one = Cluster(Path(tmp_path_factory.mktemp("slurm")))
    one.up(owner=os.getpid())
    yield one
    one.down()


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster with every node idle, no job and no fault; os.environ leads clients to it."""
    cluster.reset()
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SQUEUE"))]:
        monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.reset()


SITE = "poll_s: 1\ngpus: 0\ncpus: 1\nmemory_gb: 1\ntime: 5\nsignal_s: 10\n"


@pytest.fixture
def lab(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A sweep of two arms x two seeds with the fake trainer, whose jobs go to the cluster."""
    (tmp_path / "site.yaml").write_text(SITE)
    monkeypatch.setenv("MIXGRPO_SLURM", str(tmp_path / "site.yaml"))
    one = Lab(tmp_path, executor=("--executor", "slurm"))
    one.write()
    yield one
    for launcher in one.launchers:
        if launcher.poll() is None:
            launcher.kill()
            launcher.communicate()


def reason_to_skip() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if sys.platform != "linux":
        return "a Slurm cluster can only be started on Linux"
    if os.geteuid() != 0:
        return "only root can start a Slurm cluster"
    missing = missing_programs()
    if missing:
        return f"no {', '.join(missing)}; as root: python3 -m tests.slurm.cluster install"
    return None
