"""What this machine is called, in general words: no host name, no path."""

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


def machine(device: str = "cpu") -> str:
    """Processor, threads and torch version, such as "AMD EPYC, 1 thread, torch 2.13"."""
    import torch

    threads = torch.get_num_threads()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"
