"""Seconds per phase of one iteration, and the memory it took."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Laps of one iteration; waits for the device only at the end of a phase."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._begin = self._last = now(device)
        self._laps: dict[str, float] = {}
        self._processor_begin = time.process_time()
        self._processor_apart = 0.0

    def lap(self, *phases: str, shares: tuple[float, ...] = ()) -> None:
        """End a phase. Several that ran side by side get the time in proportion to `shares`."""
        moment = now(self._device)
        total = sum(shares)
        parts = [s / total for s in shares] if total else [1 / len(phases)] * len(phases)
        for phase, part in zip(phases, parts, strict=True):
            self._laps[phase] = self._laps.get(phase, 0.0) + part * (moment - self._last)
        self._last = moment

    @contextmanager
    def apart(self, phase: str) -> Iterator[None]:
        """A phase that is no part of the method, and whose processor time is not counted."""
        begin = time.process_time()
        yield
        self._processor_apart += time.process_time() - begin
        self.lap(phase)

    def wait(self) -> None:
        """What has passed since the last phase belongs to none."""
        self._last = now(self._device)

    def seconds(self) -> dict[str, float]:
        """By phase, and `seconds_cpu`: this process's time on the processor without the phases
        apart. What else the machine does lengthens the others and not this one."""
        processor = time.process_time() - self._processor_begin - self._processor_apart
        total = now(self._device) - self._begin
        named = {f"seconds_{phase}": value for phase, value in self._laps.items()}
        other = total - sum(self._laps.values())
        return {**named, "seconds_other": other, "seconds_total": total, "seconds_cpu": processor}


def now(device: str) -> float:
    """The time when the device has done what it was asked for, in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_peak(device: str) -> int:
    """Bytes: of the device where there is one, else the process's largest resident size."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
