"""The checks of `--plan`, and of a command that starts runs before it writes anything.

Code that runs name is imported in one separate process for all of them
(`mixgrpo.training.preflight`), and only if it is not built in.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.launching.dispatch import ExecutorName
from harness.launching.resources import Slurm, resources
from harness.runs import environment, source
from harness.runs.state import RunState, sweep_folder
from harness.runs.store import STORE
from harness.slurm import commands as slurm
from harness.study.names import check_paths
from harness.study.spec import Run, Sweep
from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.errors import ConfigError, ErrorList
from mixgrpo.files.records import DamagedFileError
from mixgrpo.runs.folder import claimed
from mixgrpo.runs.location import locate
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import located_error, located_errors
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.paths import check_folder
from mixgrpo.training.preflight import check_count, is_plain

IMPORTS_TIMEOUT_S = 180.0
"""The longest that all imports together may take."""
_OF_GPUS = re.compile(r"\b(CUDA|NVIDIA|HIP|ROCm)\b", re.IGNORECASE)

Named = tuple[RunConfig, Layers]
"""A configuration, and its settings with where they are written."""


def check_folders(sweep: Sweep, runs_dir: Path, reports_dir: Path, on_slurm: bool) -> None:
    """ConfigError where the folders of the runs or of the report cannot be made or written, belong
    to another file of the same name, or cannot be used by Slurm."""
    folder = sweep_folder(sweep, runs_dir)
    check_paths([folder, *(folder / run.folder_name for run in sweep.runs)], f"--runs {runs_dir}")
    check_paths([reports_dir / sweep.report_name], f"--reports {reports_dir}")
    errors = ErrorList()
    for run in sweep.runs:
        with errors.collected():
            _check_link(folder / run.folder_name, run, runs_dir)
    errors.raise_all()
    check_folder("--runs", folder)
    check_folder("--reports", reports_dir / sweep.report_name)
    source.check(sweep.name, sweep.file, folder, reports_dir / sweep.report_name)
    if on_slurm:
        slurm.check_path(folder)


def _check_link(path: Path, run: Run, runs_dir: Path) -> None:
    """ConfigError where what leads to a run leads nowhere, or to something else."""
    if not (path.is_symlink() or path.is_file()):
        return
    fix = "remove it, and the run is taken from the store or computed again"
    try:
        target = locate(path).resolve()
    except (DamagedFileError, OSError, RuntimeError) as error:  # a link to itself
        raise ConfigError(f"{path}: {getattr(error, 'why', error)}; {fix}") from None
    if target.parent == (runs_dir / STORE).resolve() and not target.exists():
        return  # it is computed again there
    if not target.is_dir():
        raise ConfigError(
            f"{path}: is a link to {target}, which does not exist; restore its target, or {fix}"
        )
    whose = claimed(target)
    ours = whose is None and target.is_relative_to(runs_dir.resolve())
    if whose != run.hash and not ours:
        said = f"of another run ({whose})" if whose else "no run's"
        raise ConfigError(f"{path}: leads to {target}, which is {said}; {fix}")


def check_runs(
    sweep: Sweep,
    states: Sequence[RunState],
    executor: ExecutorName,
    asked: Mapping[str, Slurm],
    runs_dir: Path,
    say: Callable[[str], None],
) -> None:
    """ConfigError where unfinished runs could not run as configured; doubtful cases are warned of
    with `say`. `asked`: what each arm asks of Slurm."""
    left = {state.run.arm: state.run.config for state in states if state.state != "finished"}
    for_slurm = _resources_for_slurm(sweep) if executor != "slurm" else {}
    for arm in left:
        check_processes(executor, for_slurm.get(arm, Slurm()), sweep.file, f"arm {arm}")
    other_python = {arm for arm in left if arm in asked and asked[arm].python is not None}
    named = [(left[arm], sweep.layers[arm]) for arm in left if arm not in other_python]
    if any(not is_plain(left[arm]) for arm in other_python):
        say("slurm.python starts another Python: only the jobs check the code that runs name")
    disk = check_code(named, executor != "slurm", say)
    runs = sum(state.state != "finished" for state in states)
    _say_disk(disk * runs, runs_dir, say)


def _resources_for_slurm(sweep: Sweep) -> dict[str, Slurm]:
    """What each arm would ask of Slurm if that were the executor."""
    try:
        return resources(sweep, site=False)
    except ConfigError:  # it may be incomplete without the site's file
        return resources(sweep)


def check_processes(executor: str, asked: Slurm, file: Path, whose: str = "a trial") -> None:
    """ConfigError where a run is to have several processes, which only Slurm can start."""
    if executor == "slurm" or asked.processes == 1:
        return
    gpus = f"{asked.gpus * asked.nodes} GPUs" if asked.gpus else f"{asked.nodes} node(s)"
    raise ConfigError(
        f"{file}: slurm: a run of {whose} is meant for {asked.processes} processes on {gpus}, and "
        f"--executor {executor} gives it one process; this machine has {len(environment.gpus())} "
        "GPU(s). Take --executor slurm, or settings for one GPU (model.train lora)"
    )


def check_code(named: Iterable[Named], here: bool, say: Callable[[str], None]) -> int:
    """Check the code, models and data that configurations name. ConfigError with all mistakes.

    `here`: they would run on this machine. Returns the bytes of one run's checkpoints, 0 if that is
    not known.
    """
    errors = ErrorList()
    distinct: dict[str, Named] = {}
    for config, layers in named:
        with errors.collected(), located_errors(layers):
            check_count(config)
        if not is_plain(config) or (here and config.model.name in DIFFUSION):
            distinct.setdefault(_what_is_checked(config), (config, layers))
    checks = list(distinct.values())
    answer = _ask([config for config, _ in checks], here) if checks else _Answer()
    for index, text in answer.errors:
        if not here and not environment.gpus() and _OF_GPUS.search(text):
            say(f"warning: {text} (a node with a GPU may differ)")
            continue
        errors.errors.append(located_error(text, checks[index][1]))
    for text in dict.fromkeys(answer.warnings):
        say(f"warning: {text}")
    errors.raise_all()
    return max(answer.disk, default=0)


def _what_is_checked(config: RunConfig) -> str:
    return config.model_dump_json(
        include={
            "model": True,
            "prompts": True,
            "rewards": True,
            "optimizer": {"name", "options", "betas", "weight_decay"},
            "output": {"trackers"},
            "compute": {"attention"},
        }
    )


@dataclass
class _Answer:
    errors: list[tuple[int, str]] = field(default_factory=list)
    """Each with the index of its configuration."""
    warnings: list[str] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)


def _ask(configs: list[RunConfig], here: bool) -> _Answer:
    """The answer of the process that imports the code. If it ends early, that is an error of the
    configuration that it was checking."""
    lines = [
        json.dumps({"config": config.model_dump(mode="json"), "here": here}) for config in configs
    ]
    variables = {**os.environ, **dict.fromkeys(environment.THREAD_VARIABLES, "1")}
    command = [sys.executable, "-m", "mixgrpo.training.preflight"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env=variables,
            start_new_session=True,  # so that its children can be killed with it
        )
        late = False
        try:
            output, _ = process.communicate("\n".join(lines), IMPORTS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            late = True
            _kill(process)
            output, _ = process.communicate()
        except BaseException:
            _kill(process)
            raise
        log.seek(0)
        last = next(iter(log.read().strip().splitlines()[::-1]), "")
    answer, index, begun, over = _Answer(), 0, "", False
    for line in map(_as_json, output.splitlines()):
        index, begun = line.get("at", index), line.get("begins", begun)
        if "error" in line:
            answer.errors.append((index, line["error"]))
        if "warning" in line:
            answer.warnings.append(line["warning"])
        if "disk" in line:
            answer.disk.append(line["disk"])
        over = over or "over" in line
    if late:
        why = f"takes longer than {IMPORTS_TIMEOUT_S:g} s"
    else:
        code = process.returncode
        why = "ended the process (" + (f"signal {-code}" if code < 0 else f"exit code {code}") + ")"
    if late or not over:
        answer.errors.append((index, f"{begun}: importing its code {why}{last and f': {last}'}"))
    return answer


def _as_json(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:  # cut short
        return {}
    return value if isinstance(value, dict) else {}


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _say_disk(needed: int, runs_dir: Path, say: Callable[[str], None]) -> None:
    path = runs_dir.absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if needed > free:
        say(
            f"warning: the checkpoints of these runs may take {needed / 2**30:,.0f} GiB, and "
            f"{nearest} has {free / 2**30:,.0f} GiB free (output.checkpoints_kept keeps fewer)"
        )
