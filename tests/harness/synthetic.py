"""Sweeps with known truth: configurations and run folders as a finished training leaves them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.study.arms import Arm
from harness.study.spec import Run, Sweep
from mixgrpo.files.records import measured, sealed
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config
from mixgrpo.settings.identity import config_hash

PROMPTS = [
    "a red square above a blue cross",
    "three green triangles",
    "a yellow cross",
    "a blue triangle left of a red square",
    "two yellow squares",
    "a green cross below a red triangle",
    "four blue crosses",
    "a red triangle right of a green square",
]
COLOURS = [(230, 40, 40), (40, 200, 60), (50, 80, 240), (240, 220, 40)]


def make_sweep(
    intervals: tuple[int, ...] = (9, 12, 15, 18),
    seeds: int = 5,
    iterations: int = 96,
    reference: int = 15,
    **changes: Any,
) -> Sweep:
    """A sweep over the shift interval, as `load_sweep` would make it."""
    arms, runs, rows = [], [], {}
    published = ("15", "20", "25", "30")
    for index, interval in enumerate(intervals):
        settings = {"window.interval": interval}
        arms.append(Arm(name=f"interval={interval}", label=f"τ = {interval}", settings=settings))
        rows[arms[-1].name] = published[index % 4]
    for seed in range(seeds):
        for arm, interval in zip(arms, intervals, strict=True):
            config = RunConfig.model_validate(
                {
                    "seed": seed,
                    "iterations": iterations,
                    "window": {"interval": interval},
                    "evaluation": {"every": 12},
                }
            )
            runs.append(Run(arm.name, seed, config, config_hash(config)))
    values: dict[str, Any] = {
        "name": "tau",
        "question": "Does the shift interval τ of the window change what is learned?",
        "file": Path("sweeps/tau.yaml"),
        "profile": "laptop",
        "arms": tuple(arms),
        "seeds": tuple(range(seeds)),
        "runs": tuple(runs),
        "reference": f"interval={reference}",
        "measure": "composition",
        "paper": "tau",
        "paper_rows": rows,
        "notes": "96 iterations instead of 300, and τ scaled with them (15 stands for 25).",
    }
    return Sweep(**(values | changes))


def write_runs(
    sweep: Sweep,
    runs_dir: Path,
    effects: Mapping[str, float] | None = None,
    sd: float = 0.02,
    skip: frozenset[tuple[str, int]] = frozenset(),
) -> None:
    """Finished run folders of a sweep: `effects[arm]` is added to the final reward of an arm.

    Runs in `skip` are left out. Arms with the same seed share their numbers until their windows
    first differ, as real ones do.
    """
    for run in sweep.runs:
        if (run.arm, run.seed) not in skip:
            _write_run(sweep, run, runs_dir, (effects or {}).get(run.arm, 0.0), sd)


def _write_run(sweep: Sweep, run: Run, runs_dir: Path, effect: float, sd: float) -> None:
    folder = runs_dir / sweep.name / run.folder_name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    _write_json(folder / "env.json", ENVIRONMENT)
    window, total = run.config.make_window(), run.config.iterations
    shared = np.random.default_rng([run.seed, 1])
    own = np.random.default_rng([run.seed, sum(run.arm.encode())])
    start = 0.52 + 0.006 * shared.standard_normal()
    gain = 0.11 + effect + sd * (0.5 * shared.standard_normal() + 0.85 * own.standard_normal())
    slow = 1.0 + 0.06 * own.random()
    metrics = []
    for m in range(total):
        at = window.start_at(m)
        phases = {
            "rollout": 0.34 - 0.006 * at,
            "decode": 0.004,
            "reward": 0.06,
            "update": 0.42,
            "other": 0.01,
        }
        times = {
            f"seconds_{name}": slow * value * (1 + 0.05 * own.random()) * (2 if m == 0 else 1)
            for name, value in phases.items()
        }
        rewards = {}
        for name, value in {"composition": 0.45, "palette": 0.9, "strict": 0.3}.items():
            rewards[f"reward_{name}_mean"] = value + 0.01 * at + 0.01 * own.standard_normal()
            rewards[f"reward_{name}_std"] = 0.2
        metrics.append(
            {
                "iteration": m,
                "window_start": at,
                "window_size": window.size,
                **rewards,
                "advantage_mean": 0.0,
                "advantage_std": 1.0,
                "groups_without_variance": 0,
                "ratio_max": 1.0002,
                "clip_fraction": 0.3,
                "noise_floor": 1e-6,
                "grad_norm": 0.004,
                "loss": 0.0,
                "kl": 0.0,
                "nfe_rollout": 25.0,
                "nfe_train": 4.0,
                "evaluations_computed": 96 * (25 - at) + 8 * at + 384,
                "backward_computed": 384,
                **times,
                "seconds_total": sum(times.values()),
                "memory_peak_bytes": 400_000_000,
            }
        )
    evals = []
    for m in sorted({*range(0, total + 1, run.config.evaluation.every), total}):
        done = m / total
        curve = (1 - np.exp(-2.5 * done)) / (1 - np.exp(-2.5))
        wobble = 0.004 * own.standard_normal() if 0 < m < total else 0.0
        values = {
            "composition": start + gain * curve + wobble,
            "palette": 0.979 - 0.11 * done**1.3 + 0.3 * wobble,
            "strict": 0.37 + 1.4 * gain * curve + wobble,
        }
        line: dict[str, Any] = {"iteration": m}
        for name, value in values.items():
            line |= {f"reward_{name}_mean": float(value), f"reward_{name}_std": 0.25}
        evals.append(line | {"prompts": 80, "images": 160, "seconds_total": 0.8})
        if m in (0, total):
            _write_samples(folder / "samples" / f"{m:06d}", run.seed, clean=m == 0)
    _write_json(folder / "samples" / "prompts.json", PROMPTS)
    _write_lines(folder / "metrics.jsonl", metrics)
    _write_lines(folder / "eval.jsonl", evals)
    names = ("composition", "palette", "strict")
    _write_json(
        folder / "result.json",
        {
            "schema": 1,
            "hash": run.hash,
            "seed": run.seed,
            "iterations": total,
            "before": {name: evals[0][f"reward_{name}_mean"] for name in names},
            "after": {name: evals[-1][f"reward_{name}_mean"] for name in names},
            "seconds_total": sum(line["seconds_total"] for line in metrics),
            "evaluations_computed": sum(line["evaluations_computed"] for line in metrics),
            "backward_computed": sum(line["backward_computed"] for line in metrics),
            "nfe_rollout": 25.0,
            "nfe_train": 4.0,
        },
    )
    seal(folder)


def seal(folder: Path) -> None:
    """Make a run's result tell of the lines that are there now."""
    file = folder / "result.json"
    result = json.loads(file.read_text())
    names = ("metrics.jsonl", "eval.jsonl")
    digests = {name: measured((folder / name).read_bytes()).model_dump() for name in names}
    _write_json(file, sealed(result | {"digests": digests}))


ENVIRONMENT = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "python": "3.12.1",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.0"},
    "device": "cpu",
    "cpu": "a processor",
    "threads": 1,
}


def _write_samples(folder: Path, seed: int, clean: bool) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, 7])
    for k in range(len(PROMPTS)):
        pixels = np.zeros((16, 16, 3))
        for _ in range(2):
            y, x = rng.integers(0, 10, size=2)
            pixels[y : y + 6, x : x + 6] = COLOURS[int(rng.integers(4))]
        if not clean:
            pixels[::4, ::4] += 25
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.png")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
