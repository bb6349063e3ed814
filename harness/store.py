"""The run folder as a database: what state a run is in, what it measured, what it cost.

Reading never writes. Who may write is decided elsewhere: the job that owns a run's folder
(`harness.job`) and the trainer inside it.

A run's state, from what lies in its folder, in this order of trust:

* finished: result.json is there (it is written last, atomically).
* running: a process holds the folder's lock.
* by its newest attempt: `stopped` (asked to), `failed` (an exception: the program's or the
  configuration's fault), `lost` (infrastructure: killed without a word, no disk space).
* waiting: it never began.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import environment
from harness.spec import Run, Sweep
from mixgrpo import lock
from mixgrpo.config import SCHEMA_VERSION
from mixgrpo.errors import RunError
from mixgrpo.jsonlines import read_lines
from mixgrpo.train import OWNER_LOCK

if TYPE_CHECKING:
    import pandas as pd

State = Literal["finished", "running", "stopped", "failed", "lost", "waiting"]

STOP = "stop"
"""A file of this name in a run's folder asks its job to checkpoint and stop."""

Reason = Literal["finished", "stopped", "config", "exception", "no-space", "run-error", "killed"]
"""Why an attempt ended. `killed` means that it left no word, or that the next attempt says so."""

STATE_OF: dict[str, State] = {
    # Said to be finished, and yet without a result: somebody removed it.
    "finished": "lost",
    "stopped": "stopped",
    "config": "failed",
    "exception": "failed",
    "no-space": "lost",
    "run-error": "lost",
    "killed": "lost",
}


@dataclass(frozen=True)
class Attempt:
    """One record of attempts/: what one job did to a run."""

    number: int
    pid: int
    job_id: str | None
    """The scheduler's name for the job, for its logs; nothing is keyed by it."""
    started: float
    """Seconds since the epoch, as `ended`."""
    ended: float | None
    reason: str | None
    error: str | None
    """Why it failed: one line of message, or a traceback with the message last."""
    executor: str | None = None
    """inline or local: how the job was started."""
    host: str | None = None
    """The machine, for its owner: whom a process id belongs to."""
    warnings: tuple[str, ...] = ()
    """What the job warned of, each text once; the log has them with their places."""

    @property
    def last_line(self) -> str:
        return (self.error or "").strip().rpartition("\n")[2]


@dataclass(frozen=True)
class RunState:
    """What one look at a run's folder shows."""

    run: Run
    folder: Path
    state: State
    attempts: tuple[Attempt, ...] = ()
    iteration: int = 0
    """Iterations done, as far as the metrics say."""
    seconds_per_iteration: float | None = None
    """Median over the last ones."""
    seconds_per_evaluation: float | None = None
    reward: float | None = None
    """Rollout reward of the last iteration: not comparable across window positions."""
    score: float | None = None
    """The sweep's measure in the last evaluation."""

    @property
    def total(self) -> int:
        return self.run.config.iterations

    @property
    def evaluations_left(self) -> int:
        """Evaluations that lie ahead; the one after the last iteration always."""
        every = self.run.config.evaluation.every
        return -(-self.total // every) - self.iteration // every

    @property
    def reason(self) -> str | None:
        """Why the newest attempt ended; None where there was none, or it is under way."""
        if not self.attempts or self.state == "running":
            return None
        return self.attempts[-1].reason or "killed"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What any attempt warned of, each text once."""
        return tuple(dict.fromkeys(text for a in self.attempts for text in a.warnings))


def sweep_folder(sweep: Sweep, runs_dir: Path) -> Path:
    return runs_dir / sweep.name


def look(sweep: Sweep, run: Run, runs_dir: Path) -> RunState:
    """The state of one run. RunError where its folder was written by another version."""
    folder = sweep_folder(sweep, runs_dir) / run.folder_name
    if read_result(folder) is not None:
        return _with_progress(sweep, RunState(run, folder, "finished", read_attempts(folder)))
    # In this order: an attempt that ends between the two looks is then seen as running, not lost.
    running = lock.is_held(folder / OWNER_LOCK)
    attempts = read_attempts(folder)
    if running:
        # A job takes the lock, then writes its record: until then there is nothing to show.
        return _with_progress(sweep, RunState(run, folder, "running", attempts))
    if read_result(folder) is not None:
        return _with_progress(sweep, RunState(run, folder, "finished", attempts))
    if not attempts:
        return RunState(run, folder, "waiting")
    state = STATE_OF.get(attempts[-1].reason or "killed", "failed")
    return _with_progress(sweep, RunState(run, folder, state, attempts))


def look_at_all(sweep: Sweep, runs_dir: Path) -> list[RunState]:
    return [look(sweep, run, runs_dir) for run in sweep.runs]


def strangers(known: set[str], folder: Path) -> list[Path]:
    """Run folders of a sweep that are not among the `known` names, oldest name first."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.iterdir() if p.is_dir() and p.name not in known and _looks_like_a_run(p)
    )


def _looks_like_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.yaml", "attempts", OWNER_LOCK))


def _with_progress(sweep: Sweep, state: RunState) -> RunState:
    metrics = list(_last_lines(state.folder / "metrics.jsonl", count=20))
    evals = list(_last_lines(state.folder / "eval.jsonl", count=1))
    values: dict[str, Any] = {}
    if metrics:
        seconds = sorted(float(line["seconds_total"]) for line in metrics)
        values["iteration"] = int(metrics[-1]["iteration"]) + 1
        values["seconds_per_iteration"] = seconds[len(seconds) // 2]
        values["reward"] = metrics[-1].get(f"reward_{sweep.measure}_mean")
    if evals:
        values["seconds_per_evaluation"] = evals[-1].get("seconds_total")
        values["score"] = evals[-1].get(f"reward_{sweep.measure}_mean")
    return replace(state, **values)


# ---- files of one run ------------------------------------------------------------------------


def read_result(folder: Path) -> dict[str, Any] | None:
    """A run's result.json; None while it is not finished. RunError for another version's."""
    file = folder / "result.json"
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        result: dict[str, Any] = json.loads(text)
        schema = result["schema"]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{file}: is not a result of this program; remove it and run the sweep again to "
            "continue from the newest checkpoint"
        ) from None
    if schema != SCHEMA_VERSION:
        raise RunError(
            f"{folder}: was written by another version (schema {schema}; this one reads "
            f"{SCHEMA_VERSION}); move the folder away to run it anew, or use the version that "
            "wrote it"
        )
    return result


def read_attempts(folder: Path) -> tuple[Attempt, ...]:
    """The attempts of a run, the oldest first; one without an end by the time it was last seen."""
    files = (folder / "attempts").glob("[0-9]*.json")
    found = [attempt for file in files if (attempt := _read_attempt(file))]
    return tuple(sorted(found, key=lambda attempt: attempt.number))


def _read_attempt(file: Path) -> Attempt | None:
    try:
        data = json.loads(file.read_text())
        values = {name: data.get(name) for name in Attempt.__dataclass_fields__}
        # Earlier versions kept no warnings.
        return Attempt(**values | {"warnings": tuple(values["warnings"] or ())})
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError):
        raise RunError(
            f"{file}: is not a record of this program; remove it, the run itself is unharmed"
        ) from None


def last_seen(folder: Path, attempt: Attempt) -> float:
    """When an attempt ended, or else the last moment at which its run gave a sign of life."""
    if attempt.ended is not None:
        return attempt.ended
    times = [attempt.started]
    for name in ("metrics.jsonl", "eval.jsonl"):
        file = folder / name
        if file.exists():
            times.append(file.stat().st_mtime)
    return max(times)


def _last_lines(file: Path, count: int) -> Iterator[dict[str, Any]]:
    """The last whole lines of a file that may be written to just now, the oldest first."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - count * 2048))
            texts = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return
    for text in texts[-count:]:
        try:
            line = json.loads(text)
        except ValueError:  # cut at the beginning of what was read
            continue
        if isinstance(line, dict):
            yield line


# ---- everything measured ---------------------------------------------------------------------


@dataclass
class Results:
    """What a sweep measured. `metrics` and `evals` hold finished runs only."""

    runs: "pd.DataFrame"
    """One row per run: arm, seed, hash, state; of finished ones before_<reward>, after_<reward>,
    seconds_total, evaluations_computed, backward_computed, nfe_rollout, nfe_train, iterations."""
    metrics: "pd.DataFrame"
    """metrics.jsonl of all of them, with arm and seed."""
    evals: "pd.DataFrame"
    """eval.jsonl of all of them, with arm and seed."""
    env: list[str] = field(default_factory=list)
    """The machines and versions, in words, each once."""


def collect(sweep: Sweep, runs_dir: Path) -> Results:
    """Everything that a sweep's runs have measured. RunError for a folder of another version."""
    import pandas as pd

    runs: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    evals: list[dict[str, Any]] = []
    machines: dict[str, None] = {}
    for run in sweep.runs:
        state = look(sweep, run, runs_dir)
        key: dict[str, Any] = {"arm": run.arm, "seed": run.seed}
        row = {**key, "hash": run.hash, "state": state.state}
        result = read_result(state.folder)
        if result is not None:
            row |= _flat_result(result)
            metrics += [key | line for line in read_lines(state.folder / "metrics.jsonl")]
            evals += [key | line for line in read_lines(state.folder / "eval.jsonl")]
            machines[_machine(state.folder)] = None
        runs.append(row)
    machines.pop("", None)
    return Results(
        pd.DataFrame(runs),
        pd.DataFrame(metrics or None, columns=None if metrics else ["arm", "seed", "iteration"]),
        pd.DataFrame(evals or None, columns=None if evals else ["arm", "seed", "iteration"]),
        list(machines),
    )


def _flat_result(result: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in result.items():
        if key in ("before", "after"):
            row |= {f"{key}_{name}": number for name, number in value.items()}
        elif key not in ("schema", "hash", "seed"):
            row[key] = value
    return row


def _machine(folder: Path) -> str:
    try:
        return environment.in_words(json.loads((folder / "env.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return ""
