"""The books of tests/slurm/chaos.py: what must hold after a chaos run, whatever happened in it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.launching.sweep_lease import LAUNCHER
from harness.runs.folder import origin, read_attempts
from harness.runs.ledger import ledger
from harness.runs.records import Attempt
from harness.runs.result import read_result
from harness.runs.state import look
from harness.study.spec import Sweep
from mixgrpo.files import lease
from mixgrpo.files.records import DamagedFileError
from mixgrpo.runs.folder import OWNER

from ..mixgrpo.outcomes import leftovers, outcome
from .processes import start_time

SWEEP = Path(__file__).with_name("chaos.yaml")
_TIMED = ("seconds", "time_ratio", "s / iteration", "time ratio")
"""How the columns of a report's tables begin that hold timings."""
_TIMED_LINE = re.compile(r"^(Time|One core's time) per iteration")
_AT_SECONDS = re.compile(r"(^|; )at [0-9.,]+ s\b.*$")
"""What a report says of the arms at equal seconds, in a sentence or over a column."""


def finished(folder: Path) -> bool:
    """Whether a run has a result, and the lines that this says it has."""
    try:
        return read_result(folder) is not None
    except DamagedFileError:
        return False


def balance(
    sweep: Sweep, root: Path, runs: Path, undisturbed: Path, environment: dict[str, str]
) -> list[str]:
    """What does not balance, in words; nothing where all does."""
    place = runs / sweep.name
    return [
        *_runs(sweep, place, undisturbed / sweep.name),
        *_attempts(sweep, place, root / "steer" / "journal"),
        *_table(root),
        *_leases(place),
        *_processes(root),
        *_status(runs, environment),
    ]


def _runs(sweep: Sweep, place: Path, undisturbed: Path) -> Iterator[str]:
    """Every run once, each with the bytes of the undisturbed one."""
    wanted = {run.folder_name for run in sweep.runs}
    there = {p.name for p in place.iterdir() if (p / "config.yaml").exists()}
    if there != wanted:
        yield f"run folders that are missing or too many: {sorted(there ^ wanted)}"
    for name in sorted(there & wanted):
        if not finished(place / name):
            yield f"{name}: has no result"
            continue
        mine, other = outcome(place / name), outcome(undisturbed / name)
        for part in mine:
            if mine[part] != other[part]:
                yield f"{name}: {part} differs from the undisturbed run's"
        numbers = [json.loads(line)["iteration"] for line in mine["metrics"]]
        if numbers != list(range(sweep.runs[0].config.iterations)):
            yield f"{name}: iterations {numbers}"
        # A process that was killed may leave one behind; a checkpoint's is removed by the next.
        partial = [p for p in leftovers(place / name) if p.suffix == ".partial"]
        if partial:
            yield f"{name}: left {partial[0].name}"


def _attempts(sweep: Sweep, place: Path, journal: Path) -> Iterator[str]:
    """Each attempt ended for a reason, and none of a run worked while another one did."""
    spans: dict[int, tuple[float, float]] = {}
    for line in _lines(journal):
        first, _ = spans.get(line["pid"], (line["at"], 0.0))
        spans[line["pid"]] = (first, line["at"])
    for run in sweep.runs:
        attempts = read_attempts(place / run.folder_name)
        if [a.number for a in attempts] != list(range(1, len(attempts) + 1)):
            yield f"{run.folder_name}: attempts {[a.number for a in attempts]}"
        for attempt in attempts:
            if attempt.reason is None:
                yield f"{run.folder_name}: attempt {attempt.number} has no reason"
        worked = [(spans[a.pid], a.number) for a in attempts if a.pid in spans]
        for (before, number), (after, next_) in pairwise(worked):
            if after[0] <= before[1]:
                yield f"{run.folder_name}: attempts {number} and {next_} worked at the same time"


def ledger_balances(sweep: Sweep, place: Path, spent: dict[str, Any], most: float) -> Iterator[str]:
    """What the status says of the cost of a finished sweep: all that was kept was useful, and no
    more was spent than there was, `most` seconds of slots.

    What a run took over from another one cost it nothing. Evaluations before the first iteration
    that it did itself stay whoever made them, and may count as wasted.
    """
    kept = first = 0.0
    for run in sweep.runs:
        folder, of_run = place / run.folder_name, 0.0
        copied = (origin(folder) or {"iterations": 0})["iterations"]
        for name in ("metrics.jsonl", "eval.jsonl"):
            own = [line for line in _lines(folder / name) if line["iteration"] >= copied]
            of_run += sum(line["seconds_total"] for line in own)
            if name == "eval.jsonl":
                first += sum(line["seconds_total"] for line in own if line["iteration"] == copied)
        # Run by run, as what one has too much would hide in what another has too little.
        said = ledger([look(sweep, run, place.parent)], place).useful.seconds
        if said > of_run + 0.1:
            yield f"{run.folder_name}: {said:.1f} s are said to be useful, {of_run:.1f} s were kept"
        kept += of_run
    useful, wasted = spent["seconds_useful"], sum(spent["seconds_wasted"].values())
    if not kept - first - 1 <= useful <= kept + 1:
        yield f"{useful:.1f} s are said to be useful, {kept:.1f} s were kept"
    if useful + wasted > most or useful > spent["seconds_spent"] + 1:
        yield f"{useful:.0f} s useful and {wasted:.0f} s wasted, of at most {most:.0f} s of slots"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text().splitlines():
        yield json.loads(text)


def _table(root: Path) -> Iterator[str]:
    """The report's tables without the columns that hold timings, to the byte."""
    one, other = (root / name / "chaos" for name in ("reports", "undisturbed-reports"))
    if untimed_csv(one / "table.csv") != untimed_csv(other / "table.csv"):
        yield "table.csv differs from the undisturbed one"
    if untimed_markdown(one / "table.md") != untimed_markdown(other / "table.md"):
        yield "table.md differs from the undisturbed one"


def untimed_csv(file: Path) -> str:
    """A CSV file without the columns of timings."""
    rows = list(csv.reader(io.StringIO(file.read_text())))
    keep = [i for i, name in enumerate(rows[0]) if not name.startswith(_TIMED)]
    return "\n".join(",".join(row[i] for i in keep) for row in rows)


def untimed_markdown(file: Path) -> str:
    """The tables of a Markdown file without the columns of timings, and its other lines.

    What is said of time is left out, and so are empty lines.
    """
    kept, keep = [], list[int]()
    for line in file.read_text().splitlines():
        if not line.startswith("|"):
            keep = []
            if line and not _TIMED_LINE.search(line):
                kept.append(_AT_SECONDS.sub("", line))
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        # At equal seconds stands last in its table, and what follows belongs to it.
        last = next((i for i, c in enumerate(cells) if _AT_SECONDS.match(c)), len(cells))
        keep = keep or [i for i, cell in enumerate(cells[:last]) if not cell.startswith(_TIMED)]
        kept.append("|".join(cells[i] for i in keep))
    return "\n".join(kept)


def _leases(place: Path) -> Iterator[str]:
    for folder in (place / LAUNCHER, *(p / OWNER for p in place.iterdir())):
        if lease.is_held(folder):
            yield f"{folder}: {lease.holder(folder)} holds it still"


def _processes(root: Path) -> Iterator[str]:
    for pid in processes(root):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        yield f"process {pid} is left: {words[:120]}"


def processes(root: Path) -> list[int]:
    """The launchers and jobs of a chaos run that are alive, by what they have in their environment.

    Slurm's own processes do not have it.
    """
    mark = f"CHAOS_STEER={root / 'steer'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if start_time(pid)]


def _status(runs: Path, environment: dict[str, str]) -> Iterator[str]:
    before = _contents(runs)
    yield from status_calls(100, runs, environment)
    if _contents(runs) != before:
        yield "status calls changed the runs folder"


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
    }


def status_calls(count: int, runs: Path, environment: dict[str, str]) -> list[str]:
    """Ask for the status so many times at once, as text and as JSON. What went wrong, in words."""
    command = [sys.executable, "-m", "harness.status", str(SWEEP), "--runs", str(runs)]
    calls = [
        subprocess.Popen(
            # Every other one for people.
            command + ["--json"] * (number % 2),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    wrong = []
    for number, call in enumerate(calls):
        output, errors = call.communicate(timeout=300)
        try:
            whole = not number % 2 or len(json.loads(output)["runs"]) == 24
        except (ValueError, KeyError):
            whole = False
        if call.returncode or not whole:
            wrong.append(f"status: exit {call.returncode}: {(errors or output).strip()[-300:]}")
    return wrong


def reasons(sweep: Sweep, place: Path) -> Counter[str]:
    """How many attempts ended for which reason."""
    attempts: list[Attempt] = []
    for run in sweep.runs:
        attempts += read_attempts(place / run.folder_name)
    return Counter(str(attempt.reason) for attempt in attempts)
