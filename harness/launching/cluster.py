"""The Slurm executor: submits runs as arrays of jobs, through submitit.

The jobs belong to Slurm, not to the launcher: when it ends, another one can follow them, by the
records of what was submitted (`harness.slurm.submissions`).
"""

import io
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launching.dispatch import Start
from harness.launching.job import TRAIN, Job
from harness.launching.pack import Pack
from harness.launching.resources import Slurm
from harness.launching.snapshot import Snapshot
from harness.runs import environment
from harness.runs.state import LIVE, RunState
from harness.slurm import commands as slurm
from harness.slurm import submissions
from harness.slurm.submissions import Submission
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import submitit

_FULL = ("accounting/QOS policy", "MaxSubmit", "temporarily unable to accept")
"""What sbatch prints where a user has too many jobs, or an array too many tasks."""
_NO_ANSWER = ("Unable to contact", "timed out", "onnection refused", "ommunication", "Zero Bytes")

_LONGEST_PAUSE_S = 600.0

_NOT_INHERITED = (
    "JOB_NAME",
    "ARRAY_INX",
    "OUTPUT",
    "ERROR",
    "SIGNAL",
    "WAIT",
    "OPEN_MODE",
    "NO_REQUEUE",
    "REQUEUE",
    "TIMELIMIT",
)
"""Variables SBATCH_* that would override the text for sbatch."""
_INHERITED_UNLESS = {
    "partition": "PARTITION",
    "account": "ACCOUNT",
    "qos": "QOS",
    "constraint": "CONSTRAINT",
    "mem": "MEM_PER_NODE",
    "gpus_per_node": "GPUS_PER_NODE",
    "gres": "GRES",
}
"""Further ones, by the parameter of the text that they would override."""


@dataclass(frozen=True)
class Array:
    """What is submitted by one call of sbatch."""

    resources: Slurm
    packs: tuple[tuple[Start, ...], ...]
    """Runs by array task."""


class Cluster:
    """Runs in Slurm's queue."""

    outlive = True

    def __init__(
        self,
        sweep_name: str,
        folder: Path,
        resources: Mapping[str, Slurm],
        say: Callable[[str], None],
        train: str = TRAIN,
        snapshot: Snapshot | None = None,
    ) -> None:
        """`folder` is the sweep's; `resources` are those of each arm.

        ConfigError for a folder whose path Slurm cannot use.
        """
        slurm.check_path(folder)
        self.sweep_name, self.folder, self.resources = sweep_name, folder.resolve(), resources
        self.say, self.train, self.snapshot = say, train, snapshot
        self._max_array: int | None = None
        self._last_refusal: str | None = None
        self._refusals = 0
        """In a row."""
        self._not_before = float("-inf")

    @property
    def slots(self) -> int | None:
        """None, for the queue accepts all; 0 during the pause after a refusal."""
        return 0 if time.monotonic() < self._not_before else None

    def start(self, starts: Sequence[Start]) -> list[str]:
        accepted: list[str] = []
        waiting = self.arrays(starts)
        while waiting:
            array = waiting.pop(0)
            try:
                self._submit(array)
            except _TooManyError as error:
                if len(array.packs) > 1:
                    half = len(array.packs) // 2
                    self._max_array = half
                    waiting[:0] = [
                        Array(array.resources, array.packs[:half]),
                        Array(array.resources, array.packs[half:]),
                    ]
                    continue
                if not slurm.queue():  # nothing will make room for it
                    raise ConfigError(_refusal(str(error))) from None
                self._pause(f"Slurm accepts no more jobs now ({error})", array.resources.poll_s)
                break
            except RunError as error:
                # What was not accepted is submitted again when Slurm answers.
                self._pause(str(error), array.resources.poll_s)
                break
            self._last_refusal, self._refusals = None, 0
            accepted += [start.name for pack in array.packs for start in pack]
        return accepted

    def _pause(self, why: str, poll_s: float) -> None:
        """Submit nothing for a while, which doubles with each refusal in a row."""
        if why != self._last_refusal:
            self.say(f"{why}; trying again")
        self._last_refusal = why
        self._not_before = time.monotonic() + min(_LONGEST_PAUSE_S, poll_s * 2**self._refusals)
        self._refusals += 1

    def arrays(self, starts: Iterable[Start]) -> list[Array]:
        """Runs of equal resources together, packed, in arrays no larger than the site allows."""
        arrays = []
        by_resources: dict[str, list[Start]] = {}
        for start in starts:
            resources = self.resources[start.run.arm]
            by_resources.setdefault(resources.model_dump_json(), []).append(start)
        for members in by_resources.values():
            resources = self.resources[members[0].run.arm]
            packs = _chunks(members, resources.pack)
            most = resources.max_array or self._site_max_array()
            arrays += [Array(resources, tuple(chunk)) for chunk in _chunks(packs, most)]
        return arrays

    def _site_max_array(self) -> int:
        if self._max_array is None:
            try:
                self._max_array = slurm.max_array_size()
            except slurm.Unreachable:
                return slurm.USUAL_ARRAY_SIZE
        return self._max_array

    def _submit(self, array: Array) -> None:
        """Submit an array. RunError where Slurm does not answer, _TooManyError where there are too
        many jobs at the moment, ConfigError where Slurm will never accept it."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        names = [[start.name for start in pack] for pack in array.packs]
        resources = array.resources.model_dump(mode="json")
        submission = submissions.new(self.folder, self.sweep_name, names, resources)
        try:
            with (
                _clean_environment(self.parameters(array.resources, submission.name)),
                redirect_stderr(io.StringIO()),  # submitit prints there what it also raises
            ):
                executor = self._executor(array.resources, submission)
                with executor.batch():
                    jobs = [executor.submit(self._task(array.resources, p)) for p in array.packs]
        except FailedSubmissionError as error:
            # It may have been accepted all the same: the queue will show.
            raise RunError(f"sbatch gave no job id ({_reason(str(error))})") from None
        except FailedJobError as error:
            reason = _reason(str(error))
            if any(text in reason for text in _NO_ANSWER):
                raise RunError(f"Slurm does not answer ({reason})") from None
            submissions.forget(self.folder, submission)
            if any(text in reason for text in _FULL):
                raise _TooManyError(reason) from None
            raise ConfigError(_refusal(reason)) from None
        job = str(jobs[0].job_id).partition("_")[0]
        submissions.write(self.folder, replace(submission, job=job))

    def _task(self, resources: Slurm, pack: Sequence[Start]) -> Job | Pack:
        jobs = [self._job(resources, start) for start in pack]
        return Pack(tuple(jobs)) if resources.pack > 1 else jobs[0]

    def _job(self, resources: Slurm, start: Start) -> Job:
        return start.job(
            threads=max(1, resources.cpus // resources.pack),
            train=self.train,
            executor="slurm",
            gpus=resources.gpus_per_run,
            ranks=resources.processes > 1,
            sharded=resources.sharded,
            packed=resources.pack > 1,
        )

    def _executor(self, resources: Slurm, submission: Submission) -> "submitit.SlurmExecutor":
        import submitit

        folder = submissions.folder(self.folder) / submission.token
        executor = submitit.SlurmExecutor(folder=folder, python=resources.python)
        executor.update_parameters(**self.parameters(resources, submission.name))
        return executor

    def parameters(self, resources: Slurm, name: str) -> dict[str, Any]:
        """The parameters from which submitit makes the text for sbatch."""
        exports = {name: str(resources.cpus) for name in environment.THREAD_VARIABLES}
        if self.snapshot is not None:
            exports |= self.snapshot.variables()
        elif "PYTHONPATH" in os.environ:  # some sites pass no variables on
            exports["PYTHONPATH"] = os.environ["PYTHONPATH"]
        parameters: dict[str, Any] = {
            "job_name": name,
            "time": resources.time,
            "nodes": resources.nodes,
            "ntasks_per_node": resources.tasks_per_node,
            "cpus_per_task": resources.cpus,
            "partition": resources.partition,
            "account": resources.account,
            "qos": resources.qos,
            "constraint": resources.constraint,
            # sbatch takes whole numbers, and MB where no unit is given.
            "mem": resources.memory_gb and f"{max(1, round(resources.memory_gb * 1024))}M",
            "gpus_per_node": None if resources.shards else resources.gpus or None,
            "gres": f"shard:{resources.shards}" if resources.shards else None,
            "signal_delay_s": resources.signal_s,
            "array_parallelism": resources.at_once or 10_000,
            "stderr_to_stdout": True,
            # srun does not inherit --cpus-per-task.
            "setup": [
                "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
                # At a site whose jobs begin with an empty environment, this exports what is set.
                "export SLURM_EXPORT_ENV=ALL",
                *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
                *resources.setup,
            ],
            # After a node failure the job is requeued, whatever the site's default.
            "additional_parameters": {
                key: value
                for key, value in {"requeue": True, **resources.sbatch}.items()
                if value is not False
            },
            "srun_args": ["--kill-on-bad-exit=1"] if resources.processes > 1 else None,
        }
        # submitit would set a wckey, which some sites refuse.
        return {k: v for k, v in parameters.items() if v is not None} | {"wckey": None}

    def text(self, array: Array) -> str:
        """The text for sbatch, as it would be submitted; needs srun."""
        example = Submission("TOKEN", f"{self.sweep_name}-TOKEN", 0.0, None, (), {}, False)
        executor = self._executor(array.resources, example)
        if len(array.packs) > 1:
            executor.parameters["map_count"] = len(array.packs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, "TOKEN"))

    def over(self, state: RunState) -> bool:
        return state.state not in LIVE


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


def _reason(text: str) -> str:
    """sbatch's error message, without submitit's text around it."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    messages = [line.partition("sbatch:")[2].removeprefix(" error:").strip() for line in lines]
    last = next(reversed(text.strip().splitlines()), "no reason given")
    return "; ".join(dict.fromkeys(filter(None, messages))) or last


def _refusal(reason: str) -> str:
    if "configuration source" in reason:
        return (
            "sbatch knows no cluster: Slurm is not configured on this machine; run this on a "
            "login node, or with --executor local"
        )
    return (
        f"sbatch refuses: {reason}; fix `slurm:` in the sweep file or "
        "~/.config/mixgrpo/slurm.yaml (--plan shows the whole text)"
    )


class _TooManyError(Exception):
    """Slurm accepts no more jobs at the moment, or not this many in one array."""


@contextmanager
def _clean_environment(parameters: dict[str, Any]) -> Iterator[None]:
    """Hide the variables of a job in which this launcher itself may run, except the cluster's.

    The user's variables for sbatch stay, unless `parameters` or this program set the same option.
    """
    import submitit

    kept = {k: os.environ[k] for k in ("SLURM_CONF",) if k in os.environ}
    before = dict(os.environ)
    with submitit.helpers.clean_env(environment.job_variables()):
        os.environ.update(kept)
        hidden = {*_NOT_INHERITED, *(v for k, v in _INHERITED_UNLESS.items() if k in parameters)}
        os.environ.update(
            {
                key: value
                for key, value in before.items()
                if key.startswith("SBATCH_") and key.removeprefix("SBATCH_") not in hidden
            }
        )
        try:
            yield
        finally:
            for key in [key for key in os.environ if key.startswith("SBATCH_")]:
                del os.environ[key]
