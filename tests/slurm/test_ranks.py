"""Runs of several processes: one Slurm job starts them on its nodes, and they meet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.runs.state import RunState, look_at_all
from harness.study.load import load_sweep

from .cluster import Cluster
from .conftest import SITE

REPOSITORY = Path(__file__).parents[2]

TINY = f"""\
name: ranks
question: Do they meet?
base: {REPOSITORY}/sweeps/presets/scenes.yaml
set:
  iterations: 3
  sampler.steps: 6
  window.size: 2
  rollout: {{prompts: 2, group_size: 4}}
  objective.updates: 2
  evaluation: {{every: 3, prompts: 8, images_per_prompt: 1, steps: 4}}
  output: {{checkpoint_every: 1, samples: 0}}
arms: {{one: {{}}}}
seeds: 1
"""


@pytest.fixture
def folder(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site.yaml").write_text(SITE.replace("memory_gb: 1", "memory_gb: 4"))
    monkeypatch.setenv("MIXGRPO_SLURM", str(tmp_path / "site.yaml"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "ranks.yaml").write_text(TINY)
    return tmp_path


def sweep(folder: Path, runs: str, *options: str) -> RunState:
    """Run the sweep to its end and look at its run."""
    command = [sys.executable, "-m", "harness.sweep", "ranks.yaml", "--runs", runs, *options]
    done = subprocess.run(
        [*command, "--reports", f"{runs}-reports"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    (state,) = look_at_all(load_sweep(folder / "ranks.yaml"), folder / runs)
    log = state.folder / "log" / "1.log"
    assert done.returncode == 0, (
        done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    )
    return state


def lines(state: RunState) -> list[dict[str, Any]]:
    text = (state.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("layout", [("nodes=2",), ("nodes=2", "tasks_per_node=2", "sharded=true")])
def test_processes_on_two_nodes_compute_what_one_does(
    folder: Path, layout: tuple[str, ...]
) -> None:
    options = [word for setting in layout for word in ("--slurm", setting)]
    together = sweep(folder, "together", "--executor", "slurm", *options)
    alone = sweep(folder, "alone", "--executor", "inline")
    (attempt,) = together.attempts
    assert attempt.executor == "slurm"
    for one, other in zip(lines(together), lines(alone), strict=True):
        for key in ("reward_composition_mean", "grad_norm", "ratio_max"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key
        assert one["evaluations_computed"] >= other["evaluations_computed"]
    result = json.loads((together.folder / "result.json").read_text())
    assert result["hash"] == together.run.hash
    # The checkpoint says how many made it.
    manifest = next((together.folder / "checkpoints").glob("*/manifest.json"))
    processes = json.loads(manifest.read_text())["made_on"]["processes"]
    assert processes == (2 if len(layout) == 1 else 4)
    others = sorted(p.name for p in (together.folder / "log").glob("*.rank*.log"))
    assert len(others) == processes - 1
