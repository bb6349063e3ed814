"""Install the Debian packages that a throw-away Slurm needs, without starting any service."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = [
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "munge",
    "mariadb-server",
    "gcc",
    "libc6-dev",
]
PROGRAMS = ["slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "gcc"]
# Daemons lie outside an ordinary user's search path.
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_programs() -> list[str]:
    """The programs a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SEARCH_PATH)]


def install() -> None:
    """Install what is missing; SystemExit with one sentence where that is impossible."""
    if not missing_programs():
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise SystemExit("error: apt-get and root are needed to install: " + " ".join(PACKAGES))
    # Asked by the packages' scripts before they start a service; 101 means no.
    forbid = not POLICY.exists()
    if forbid:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        ):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if forbid:
            POLICY.unlink()
