"""A process that measures finished runs for `harness.probe`: one line per task and per answer.

The libraries are imported once for all tasks. The process ends with its input: after its command
was killed, it finishes and saves the current task.
"""

import importlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from harness.probing.tasks import Task
from harness.study.spec import Run
from mixgrpo import cli
from mixgrpo.compute.foreign import in_words
from mixgrpo.errors import ConfigError, CorruptCheckpointError, RunError
from mixgrpo.files.records import RESULT
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_config
from mixgrpo.settings.layers import as_tuples
from mixgrpo.settings.probes import PROBES, options_of
from mixgrpo.settings.trust import Key, named_code


def measure(task: Task) -> str | None:
    """Measure and save. Returns the error in one line, or None."""
    begin = time.perf_counter()
    try:
        module, _, function = PROBES[task.name].measure.partition(":")
        probe: Any = getattr(importlib.import_module(module), function)
        options = options_of(task.name, task.options)
        config = task.run.config
        if _code(load_config(task.folder / "config.yaml")) != _code(config):
            raise ConfigError(f"{task.folder}: names other code than the sweep; it is not measured")
        rows = probe(task.folder, config.iterations, options, config.rewards)
        task.write(rows, time.perf_counter() - begin)
    except CorruptCheckpointError as error:
        result = shlex.quote(str(task.folder / RESULT))
        return f"{error.what}; `mv {result} {result}.old` and run the sweep again to compute it"
    except (ConfigError, RunError) as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except BaseException as error:  # the other tasks go on
        return in_words(error)
    return None


def _code(config: RunConfig) -> dict[Key, str]:
    """The code that a run names and uses: a run that two sweeps share has the first one's file, and
    these may differ in rewards that it does not use."""
    used = {*config.rewards.train, *config.rewards.held_out}
    return {
        key: value
        for key, value in named_code(config).items()
        if key[0] != "rewards" or key[-1] in used
    }


def _task(line: str) -> Task:
    fields = json.loads(line)
    config = RunConfig.model_validate(as_tuples(fields["config"]))
    run = Run(fields["arm"], fields["seed"], config, fields["hash"])
    return Task(run, Path(fields["folder"]).absolute(), fields["name"], fields["options"])


def serve(tasks: TextIO, answers: TextIO) -> None:
    """Measure until the tasks end."""
    for line in tasks:
        answers.write(json.dumps({"error": measure(_task(line))}) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Output of libraries must not mix with the answers.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        cli.say_warnings()
        serve(sys.stdin, out)
