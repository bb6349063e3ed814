"""Run folders in thousands, as finished and broken runs leave them, for timing the harness.

Every number of a metrics line that is measured in a real run has other digits in every line of
every run, so that nothing compresses or repeats better than real measurements do.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.finished import REWARDS, write_finished_files
from harness.study.spec import Run, Sweep
from mixgrpo.settings.configfile import dump_config

BASE = Path(__file__).parents[1] / "sweeps" / "presets" / "scenes.yaml"

STATES = ("failed", "killed", "stopped", "waiting", "running")
"""Beside `finished`: what becomes of every tenth run of a sweep with all states, in turn."""
RUNNING_AT_MOST = 4
"""A running run needs a lock that is held."""

REASONS = {"failed": "exception", "stopped": "stopped"}
"""What an attempt says of its end; that of a killed run says nothing."""

_DIGITS = re.compile(rb"\d\.\d{3}(\d{6,})")
"""Of a measured number, what follows the third decimal."""


def write_sweep_file(folder: Path, arms: int, seeds: int) -> Path:
    """A sweep of `arms` arms, on one axis up to 20 and on two beyond, and `seeds` seeds."""
    intervals = list(range(1, min(arms, 20) + 1))
    grid: dict[str, Any] = {"window.interval": intervals}
    if arms > len(intervals):
        rates = -(-arms // len(intervals))
        grid["optimizer.lr"] = [round(1e-5 * (1 + k / rates), 12) for k in range(rates)]
    text = {
        "name": f"scale-{arms}x{seeds}",
        "question": "What does the harness itself cost?",
        "base": str(BASE),
        "set": {"iterations": 300, "evaluation.every": 15},
        "grid": grid,
        "seeds": seeds,
    }
    file = folder / f"{text['name']}.yaml"
    file.write_text(json.dumps(text))  # JSON is YAML
    return file


def write_finished(sweep: Sweep, runs_dir: Path) -> None:
    """Finished folders of all runs; pictures of the first one alone."""
    arms = {run.arm: _Arm(run, k) for k, run in enumerate(sweep.runs[: len(sweep.arms)])}
    for index, run in enumerate(sweep.runs):
        rng = np.random.default_rng([run.seed, arms[run.arm].place])
        folder = runs_dir / sweep.name / run.folder_name
        _write_run(run, folder, arms[run.arm], rng)
        if index == 0:
            _write_samples(folder / "samples", run.config.iterations, rng)


def write_again(run: Run, runs_dir: Path) -> None:
    """A finished run's folder with other measurements."""
    folder = runs_dir / run.folder_name
    shutil.rmtree(folder)
    _write_run(run, folder, _Arm(run, 0), np.random.default_rng())


@contextmanager
def all_states(
    sweep: Sweep, runs_dir: Path, hold: Callable[[Path], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Of every ten finished runs one is made another: it comes to one of STATES.

    `hold` owns a run's folder, as the process that trains there does. Afterwards all are finished
    again.
    """
    running = 0
    results: dict[Path, bytes] = {}
    with ExitStack() as held:
        for index, run in enumerate(sweep.runs[::10]):
            folder = runs_dir / sweep.name / run.folder_name
            state = STATES[index % len(STATES)]
            result, attempt = folder / "result.json", folder / "attempts" / "1.json"
            results[result] = result.read_bytes()
            result.unlink()
            if state == "waiting":
                attempt.unlink()
            elif state == "running" and running < RUNNING_AT_MOST:
                running += 1
                _write(attempt, _attempt(None))
                held.enter_context(hold(folder))
            else:
                _write(attempt, _attempt(REASONS.get(state)))
        yield
    for result, content in results.items():
        result.write_bytes(content)
        _write(result.parent / "attempts" / "1.json", _attempt("finished"))


class _Arm:
    """What all runs of an arm have in common."""

    def __init__(self, run: Run, place: int) -> None:
        self.place = place
        self.settings = dump_config(run.config)
        window = run.config.make_window()
        lines = [_metrics(m, window.start_at(m), window.size) for m in range(run.config.iterations)]
        self.metrics = "".join(json.dumps(line) + "\n" for line in lines).encode()
        spans = [match.span(1) for match in _DIGITS.finditer(self.metrics)]
        self.digits = np.concatenate([np.arange(begin, end) for begin, end in spans])


def _write_run(run: Run, folder: Path, arm: _Arm, rng: np.random.Generator) -> None:
    (folder / "attempts").mkdir(parents=True)
    settings = arm.settings.replace("seed: 0\n", f"seed: {run.seed}\n", 1)
    (folder / "config.yaml").write_text(f"# schema 1, run {run.hash}\n{settings}")
    _write(folder / "env.json", ENVIRONMENT)
    _write(folder / "attempts" / "1.json", _attempt("finished"))
    metrics = np.frombuffer(arm.metrics, np.uint8).copy()
    metrics[arm.digits] = rng.integers(ord("0"), ord("9") + 1, len(arm.digits), np.uint8)
    write_finished_files(folder, run.config, metrics.tobytes(), _evaluations(run, rng))


def _metrics(iteration: int, start: int, size: int) -> dict[str, Any]:
    """A line of a real run; the digits behind the third decimal are drawn for every run."""
    line = {
        "iteration": iteration,
        "window_start": start,
        "window_size": size,
        "reward_composition_mean": 0.3802083134651184,
        "reward_composition_std": 0.3897162079811096,
        "advantage_mean": 2.9802322387695312e-08,
        "advantage_std": 0.925819993019104,
        "groups": 8,
        "groups_without_variance": 0,
        "ratio_max": 0.00017535686492919922,
        "clip_fraction": 0.1875,
        "noise_floor": 0.0,
        "log_ratio_sum_max": 0.134674072265625,
        "grad_norm": 0.03582105040550232,
        "loss": -1.570954918861389e-05,
        "kl": 0.0,
        "gradient_cosine": -0.12713674154809684,
        "group_diversity": 0.30355067551136017,
        "drift_step_kl": 0.16885681450366974,
        "drift_image_kl": 2.1028512716293335,
        "evaluations_health": 16,
        "lr": 0.0001,
        "nfe_rollout": 25,
        "nfe_train": 4,
        "evaluations_computed": 96 * (25 - start) + 8 * start + 384,
        "backward_computed": 320,
        "seconds_rollout": 0.388282929000240983,
        "seconds_decode": 6.430968592431797e-05,
        "seconds_reward": 0.0041666263131224603,
        "seconds_update": 0.2219184489997715,
        "seconds_health": 0.014040621999811265,
        "seconds_other": 0.00031659200067224447,
        "seconds_total": 0.628789527999542771,
        "memory_peak_bytes": 484556800,
    }
    if iteration % 25:  # measured where the window moves
        for key in ("drift_step_kl", "drift_image_kl", "evaluations_health"):
            del line[key]
    return line


def _evaluations(run: Run, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rewards that rise, by another amount with every seed."""
    total = run.config.iterations
    gain = 0.11 + 0.02 * rng.standard_normal()
    lines = []
    for m in range(0, total + 1, run.config.evaluation.every):
        rise, noise = gain * m / total, 0.004 * rng.standard_normal(3)
        line: dict[str, Any] = {"iteration": m}
        for name, value in zip(
            REWARDS, (0.58, 0.95, 0.37) + rise * np.array([1, -0.3, 1.4]) + noise, strict=True
        ):
            line |= {f"reward_{name}_mean": float(value), f"reward_{name}_std": 0.35998448729515}
        line |= {"diversity": 0.28717, "prompts": 80, "images": 160, "seconds_total": 0.81204}
        lines.append(line)
    return lines


def _attempt(reason: str | None) -> dict[str, Any]:
    error = 'Traceback (most recent call last):\n  File "train.py", line 1\nValueError: NaN'
    return {
        "number": 1,
        "pid": 8694,
        "job_id": "8691",
        "started": 1795264779.658783,
        "ended": None if reason is None else 1795265079.5269105,
        "reason": reason,
        "error": error if reason == "exception" else None,
        "executor": "local",
        "host": "node",
        "warnings": [],
    }


def _write_samples(folder: Path, total: int, rng: np.random.Generator) -> None:
    prompts = [f"picture {k}" for k in range(8)]
    for m in (0, total):
        (folder / f"{m:06d}").mkdir(parents=True)
        for k in range(len(prompts)):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{m:06d}" / f"{k}.png")
    _write(folder / "prompts.json", prompts)


ENVIRONMENT = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "python": "3.12.1",
    "versions": {"mixgrpo": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.0"},
    "system": "Linux x86_64",
    "cpu": "a processor",
    "threads": 1,
    "device": "cpu",
}


def _write(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n")
