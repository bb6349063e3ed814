"""What is checked at `--plan`, and before a command that starts runs writes anything.

Code that a run names is imported in a process of its own (`mixgrpo.training.preflight`), one for
all runs, and only where something other than built-in code is named.
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
from harness.slurm import commands as slurm
from harness.study.names import check_paths
from harness.study.spec import Sweep
from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.errors import ConfigError, ErrorList
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import Layers, located, placed
from mixgrpo.settings.places import check_folder
from mixgrpo.training.preflight import check_count, is_plain

PATIENCE_S = 180.0
"""The most that all imports together may take."""
_OF_GPUS = re.compile(r"\b(CUDA|NVIDIA|HIP|ROCm)\b", re.IGNORECASE)

Named = tuple[RunConfig, Layers]
"""A configuration, and where its settings were written."""


def check_folders(sweep: Sweep, runs_dir: Path, reports_dir: Path, on_slurm: bool) -> None:
    """ConfigError where the folders of the runs and of the report cannot be made or written, belong
    to another file of the same name, or cannot be used by Slurm."""
    folder = sweep_folder(sweep, runs_dir)
    check_paths([folder, *(folder / run.folder_name for run in sweep.runs)], f"--runs {runs_dir}")
    check_paths([reports_dir / sweep.report_name], f"--reports {reports_dir}")
    for place in (folder / run.folder_name for run in sweep.runs):
        if place.is_symlink() and not place.exists():
            raise ConfigError(
                f"{place}: is a link to {place.readlink()}, which is not there; bring back what it "
                "leads to, or remove the link to make the run anew"
            )
    check_folder("--runs", folder)
    check_folder("--reports", reports_dir / sweep.report_name)
    source.check(sweep.name, sweep.file, folder, reports_dir / sweep.report_name)
    if on_slurm:
        slurm.check_path(folder)


def check_runs(
    sweep: Sweep,
    states: Sequence[RunState],
    executor: ExecutorName,
    wishes: Mapping[str, Slurm],
    runs_dir: Path,
    say: Callable[[str], None],
) -> None:
    """ConfigError where runs that are not finished could not be run as they are asked for; what
    may yet go well is said. `wishes`: what each arm asks of Slurm."""
    left = {state.run.arm: state.run.config for state in states if state.state != "finished"}
    asked = _asked_elsewhere(sweep) if executor != "slurm" else {}
    for arm in left:
        check_processes(executor, asked.get(arm, Slurm()), sweep.file, f"arm {arm}")
    elsewhere = {arm for arm in left if arm in wishes and wishes[arm].python is not None}
    named = [(left[arm], sweep.layers[arm]) for arm in left if arm not in elsewhere]
    if any(not is_plain(left[arm]) for arm in elsewhere):
        say("the code that runs name is checked by the jobs alone: slurm.python starts another one")
    disk = check_code(named, executor != "slurm", say)
    runs = sum(state.state != "finished" for state in states)
    _say_disk(disk * runs, runs_dir, say)


def _asked_elsewhere(sweep: Sweep) -> dict[str, Slurm]:
    """What each arm of the file asks of Slurm, for an executor that is another one."""
    try:
        return resources(sweep, site=False)
    except ConfigError:  # the site's file may be what is missing
        return resources(sweep)


def check_processes(executor: str, asked: Slurm, file: Path, whose: str = "a trial") -> None:
    """ConfigError where a run is to have several processes, which Slurm alone gives it."""
    if executor == "slurm" or asked.processes == 1:
        return
    gpus = f"{asked.gpus * asked.nodes} GPUs" if asked.gpus else f"{asked.nodes} node(s)"
    raise ConfigError(
        f"{file}: slurm: a run of {whose} is meant for {asked.processes} processes on {gpus}, and "
        f"--executor {executor} gives it one process; this machine has {len(environment.gpus())} "
        "GPU(s). Take --executor slurm, or settings for one GPU (model.train lora)"
    )


def check_code(named: Iterable[Named], here: bool, say: Callable[[str], None]) -> int:
    """Check what the configurations name. ConfigError with all that is wrong and its places.

    `here`: they would run on this machine. Bytes that one run's checkpoints take, where that is
    known, else 0.
    """
    errors = ErrorList()
    distinct: dict[str, Named] = {}
    for config, layers in named:
        with errors.collected(), placed(layers):
            check_count(config)
        if not is_plain(config) or (here and config.model.name in DIFFUSION):
            distinct.setdefault(_what_is_checked(config), (config, layers))
    asked = list(distinct.values())
    answer = _ask([config for config, _ in asked], here) if asked else _Answer()
    for at, text in answer.errors:
        if not here and not environment.gpus() and _OF_GPUS.search(text):
            say(f"warning: {text} (which may be otherwise on a node with a GPU)")
            continue
        errors.errors.append(located(text, asked[at][1]))
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
    """What the process says that imports the code; its own end is an error of what it was at."""
    lines = [
        json.dumps({"config": config.model_dump(mode="json"), "here": here}) for config in configs
    ]
    variables = {**os.environ, **dict.fromkeys(environment.THREAD_VARIABLES, "1")}
    command = [sys.executable, "-m", "mixgrpo.training.preflight"]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            errors="replace",
            env=variables,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        late = False
        try:
            output, _ = process.communicate("\n".join(lines), PATIENCE_S)
        except subprocess.TimeoutExpired:
            late = True
            _end(process)
            output, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
        said.seek(0)
        last = next(iter(said.read().strip().splitlines()[::-1]), "")
    answer, at, begun, over = _Answer(), 0, "", False
    for line in map(_as_json, output.splitlines()):
        at, begun = line.get("at", at), line.get("begins", begun)
        if "error" in line:
            answer.errors.append((at, line["error"]))
        if "warning" in line:
            answer.warnings.append(line["warning"])
        if "disk" in line:
            answer.disk.append(line["disk"])
        over = over or "over" in line
    if late:
        why = f"takes longer than {PATIENCE_S:g} s"
    else:
        code = process.returncode
        why = "ended the process (" + (f"signal {-code}" if code < 0 else f"exit code {code}") + ")"
    if late or not over:
        answer.errors.append((at, f"{begun}: what is imported for it {why}{last and f': {last}'}"))
    return answer


def _as_json(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # cut short
        return {}
    return found if isinstance(found, dict) else {}


def _end(process: "subprocess.Popen[str]") -> None:
    """End the process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _say_disk(needed: int, runs_dir: Path, say: Callable[[str], None]) -> None:
    place = runs_dir.absolute()
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if needed > free:
        say(
            f"warning: the checkpoints of these runs may take {needed / 2**30:,.0f} GiB, and "
            f"{nearest} has {free / 2**30:,.0f} GiB free (output.checkpoints_kept keeps fewer)"
        )
