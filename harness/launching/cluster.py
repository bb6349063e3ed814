"""The Slurm executor: arrays of jobs through submitit, in which many runs wait and run at once.

The jobs belong to Slurm, not to the launcher: it may end and another may pick them up by the
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
"""sbatch's words where a user has too many jobs, or too many for one array."""
_SILENT = ("Unable to contact", "timed out", "onnection refused", "ommunication", "Zero Bytes")

_LONGEST_PAUSE_S = 600.0

_NOT_INHERITED: tuple[str, ...] = (
    "JOB_NAME",
    "ARRAY_INX",
    "OUTPUT",
    "ERROR",
    "SIGNAL",
    "WAIT",
    "OPEN_MODE",
)
_NOT_INHERITED += ("NO_REQUEUE", "REQUEUE", "TIMELIMIT")
"""Variables SBATCH_* that would win over the text that is handed over."""
_INHERITED_UNLESS = {
    "partition": "PARTITION",
    "account": "ACCOUNT",
    "qos": "QOS",
    "constraint": "CONSTRAINT",
    "mem": "MEM_PER_NODE",
    "gpus_per_node": "GPUS_PER_NODE",
    "gres": "GRES",
}
"""The same, by the parameter that the text may have."""


@dataclass(frozen=True)
class Array:
    """What is handed to sbatch in one call."""

    asked: Slurm
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
        """`folder` is the sweep's, `resources` what each arm asks for.

        ConfigError where the folder's name is none for Slurm.
        """
        slurm.check_path(folder)
        self.sweep_name, self.folder, self.resources = sweep_name, folder.resolve(), resources
        self.say, self.train, self.snapshot = say, train, snapshot
        self._max_array: int | None = None
        self._said: str | None = None
        self._refused = 0
        """How often in a row nothing was taken."""
        self._not_before = float("-inf")

    @property
    def slots(self) -> int | None:
        """None, for the queue takes all; 0 for a while after it has taken nothing."""
        return 0 if time.monotonic() < self._not_before else None

    def start(self, starts: Sequence[Start]) -> list[str]:
        taken: list[str] = []
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
                        Array(array.asked, array.packs[:half]),
                        Array(array.asked, array.packs[half:]),
                    ]
                    continue
                if not slurm.queue():  # it will never fit
                    raise ConfigError(_refusal(str(error))) from None
                self._pause(f"Slurm takes no more jobs now ({error})", array.asked.poll_s)
                break
            except RunError as error:
                # What was not taken is asked for again when Slurm answers.
                self._pause(str(error), array.asked.poll_s)
                break
            self._said, self._refused = None, 0
            taken += [start.name for pack in array.packs for start in pack]
        return taken

    def _pause(self, why: str, poll_s: float) -> None:
        """Leave Slurm alone for a while, the longer the more often it refused."""
        if why != self._said:
            self.say(f"{why}; trying again")
        self._said = why
        self._not_before = time.monotonic() + min(_LONGEST_PAUSE_S, poll_s * 2**self._refused)
        self._refused += 1

    def arrays(self, starts: Iterable[Start]) -> list[Array]:
        """Runs of equal wishes together, packed, in arrays no larger than the site allows."""
        found = []
        by_wish: dict[str, list[Start]] = {}
        for start in starts:
            asked = self.resources[start.run.arm]
            by_wish.setdefault(asked.model_dump_json(), []).append(start)
        for members in by_wish.values():
            asked = self.resources[members[0].run.arm]
            packs = _chunks(members, asked.pack)
            most = asked.max_array or self._site_max_array()
            found += [Array(asked, tuple(chunk)) for chunk in _chunks(packs, most)]
        return found

    def _site_max_array(self) -> int:
        if self._max_array is None:
            try:
                self._max_array = slurm.max_array_size()
            except slurm.Unreachable:
                return slurm.USUAL_ARRAY_SIZE
        return self._max_array

    def _submit(self, array: Array) -> None:
        """Hand an array over. RunError where Slurm does not answer, _TooManyError where it is too
        much, ConfigError for never."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        names = [[start.name for start in pack] for pack in array.packs]
        wishes = array.asked.model_dump(mode="json")
        submission = submissions.new(self.folder, self.sweep_name, names, wishes)
        try:
            with (
                _clean_environment(self.parameters(array.asked, submission.name)),
                redirect_stderr(io.StringIO()),  # submitit prints there what it raises as well
            ):
                executor = self._executor(array.asked, submission)
                with executor.batch():
                    jobs = [executor.submit(self._task(array.asked, p)) for p in array.packs]
        except FailedSubmissionError as error:
            # It may have been taken all the same: the queue will show.
            raise RunError(f"sbatch gave no job's number ({_reason(str(error))})") from None
        except FailedJobError as error:
            reason = _reason(str(error))
            if any(text in reason for text in _SILENT):
                raise RunError(f"Slurm does not answer ({reason})") from None
            submissions.forget(self.folder, submission)
            if any(text in reason for text in _FULL):
                raise _TooManyError(reason) from None
            raise ConfigError(_refusal(reason)) from None
        job = str(jobs[0].job_id).partition("_")[0]
        submissions.write(self.folder, replace(submission, job=job))

    def _task(self, asked: Slurm, pack: Sequence[Start]) -> Job | Pack:
        jobs = [self._job(asked, start) for start in pack]
        return Pack(tuple(jobs)) if asked.pack > 1 else jobs[0]

    def _job(self, asked: Slurm, start: Start) -> Job:
        return start.job(
            threads=max(1, asked.cpus // asked.pack),
            train=self.train,
            executor="slurm",
            gpus=asked.gpus_per_run,
            ranks=asked.processes > 1,
            sharded=asked.sharded,
            packed=asked.pack > 1,
        )

    def _executor(self, asked: Slurm, submission: Submission) -> "submitit.SlurmExecutor":
        import submitit

        folder = submissions.folder(self.folder) / submission.token
        executor = submitit.SlurmExecutor(folder=folder, python=asked.python)
        executor.update_parameters(**self.parameters(asked, submission.name))
        return executor

    def parameters(self, asked: Slurm, name: str) -> dict[str, Any]:
        """What submitit writes into the text for sbatch."""
        exports = {name: str(asked.cpus) for name in environment.THREAD_VARIABLES}
        if self.snapshot is not None:
            exports |= self.snapshot.variables()
        elif "PYTHONPATH" in os.environ:  # some sites hand nothing on
            exports["PYTHONPATH"] = os.environ["PYTHONPATH"]
        found: dict[str, Any] = {
            "job_name": name,
            "time": asked.time,
            "nodes": asked.nodes,
            "ntasks_per_node": asked.tasks_per_node,
            "cpus_per_task": asked.cpus,
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "constraint": asked.constraint,
            # sbatch takes whole numbers, and MB where no unit is given.
            "mem": asked.memory_gb and f"{max(1, round(asked.memory_gb * 1024))}M",
            "gpus_per_node": None if asked.shards else asked.gpus or None,
            "gres": f"shard:{asked.shards}" if asked.shards else None,
            "signal_delay_s": asked.signal_s,
            "array_parallelism": asked.at_once or 10_000,
            "stderr_to_stdout": True,
            # srun does not take over --cpus-per-task by itself.
            "setup": [
                "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
                # Where a site has jobs begin with an empty environment, what is set here goes on.
                "export SLURM_EXPORT_ENV=ALL",
                *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
                *asked.setup,
            ],
            # A node that fails puts the job back into the queue, whatever the site's default.
            "additional_parameters": {
                key: value
                for key, value in {"requeue": True, **asked.sbatch}.items()
                if value is not False
            },
            "srun_args": ["--kill-on-bad-exit=1"] if asked.processes > 1 else None,
        }
        # submitit would write a wckey of its own, which some sites refuse.
        return {k: v for k, v in found.items() if v is not None} | {"wckey": None}

    def text(self, array: Array) -> str:
        """The text for sbatch, as it would be handed over; needs srun."""
        shown = Submission("TOKEN", f"{self.sweep_name}-TOKEN", 0.0, None, (), {}, False)
        executor = self._executor(array.asked, shown)
        if len(array.packs) > 1:
            executor.parameters["map_count"] = len(array.packs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, "TOKEN"))

    def over(self, state: RunState) -> bool:
        return state.state not in LIVE


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


def _reason(text: str) -> str:
    """What sbatch said, without submitit's words around it."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    said = [line.partition("sbatch:")[2].removeprefix(" error:").strip() for line in lines]
    last = next(reversed(text.strip().splitlines()), "no reason given")
    return "; ".join(dict.fromkeys(filter(None, said))) or last


def _refusal(reason: str) -> str:
    if "configuration source" in reason:
        return (
            "sbatch does not know its cluster: Slurm is not set up on this machine; run this on a "
            "login node, or with --executor local"
        )
    return (
        f"sbatch refuses: {reason}; mend `slurm:` in the sweep file or "
        "~/.config/mixgrpo/slurm.yaml (--plan shows the whole text)"
    )


class _TooManyError(Exception):
    """Slurm takes no more jobs, or not so many at once."""


@contextmanager
def _clean_environment(parameters: dict[str, Any]) -> Iterator[None]:
    """Hide the variables of a job that this launcher itself may run in, all but the cluster's.

    What the user set for sbatch stays, unless the text that is handed over says otherwise.
    """
    import submitit

    kept = {k: os.environ[k] for k in ("SLURM_CONF",) if k in os.environ}
    before = dict(os.environ)
    with submitit.helpers.clean_env(environment.strays()):
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
