"""Times the harness itself: plan, status and report of up to 10,000 runs, and starting runs.

    python -m benchmarks.harness_overhead --out DIR

Every command is timed as users get it, a process from its start to its end, on run folders as real
runs leave them (`benchmarks.run_folders`), in two shapes: few arms with many seeds, and many arms
with ten. Beside it stands the same work with plain json and pandas (`benchmarks.plain_pandas`).
Writes DIR/harness_overhead.json with every single timing, and the printed tables as .md. Needs
some 4 GB of disk for 10,000 runs, in the folder for temporary files.
"""

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.run_folders import all_states, write_again, write_finished, write_sweep_file
from benchmarks.trivial import OWN_SECONDS
from harness.runs.environment import cores
from harness.runs.store import STORE
from harness.study.load import load_sweep
from mixgrpo import cli
from mixgrpo.compute.machine import processor
from mixgrpo.errors import RunError
from mixgrpo.files import lease
from mixgrpo.files.atomic import write_json, write_text
from mixgrpo.runs.folder import OWNER

SIZES = [10, 100, 1000, 10_000]
REPEATS = 3
"""Of what takes seconds; the first report and the plain one, which take a minute, run once."""

PLAN, STATUS, FIRST, ADDED, AGAIN = "plan", "status", "first report", "one run more", "same report"
PLAIN_STATUS, PLAIN_REPORT = "status, plain json", "report, plain json + pandas"

TARGETS = {PLAN: 2.0, STATUS: 3.0, FIRST: 60.0, AGAIN: 3.0, "help": 0.4}
"""Seconds, for the largest size."""
RUN_S, DISPATCH_SHARE = 600.0, 0.01
"""Starting and ending a run takes at most this part of a run of ten minutes."""

_NOTE = """\
Seconds are those of a whole process, `python -m harness.sweep FILE --plan`, `python -m
harness.status FILE` and `python -m harness.report FILE`, medians where there are several. Status
and its plain counterpart: nine of ten runs finished, the others failed, killed, stopped, waiting
and running. *first report* finds nothing kept, *one run more* all runs but one, *same report* finds
its report unchanged. *plain* does less: it knows no intervals, comparisons, states or pages, and
draws one figure. Memory is the largest of the process. Growth is the time per run at the largest
size as a multiple of that at 100 runs: 1 is linear, less is better."""


@dataclass(frozen=True)
class Timing:
    shape: str
    runs: int
    what: str
    seconds: float
    memory_bytes: int


_TIMER = """\
import resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.call([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - begin
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process that starts the command: the largest memory of a process counts what it was
forked from."""


def timed(*command: str) -> tuple[float, int]:
    """Seconds and largest memory (bytes) of a Python process. RunError where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMER, *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RunError(f"{' '.join(command)}: ended with {done.returncode}: {last}")
    seconds, memory = done.stdout.split()
    return float(seconds), int(memory) * (1 if sys.platform == "darwin" else 1024)


def measure(shape: str, arms: int, seeds: int) -> list[Timing]:
    """All commands on one sweep, whose folders are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as place:
        folder = Path(place)
        file, runs, reports = write_sweep_file(folder, arms, seeds), folder / "runs", folder / "out"
        sweep = load_sweep(file)
        place_of_runs = runs / sweep.name
        tell(f"{len(sweep.runs)} runs ({shape}): writing their folders")
        write_finished(sweep, runs)
        found: list[Timing] = []

        def time_it(what: str, *command: str, repeats: int = REPEATS) -> None:
            tell(f"{len(sweep.runs)} runs ({shape}): {what}")
            for _ in range(repeats):
                found.append(Timing(shape, len(sweep.runs), what, *timed(*command)))

        options = [str(file), "--runs", str(runs)]
        plain = "benchmarks.plain_pandas"
        report = ["harness.report", *options, "--reports", str(reports)]
        time_it(PLAN, "harness.sweep", *options, "--plan")
        with all_states(sweep, runs, hold):
            time_it(STATUS, "harness.status", *options)
            time_it(PLAIN_STATUS, plain, "status", str(place_of_runs))
        time_it(FIRST, *report, repeats=1)
        time_it(AGAIN, *report)
        write_again(sweep.runs[-1], place_of_runs)
        time_it(ADDED, *report, repeats=1)
        time_it(PLAIN_REPORT, plain, "report", str(place_of_runs), str(folder / "p"), repeats=1)
    return found


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own a run's folder, as its job does."""
    held = lease.acquire(folder / OWNER)
    if held is None:
        raise RunError(f"{folder}: another process owns it")
    try:
        yield
    finally:
        held.release()


def help_seconds() -> dict[str, float]:
    """The median time of `--help` of each command of the harness."""
    return {
        name: statistics.median(timed(f"harness.{name}", "--help")[0] for _ in range(REPEATS))
        for name in ("sweep", "status", "report")
    }


# ---- dispatch --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dispatch:
    executor: str
    runs: int
    seconds: float
    """Of the whole command."""
    overhead_s: float | None
    """Seconds of a slot that a run takes beyond its own; None where the queue has no slots."""


def dispatch(executor: str, runs: int) -> Dispatch:
    """Start and finish runs that compute nothing (`benchmarks.trivial`)."""
    tell(f"dispatch of {runs} runs: {executor}")
    # Slurm's nodes may not see this machine's folder for temporary files.
    with tempfile.TemporaryDirectory(dir=Path.cwd() if executor == "slurm" else None) as place:
        folder = Path(place)
        arms, seeds = min(runs, 20), max(1, runs // 20)
        file = write_sweep_file(folder, arms, seeds)
        options = ["--runs", str(folder / "runs"), "--reports", str(folder / "reports")]
        seconds, _ = timed("benchmarks.trivial", str(file), *options, "--executor", executor)
        own = [float(f.read_text()) for f in (folder / "runs" / STORE).glob(f"*/{OWN_SECONDS}")]
    if len(own) != arms * seeds:
        raise RunError(f"{len(own)} of {arms * seeds} runs were made by benchmarks.trivial")
    if executor != "local":
        return Dispatch(executor, len(own), seconds, None)
    slots = min(cores(), len(own))
    return Dispatch(executor, len(own), seconds, seconds * slots / len(own) - statistics.mean(own))


def has_slurm() -> bool:
    """Whether there is a cluster to submit to: the program alone may lie about without one."""
    configured = "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists()
    return configured and shutil.which("sbatch") is not None


# ---- tables ----------------------------------------------------------------------------------


def seconds_table(timings: list[Timing]) -> str:
    """Seconds and memory by shape and size, and how the cost of a run grows."""
    rows = []
    for shape in dict.fromkeys(t.shape for t in timings):
        for what in dict.fromkeys(t.what for t in timings):
            sizes = sorted({t.runs for t in timings if t.shape == shape})
            cells = [_cell(timings, shape, n, what) for n in sizes]
            rows.append([shape, what, *cells, _growth(timings, shape, what)])
    sizes = sorted({t.runs for t in timings})
    head = ["shape", "what", *(f"{n:,} runs" for n in sizes), "growth"]
    return _table(head, rows)


def _cell(timings: list[Timing], shape: str, runs: int, what: str) -> str:
    own = [t for t in timings if (t.shape, t.runs, t.what) == (shape, runs, what)]
    memory = max(t.memory_bytes for t in own)
    return f"{median_seconds(timings, shape, runs, what):.2f} s, {memory / 1e6:.0f} MB"


def median_seconds(timings: list[Timing], shape: str, runs: int, what: str) -> float:
    return statistics.median(
        t.seconds for t in timings if (t.shape, t.runs, t.what) == (shape, runs, what)
    )


def _growth(timings: list[Timing], shape: str, what: str) -> str:
    sizes = sorted({t.runs for t in timings if t.shape == shape})
    if 100 not in sizes or sizes[-1] == 100:
        return ""
    each = [median_seconds(timings, shape, n, what) / n for n in (sizes[-1], 100)]
    return f"{each[0] / each[1]:.2f}"


def targets_table(
    timings: list[Timing], helps: dict[str, float], dispatches: list[Dispatch]
) -> str:
    """What was aimed at, for the largest size, and what was measured."""
    largest = max(t.runs for t in timings)
    rows = []
    for what, limit in TARGETS.items():
        shapes = dict.fromkeys(t.shape for t in timings)
        measured = (
            list(helps.values())
            if what == "help"
            else [median_seconds(timings, shape, largest, what) for shape in shapes]
        )
        name = "--help" if what == "help" else f"{what}, {largest:,} runs"
        rows.append(_judged(name, max(measured), limit))
    limit = RUN_S * DISPATCH_SHARE
    rows += [
        _judged(f"dispatch of a run ({d.executor})", d.overhead_s, limit)
        for d in dispatches
        if d.overhead_s is not None
    ]
    return _table(["what", "measured", "target", "met"], rows)


def _judged(name: str, measured: float, limit: float) -> list[str]:
    return [name, f"{measured:.2f} s", f"{limit:g} s", "yes" if measured <= limit else "no"]


def dispatch_table(dispatches: list[Dispatch]) -> str:
    rows = [
        [
            d.executor,
            f"{d.runs:,}",
            f"{d.seconds:.1f} s",
            f"{d.seconds / d.runs:.2f} s",
            "" if d.overhead_s is None else f"{d.overhead_s:.2f} s",
        ]
        for d in dispatches
    ]
    return _table(
        ["executor", "runs", "in all", "per run", "of a slot per run, beyond its own"], rows
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def made_on() -> dict[str, Any]:
    """Where and when it was measured."""
    return {
        "processor": processor(),
        "cores": cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the timings (JSON) and tables (Markdown).")
    ] = None,
    runs: Annotated[
        list[int] | None,
        typer.Option(min=10, help="A number of runs, a multiple of 10; repeatable."),
    ] = None,
    dispatched: Annotated[
        int, typer.Option("--dispatch", min=0, help="Runs that are started and compute nothing.")
    ] = 200,
) -> None:
    """Time plan, status and report of many runs, and what starting a run costs."""
    about = made_on()
    begin = time.perf_counter()
    timings: list[Timing] = []
    for size in sorted(runs or SIZES):
        few = min(20, size // 5)
        timings += measure("few arms", few, size // few)
        timings += measure("ten seeds", size // 10, 10)
    helps = help_seconds()
    executors = ["local", "slurm"] if has_slurm() else ["local"]
    dispatches = [dispatch(name, dispatched) for name in executors] if dispatched else []
    seconds = time.perf_counter() - begin
    parts = [
        "# What the harness costs",
        ", ".join(f"{name} {value}" for name, value in about.items())
        + f"; {seconds / 60:.0f} minutes in all.",
        _NOTE,
        "## Plan, status, report",
        seconds_table(timings),
        "## Help",
        _table(["command", "seconds"], [[n, f"{s:.2f} s"] for n, s in helps.items()]),
        "## Dispatch",
        dispatch_table(dispatches),
    ]
    if not has_slurm():
        parts.append("Slurm was not measured: there is no cluster here (SLURM_CONF, sbatch).")
    parts += ["## Targets", targets_table(timings, helps, dispatches)]
    page = "\n\n".join(parts)
    print(page)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "harness_overhead.md", page + "\n")
        data = {
            "made_on": about,
            "timings": [asdict(t) for t in timings],
            "help": helps,
            "dispatch": [asdict(d) for d in dispatches],
        }
        write_json(out / "harness_overhead.json", data)


if __name__ == "__main__":
    cli.run(main)
