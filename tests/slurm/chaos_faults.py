"""The faults of tests/slurm/chaos.py: each does one bad thing to a sweep that runs, and says what.

A fault that finds nothing to hit raises `Missed` and is tried again later. What must be undone is
undone at once, or later by `Chaos.heal_due`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.runs.folder import read_attempts
from harness.runs.records import Attempt
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER

from .chaos_books import finished, status_calls
from .cluster import Cluster
from .processes import start_time

DISK_MB = 400
"""Size of the file system with the run folders; they take 241 MB."""


DELAY_S = 1.3
"""What each of the 21 scores of a run takes, so that faults hit runs under way."""


class Missed(Exception):
    """There was nothing for a fault to hit."""


@dataclass
class Chaos:
    """A sweep under attack, and what there is to attack."""

    cluster: Cluster
    root: Path
    rng: random.Random
    environment: dict[str, str]
    """Of the launcher, and so of its jobs."""
    launcher: subprocess.Popen[bytes] | None = None
    heals: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    @property
    def runs(self) -> Path:
        return self.disk / "runs"

    @property
    def steer(self) -> Path:
        return self.root / "steer"

    def folders(self) -> list[Path]:
        """The run folders, in an order of chance."""
        found = sorted((self.runs / "chaos").glob("interval=*"))
        self.rng.shuffle(found)
        return found

    def slow_down(self, delay_s: float) -> None:
        """Let every call of the reward take so long from now on."""
        (self.steer / "delay.new").write_text(str(delay_s))
        (self.steer / "delay.new").rename(self.steer / "delay")

    def training(self, most: int = 16) -> tuple[Path, Attempt]:
        """A run that has measured something, at `most` so many iterations, and goes on: its folder
        and its attempt."""
        for folder in self.folders():
            attempts = read_attempts(folder)
            if not attempts or finished(folder):
                continue
            alive = attempts[-1].ended is None and start_time(attempts[-1].pid)
            if not alive or not lease.is_held(folder / OWNER):
                continue
            if 0 < _iterations(folder) <= most:
                return folder, attempts[-1]
        raise Missed

    def later(self, seconds: float, heal: Callable[[], object]) -> None:
        self.heals.append((time.monotonic() + seconds, heal))

    def heal_due(self, all_: bool = False) -> None:
        """Undo what is to be undone by now. What the controller does not hear is tried again."""
        for item in list(self.heals):
            if all_ or time.monotonic() >= item[0]:
                with contextlib.suppress(RuntimeError, TimeoutError):
                    item[1]()
                    self.heals.remove(item)

    @contextmanager
    def owning(self, folder: Path) -> Iterator[None]:
        """Own a run, so that no process writes while its files are damaged."""
        held = lease.acquire(folder / OWNER, patience_s=0.5)
        if held is None:
            raise Missed
        try:
            yield
        finally:
            held.release()


def _iterations(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while start_time(pid):
        time.sleep(0.01)


def kill_trainer(chaos: Chaos) -> str:
    folder, attempt = chaos.training()
    _kill(attempt.pid)
    return f"{folder.name}, process {attempt.pid} on {attempt.host}"


def kill_launcher(chaos: Chaos) -> str:
    launcher = chaos.launcher
    if launcher is None or launcher.poll() is not None:
        raise Missed
    launcher.kill()
    launcher.wait()
    return f"process {launcher.pid}"


def _on_a_node(chaos: Chaos) -> tuple[str, Attempt]:
    """A node that is well, and an attempt that trains on it."""
    _, attempt = chaos.training()
    node = attempt.host
    if not node or not chaos.cluster.node_states()[node].startswith(("mixed", "allocated")):
        raise Missed
    return node, attempt


def _power_on(chaos: Chaos, node: str) -> None:
    with contextlib.suppress(RuntimeError):  # another fault's end has started it
        chaos.cluster.start_node_daemon(node)


def kill_slurmd(chaos: Chaos) -> str:
    node, _ = _on_a_node(chaos)
    chaos.cluster.kill_node_daemon(node)
    # Sometimes before and mostly after the controller has given the node up.
    after = chaos.rng.choice([3, 15, 18])
    chaos.later(after, lambda: _power_on(chaos, node))
    return f"{node}, back after {after} s"


def power_off(chaos: Chaos) -> str:
    node, _ = _on_a_node(chaos)
    chaos.cluster.power_off(node)
    after = chaos.rng.choice([2, 14])
    chaos.later(after, lambda: _power_on(chaos, node))
    return f"{node} with all on it, back after {after} s"


def node_down(chaos: Chaos) -> str:
    node, _ = _on_a_node(chaos)
    chaos.cluster.set_down(node)
    chaos.later(6, lambda: chaos.cluster.resume(node))
    return node


def kill_slurmctld(chaos: Chaos) -> str:
    saved = chaos.rng.random() < 0.5
    chaos.cluster.kill_controller(saved)
    time.sleep(chaos.rng.choice([0.5, 4.0]))
    chaos.cluster.start_controller()
    return "its queue saved" if saved else "in the midst of things"


def scancel(chaos: Chaos) -> str:
    folder, attempt = chaos.training()
    chaos.cluster.run("scancel", str(attempt.job_id))
    return f"{folder.name}, job {attempt.job_id}"


def time_limit(chaos: Chaos) -> str:
    """Slurm looks at the limits every 30 s: signal and end come together."""
    folder, attempt = chaos.training(most=8)
    chaos.slow_down(4.0)  # or it would be finished before
    chaos.later(30, lambda: chaos.slow_down(DELAY_S))
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
    chaos.cluster.run("scontrol", "update", f"jobid={attempt.job_id}", f"EndTime={end}")
    return f"{folder.name}, job {attempt.job_id} reaches it within 30 s"


def time_limit_warned(chaos: Chaos) -> str:
    folder, attempt = chaos.training()
    chaos.cluster.run("scontrol", "update", f"jobid={attempt.job_id}", "TimeLimit=1")
    return f"{folder.name}, job {attempt.job_id} has a minute, and the signal 40 s before its end"


def preempt_signal(chaos: Chaos) -> str:
    return _preempt(chaos, True)


def preempt_silently(chaos: Chaos) -> str:
    return _preempt(chaos, False)


def _preempt(chaos: Chaos, user_signal: bool) -> str:
    node, attempt = _on_a_node(chaos)
    chaos.cluster.preempt_with_signal(user_signal)
    job = chaos.cluster.run(
        *("sbatch", "--parsable", "--partition=high", "--exclusive", f"--nodelist={node}"),
        *("--job-name=preemptor", "--output=/dev/null", "--wrap=sleep 4"),
    )
    try:
        # Signals at once; ten seconds later (GraceTime) the end.
        chaos.cluster.wait(lambda: not start_time(attempt.pid), "preemption", 20)
    except TimeoutError:
        chaos.cluster.run("scancel", job)
        raise Missed from None
    return f"{node}, by job {job}"


def _fill(chaos: Chaos, leave: int) -> str:
    """Leave so many bytes of the disk for some seconds."""
    chaos.training()
    filler = chaos.disk / "filler"
    try:
        with filler.open("wb", buffering=0) as stream:
            state = os.statvfs(chaos.disk)
            room = state.f_bavail * state.f_frsize - leave
            # Processes write beside it, so the last part goes by pieces.
            with contextlib.suppress(OSError):
                os.posix_fallocate(stream.fileno(), 0, max(1, room - 1_000_000))
            stream.seek(0, os.SEEK_END)
            with contextlib.suppress(OSError):
                while leave == 0:
                    stream.write(bytes(4096))
        time.sleep(chaos.rng.uniform(3, 6))
    finally:
        filler.unlink()
    return f"{leave} bytes left"


def full_disk_metrics(chaos: Chaos) -> str:
    return _fill(chaos, 0)


def full_disk_checkpoint(chaos: Chaos) -> str:
    """Room for lines and pictures, and for a part of a checkpoint (5 MB)."""
    return _fill(chaos, 1_000_000)


def read_only(chaos: Chaos) -> str:
    folder, _ = chaos.training()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        time.sleep(chaos.rng.uniform(3, 6))
    finally:
        # Lazily: a process may have a file of it open.
        subprocess.run(["umount", "-l", folder], check=True)
    return folder.name


def _cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def _killed(chaos: Chaos) -> tuple[Path, Attempt]:
    """A run whose process has just died, as the crash of its machine leaves it."""
    folder, attempt = chaos.training()
    _kill(attempt.pid)
    return folder, attempt


def truncate_metrics(chaos: Chaos) -> str:
    folder, _ = _killed(chaos)
    file = folder / "metrics.jsonl"
    with chaos.owning(folder):
        whole = file.read_bytes()
        # Within a line: the last one, or any.
        if chaos.rng.random() < 0.5:
            cut = whole.rstrip(b"\n").rfind(b"\n") + 1 + 40
        else:
            cut = chaos.rng.randrange(len(whole) - 1)
        os.truncate(file, cut)
    return f"{folder.name}, {cut} of {len(whole)} bytes left"


def truncate_checkpoint(chaos: Chaos) -> str:
    folder, _ = _killed(chaos)
    with chaos.owning(folder):
        places = sorted(p for p in folder.glob("checkpoints/*") if p.name.isdigit())
        if not places:
            raise Missed
        file = chaos.rng.choice(sorted(places[-1].iterdir()))
        _cut(file)
    return str(file.relative_to(chaos.runs / "chaos"))


def truncate_result(chaos: Chaos) -> str:
    for folder in chaos.folders():
        if finished(folder):
            with chaos.owning(folder):
                _cut(folder / "result.json")
            return folder.name
    raise Missed


def skew(chaos: Chaos) -> str:
    """One node is an hour ahead or behind, until the next time."""
    for name in chaos.cluster.nodes:
        chaos.cluster.skew(name, 0)
    node, seconds = chaos.rng.choice(chaos.cluster.nodes), chaos.rng.choice([3600, -3600])
    chaos.cluster.skew(node, seconds)
    return f"tasks that start on {node} see {seconds:+d} s"


def _mood(mood: str) -> Callable[[Chaos], str]:
    def misbehave(chaos: Chaos) -> str:
        file = chaos.steer / f"mood-{mood}"
        file.touch()
        limit = time.monotonic() + 10
        while file.exists() and time.monotonic() < limit:
            time.sleep(0.1)
        try:
            file.unlink()
        except FileNotFoundError:
            taken = max(chaos.steer.glob(f"taken-*-mood-{mood}"), key=lambda f: f.stat().st_ctime)
            return f"in process {taken.name.split('-')[1]}"
        raise Missed

    return misbehave


def many_status_calls(chaos: Chaos) -> str:
    wrong = status_calls(100, chaos.runs, chaos.environment)
    if wrong:
        print(f"  {wrong[0]}", file=sys.stderr)
        raise AssertionError(f"{len(wrong)} of 100 status calls failed: {wrong[0]}")
    return "all answered with valid JSON"


FAULTS: dict[str, Callable[[Chaos], str]] = {
    "kill -9 of a training process": kill_trainer,
    "kill -9 of the launcher": kill_launcher,
    "kill -9 of slurmd": kill_slurmd,
    "kill -9 of slurmctld, restart": kill_slurmctld,
    "scancel": scancel,
    "node down": node_down,
    "power failure of a node": power_off,
    "preemption with the user's signal": preempt_signal,
    "preemption without it": preempt_silently,
    "time limit": time_limit,
    "time limit with warning": time_limit_warned,
    "full disk during metrics": full_disk_metrics,
    "full disk during a checkpoint": full_disk_checkpoint,
    "read-only run folder": read_only,
    "truncated metrics": truncate_metrics,
    "truncated checkpoint": truncate_checkpoint,
    "truncated result": truncate_result,
    "clock skew": skew,
    "reward raises": _mood("raise"),
    "reward hangs": _mood("hang"),
    "reward is NaN": _mood("nan"),
    "reward of a wrong shape": _mood("shape"),
    "a hundred status calls": many_status_calls,
}
