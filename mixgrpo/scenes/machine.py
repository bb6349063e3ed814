"""Says in general words what a measurement ran on: no host name, no path."""

import torch

from mixgrpo.machine import processor


def machine(device: str = "cpu") -> str:
    """Processor, threads and torch version, such as "AMD EPYC, 1 thread, torch 2.13"."""
    threads = torch.get_num_threads()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__.partition('+')[0]}"
