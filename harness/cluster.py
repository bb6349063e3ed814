"""The Slurm executor: arrays of jobs through submitit, in which many runs wait and run at once.

The jobs belong to Slurm, not to the launcher: it may end and another may pick them up by the
records of what was submitted (`harness.submissions`).
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import environment, slurm, submissions
from harness.dispatch import Start
from harness.job import TRAIN, Job, make_job
from harness.pack import Pack
from harness.resources import Slurm
from harness.snapshot import Snapshot
from harness.spec import Run
from harness.store import LIVE, RunState
from harness.submissions import Submission
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    import submitit

_FULL = ("Limit", "limit", "temporarily unable to accept", "job array size")
_SILENT = ("Unable to contact", "timed out", "onnection refused", "ommunication", "Zero Bytes")


@dataclass(frozen=True)
class Array:
    """What is handed to sbatch in one call."""

    asked: Slurm
    packs: tuple[tuple[Start, ...], ...]
    """Runs by array task."""


class Cluster:
    """Runs in Slurm's queue."""

    slots: int | None = None
    outlive = True

    def __init__(
        self,
        sweep_name: str,
        folder: Path,
        resources: dict[str, Slurm],
        say: Callable[[str], None],
        train: str = TRAIN,
        snapshot: Snapshot | None = None,
    ) -> None:
        """`folder` is the sweep's, `resources` what each arm asks for.

        ConfigError where this machine has no Slurm.
        """
        slurm.check()
        self.sweep_name, self.folder, self.resources = sweep_name, folder.resolve(), resources
        self.say, self.train, self.snapshot = say, train, snapshot
        self._max_array: int | None = None
        self._said: str | None = None

    def start(self, starts: Sequence[Start]) -> list[str]:
        taken: list[str] = []
        for array in self.arrays(starts):
            try:
                self._submit(array)
            except RunError as error:
                # What was not taken is asked for again, when there is room or Slurm answers.
                if str(error) != self._said:
                    self.say(f"{error}; trying again")
                self._said = str(error)
                break
            self._said = None
            taken += [start.name for pack in array.packs for start in pack]
        return taken

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
            self._max_array = slurm.max_array_size()
        return self._max_array

    def _submit(self, array: Array) -> None:
        """Hand an array over. RunError where Slurm cannot take it now, ConfigError for never."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        names = [[start.name for start in pack] for pack in array.packs]
        wishes = array.asked.model_dump(mode="json")
        submission = submissions.new(self.folder, self.sweep_name, names, wishes)
        try:
            with _clean_environment():
                executor = self._executor(array.asked, submission)
                with executor.batch():
                    jobs = [executor.submit(self._task(array.asked, p)) for p in array.packs]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = _reason(str(error))
            if any(text in reason for text in _SILENT):
                raise RunError(f"Slurm does not answer ({reason})") from None
            submissions.forget(self.folder, submission)
            if any(text in reason for text in _FULL):
                raise RunError(f"Slurm takes no more jobs now ({reason})") from None
            raise ConfigError(
                f"sbatch refuses: {reason}; mend `slurm:` in the sweep file or "
                "~/.config/mixgrpo/slurm.yaml (--plan shows the whole text)"
            ) from None
        job = str(jobs[0].job_id).partition("_")[0]
        submissions.write(self.folder, replace(submission, job=job))

    def _task(self, asked: Slurm, pack: Sequence[Start]) -> Job | Pack:
        jobs = [self._job(asked, start.run, start.folder) for start in pack]
        return Pack(tuple(jobs)) if asked.pack > 1 else jobs[0]

    def _job(self, asked: Slurm, run: Run, folder: Path) -> Job:
        return make_job(
            folder.resolve(),
            run.config,
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
            "mem": asked.memory_gb and f"{round(asked.memory_gb * 1024)}M",
            "gpus_per_node": None if asked.shards else asked.gpus or None,
            "gres": f"shard:{asked.shards}" if asked.shards else None,
            "signal_delay_s": asked.signal_s,
            "array_parallelism": asked.at_once or 10_000,
            "stderr_to_stdout": True,
            # srun does not take over --cpus-per-task by itself.
            "setup": [
                "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
                *(f"export {key}={shlex.quote(value)}" for key, value in exports.items()),
                *asked.setup,
            ],
            # A node that fails puts the job back into the queue, whatever the site's default.
            "additional_parameters": {"requeue": True, **asked.sbatch},
            "srun_args": ["--kill-on-bad-exit=1"] if asked.processes > 1 else None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def text(self, array: Array) -> str:
        """The text for sbatch, as it would be handed over."""
        shown = Submission("TOKEN", f"{self.sweep_name}-TOKEN", 0.0, None, (), {}, False)
        with _clean_environment():
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
    return "; ".join(dict.fromkeys(filter(None, said))) or text.strip().splitlines()[-1]


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Hide the variables of a job that this launcher itself may run in, all but the cluster's."""
    import submitit

    kept = {k: os.environ[k] for k in ("SLURM_CONF",) if k in os.environ}
    before = dict(os.environ)
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        # What the user set for sbatch is meant for these jobs.
        os.environ.update({k: v for k, v in before.items() if k.startswith("SBATCH_")})
        yield
