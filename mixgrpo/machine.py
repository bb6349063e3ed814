"""What this machine is called, without asking torch."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, such as "AMD EPYC"; the architecture where the system gives none."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
