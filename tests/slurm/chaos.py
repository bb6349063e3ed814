"""Faults at random on a sweep of 24 runs on a real Slurm, and whether its books balance after it.

    python -m tests.slurm.chaos --minutes 3 --seed 0 [--root DIR] [--keep]

The same sweep runs undisturbed in one process first. Then a launcher brings it to the cluster and
is started again whenever it ends, while every kind of fault (tests/slurm/chaos_faults.py) hits it
once, and again until the minutes are over. At the end everything is mended, the launcher finishes,
and the runs must be those of the undisturbed sweep (tests/slurm/chaos_books.py). Exit code 0 where
they are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.study.load import load_sweep
from harness.study.spec import Sweep

from . import chaos_reward
from .chaos_books import SWEEP, balance, finished, ledger_balances, processes, reasons
from .chaos_faults import DELAY_S, DISK_MB, FAULTS, Chaos, Missed
from .cluster import REPOSITORY, Cluster
from .processes import kill

NODES = 3
SITE = "{poll_s: 2, gpus: 0, cpus: 1, memory_gb: 30, time: 5, signal_s: 40}\n"
"""Two jobs are on a node at once. The signal comes early enough for Slurm's look every 30 s."""
SLOTS = 2 * NODES
OVERTIME_S = 120.0
"""What was not hit when the minutes were over is waited for so long."""
DRAIN_S = 300.0
RETRY_PAUSE_S = 2.0


def main() -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.chaos")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="an empty folder to work in")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    root = (given.root or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(root / "slurm", NODES)
    (root / "disk").mkdir()
    size = ["-o", f"size={DISK_MB}m"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", root / "disk"], check=True)
    try:
        return _main(cluster, root, given.minutes, given.seed)
    finally:
        cluster.down()
        kill(set(processes(root)))
        if given.keep:
            shutil.copytree(root / "disk", root / "kept", symlinks=True)
        subprocess.run(["umount", "-l", root / "disk"], check=True)
        if not given.keep:
            shutil.rmtree(root)


def _main(cluster: Cluster, root: Path, minutes: float, seed: int) -> int:
    (root / "steer").mkdir()
    (root / "steer" / "delay").write_text(str(DELAY_S))
    (root / "slurm.yaml").write_text(SITE)
    site = chaos_reward.install(root / "site")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))},
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(site)]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MIXGRPO_SLURM": str(root / "slurm.yaml"),
    }
    sys.path.insert(0, str(site))  # the sweep's hashes depend on the reward being there
    sweep = load_sweep(SWEEP)
    begin = time.monotonic()
    quiet = subprocess.Popen(
        [*_command("inline"), "--runs", root / "quiet", "--reports", root / "undisturbed-reports"],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    cluster.up(owner=os.getpid())
    if quiet.wait(timeout=600):
        raise RuntimeError("the undisturbed sweep failed")
    _say(begin, "the undisturbed sweep is finished")
    environment |= {**cluster.environment, "CHAOS_STEER": str(root / "steer")}
    chaos = Chaos(cluster, root, random.Random(seed), environment)
    launchers: Counter[int] = Counter()
    problems: list[str] = []
    disturbed = time.monotonic()
    done = _attack(chaos, begin, minutes * 60, launchers, problems)
    problems += _finish(chaos, sweep, begin, launchers)
    elapsed = time.monotonic() - disturbed
    spent: dict[str, Any] = json.loads(_status(chaos, "--json"))
    problems += balance(sweep, root, chaos.runs, root / "quiet", environment)
    problems += ledger_balances(sweep, chaos.runs / sweep.name, spent, SLOTS * elapsed)
    _print_sheet(sweep, chaos, done, launchers, spent)
    for problem in problems:
        print(f"DOES NOT BALANCE: {problem}")
    if not problems:
        print("the books balance")
    return 1 if problems else 0


def _attack(
    chaos: Chaos, begin: float, seconds: float, launchers: Counter[int], problems: list[str]
) -> Counter[str]:
    """Every fault once in an order of chance, again until the time is over. How often each hit."""
    done: Counter[str] = Counter()
    todo: list[str] = []
    start = time.monotonic()
    while True:
        left = start + seconds - time.monotonic()
        missing = [name for name in FAULTS if not done[name]]
        if left < 0 and (not missing or left < -OVERTIME_S):
            break
        _keep_launcher(chaos, launchers)
        chaos.heal_due()
        if not todo:
            todo = missing if left < 0 or missing else list(FAULTS)
            chaos.rng.shuffle(todo)
        name = todo.pop(0)
        try:
            what = FAULTS[name](chaos)
        except Missed:
            # Nothing to hit right now: the others first.
            todo.append(name)
            time.sleep(0.5)
            _reopen(chaos)
            continue
        except (OSError, RuntimeError, TimeoutError, KeyError) as error:
            _say(begin, f"{name}: could not be done: {error!r}"[:200])
            todo.append(name)
            time.sleep(1)
            continue
        except AssertionError as error:
            what = str(error)
            problems.append(f"{name}: {what}")
        done[name] += 1
        _say(begin, f"{name}: {what}")
        time.sleep(chaos.rng.uniform(0.5, 2.5))
    problems += [f"never happened: {name}" for name in FAULTS if not done[name]]
    return done


def _reopen(chaos: Chaos) -> None:
    """Where most runs are finished, one loses its end: there is work to disturb again."""
    whole = [f for f in chaos.folders() if finished(f)]
    if len(whole) < 16:
        return
    folder = whole[0]
    try:
        with chaos.owning(folder):
            file = folder / "metrics.jsonl"
            os.truncate(file, file.stat().st_size // 2)
            (folder / "result.json").unlink()
    except (Missed, OSError):
        return


def _command(executor: str) -> list[str | Path]:
    return [sys.executable, "-m", "harness.sweep", SWEEP, "--executor", executor]


def _keep_launcher(chaos: Chaos, launchers: Counter[int], *more: str) -> None:
    """Start a launcher where none is running, a moment after the last one ended."""
    if chaos.launcher is not None:
        code = chaos.launcher.poll()
        if code is None:
            return
        launchers[code] += 1
        time.sleep(RETRY_PAUSE_S)
    command = [*_command("slurm"), "--runs", chaos.runs, "--reports", chaos.root / "reports"]
    with (chaos.root / "launcher.log").open("ab") as log:
        chaos.launcher = subprocess.Popen(
            [*command, *more],
            env=chaos.environment,
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
        )


def _finish(chaos: Chaos, sweep: Sweep, begin: float, launchers: Counter[int]) -> list[str]:
    """Mend everything and let the sweep come to its end. What stands against it."""
    for mood in chaos.steer.glob("mood-*"):
        mood.unlink()
    cluster = chaos.cluster
    for name in cluster.nodes:
        cluster.skew(name, 0)
    for _ in range(10):  # a controller under load may not answer at once
        chaos.heal_due(all_=True)
    assert not chaos.heals
    chaos.slow_down(0.0)
    cluster.preempt_with_signal(True)
    for name in cluster.nodes:
        cluster.resume(name)
    _say(begin, "no more faults; everything is mended")
    limit = time.monotonic() + DRAIN_S
    problems = []
    # The one that is there does not run again what failed by an exception.
    if chaos.launcher is not None and chaos.launcher.poll() is None:
        chaos.launcher.terminate()
        chaos.launcher.wait(timeout=60)
    while time.monotonic() < limit:
        _keep_launcher(chaos, launchers, "--retry", "failed")
        assert chaos.launcher is not None
        try:
            if chaos.launcher.wait(timeout=3) == 0:
                launchers[0] += 1
                break
        except subprocess.TimeoutExpired:
            _release_held(cluster, begin)
    else:
        problems.append(f"the sweep was not finished {DRAIN_S:g} s after the last fault")
        print(_status(chaos))
    _say(begin, "the sweep is finished")
    try:
        cluster.wait(lambda: not cluster.jobs(), "an empty queue", 40)
    except TimeoutError:
        problems.append(f"still in the queue: {cluster.jobs()}")
    if "Traceback" in (chaos.root / "launcher.log").read_text():
        problems.append("a launcher ended with a traceback; see launcher.log (--keep)")
    odd = set(launchers) - {0, 1, 130, 143, -9}
    if odd:
        problems.append(f"launchers ended with {sorted(odd)}")
    return problems


def _release_held(cluster: Cluster, begin: float) -> None:
    """What the status tells its reader to do with jobs that a node failed to start."""
    for job in cluster.jobs():
        if "held" in job.reason.lower():
            cluster.run("scontrol", "release", job.id)
            _say(begin, f"released job {job.id}: {job.reason}")


def _status(chaos: Chaos, *more: str) -> str:
    command = [sys.executable, "-m", "harness.status", str(SWEEP), "--runs", str(chaos.runs), *more]
    done = subprocess.run(command, env=chaos.environment, capture_output=True, text=True)
    return done.stdout or done.stderr


def _print_sheet(
    sweep: Sweep,
    chaos: Chaos,
    done: Counter[str],
    launchers: Counter[int],
    spent: dict[str, Any],
) -> None:
    print("\nfaults")
    for name in FAULTS:
        print(f"  {done[name]:3d}  {name}")
    print("attempts, by how they ended")
    for reason, count in sorted(reasons(sweep, chaos.runs / sweep.name).items()):
        print(f"  {count:3d}  {reason}")
    print("jobs, by Slurm's word for how they ended")
    rows = chaos.cluster.run("sacct", "-X", "-D", "-n", "-P", "-S", "now-1day", "-o", "State")
    words = Counter(row.split()[0] for row in rows.splitlines())
    for word, count in sorted(words.items()):
        print(f"  {count:3d}  {word}")
    print("launchers, by exit code")
    for code, count in sorted(launchers.items()):
        print(f"  {count:3d}  {code}")
    print(f"seconds: useful {spent['seconds_useful']:.0f}", end="")
    for cause, seconds in spent["seconds_wasted"].items():
        print(f", wasted ({cause}) {seconds:.0f}", end="")
    print()


def _say(begin: float, text: str) -> None:
    print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
