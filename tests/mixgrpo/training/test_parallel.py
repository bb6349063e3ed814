"""Runs of two processes, as `accelerate launch` starts them, against one process.

Equal up to the rounding of sums: the ranks' batches are smaller, and their sums are added up.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.parquet import read_table
from safetensors.torch import load_file

from mixgrpo import train
from mixgrpo.compute.ranks import Ranks
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config
from tests.mixgrpo import toy
from tests.mixgrpo.rank_children import COPIES, SHARDS, launch
from tests.mixgrpo.tiny import tiny_model

ITERATIONS = 3
# Relative, for metrics and for weights against the distance they have gone.
CLOSE = 2e-4
# Absolute, where that is more: a log-prob near 1 is known to 1e-7, and its sum over the 768
# elements of a latent to 768 times that. The loss is a small difference of advantages near 1.
KNOWN_TO = {
    "loss": 1e-6,
    "advantage_mean": 1e-6,
    "ratio_max": 4e-7,
    "noise_floor": 4e-7,
    "log_ratio_sum_max": 768 * 4e-7,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Three prompts on two ranks; KL, an accelerated tail, and every kind of sum."""
    return toy.config(
        model={"name": "scenes", "checkpoint": str(tiny_model(tmp_path_factory.mktemp("model")))},
        iterations=ITERATIONS,
        sampler={"steps": 6, "tail_ratio": 0.5, "order": 2},
        rollout={"prompts": 3, "group_size": 4},
        objective={"kl_weight": 0.1, "updates": 2},
        optimizer={"lr": 1e-3, "warmup": 2},
        evaluation={"prompts": 3, "steps": 4, "every": 2},
        output={"checkpoints_kept": 9},
    )


Launch = Callable[..., Path]


@pytest.fixture(scope="module")
def one(config: RunConfig, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run by one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert train.run(config, folder, ranks=Ranks()) == "finished"
    return folder


@pytest.fixture
def launched(
    config: RunConfig, toy_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """Launches a module on the configuration in two processes; gives the run's folder."""
    monkeypatch.setenv("PYTHONPATH", toy.environment(toy_site)["PYTHONPATH"])
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(dump_config(config))

    def run(flags: tuple[str, ...], module: str, *further: str) -> Path:
        code, said = launch(flags, module, str(file), *further, str(folder), seconds=240)
        assert code == 0, said
        return folder

    return run


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def assert_same(found: Path, expected: Path, ignoring: tuple[str, ...] = ()) -> None:
    """Metrics, evaluations, weights, their average and the optimizer's state."""
    for name in ("metrics.jsonl", "eval.jsonl"):
        mine, theirs = lines(found / name), lines(expected / name)
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - set(ignoring):
                if key.startswith(("seconds", "memory", "scores")):
                    continue
                known = KNOWN_TO.get(key, 1e-7)
                assert a[key] == pytest.approx(b[key], rel=CLOSE, abs=known), key
    files = sorted(file.name for file in (found / "scores").iterdir())
    assert files == sorted(file.name for file in (expected / "scores").iterdir())
    assert len(files) == len(lines(expected / "eval.jsonl"))
    for name in files:
        mine, theirs = (read_table(f / "scores" / name).to_pydict() for f in (found, expected))
        assert list(mine) == list(theirs)
        for key, values in theirs.items():
            if key.startswith("reward_"):
                assert mine[key] == pytest.approx(values, rel=CLOSE, abs=1e-7)
            else:
                assert mine[key] == values
    for group in ("weights", "average"):
        a, b, start = (
            load_file(folder / "checkpoints" / iteration / f"{group}.safetensors")
            for folder, iteration in (
                (found, f"{ITERATIONS:06d}"),
                (expected, f"{ITERATIONS:06d}"),
                (expected, "000001"),
            )
        )
        assert a.keys() == b.keys()
        for name, value in a.items():
            gone = (b[name] - start[name]).norm()
            assert (value - b[name]).norm() <= CLOSE * gone + 1e-7, name
    state = [
        load_file(folder / "checkpoints" / f"{ITERATIONS:06d}" / "optimizer.safetensors")
        for folder in (found, expected)
    ]
    assert state[0].keys() == state[1].keys()
    for name, value in state[0].items():
        torch.testing.assert_close(value, state[1][name], rtol=1e-2, atol=1e-6)


def test_two_ranks_with_copies_are_one_process(launched: Launch, one: Path) -> None:
    assert_same(launched(COPIES, "mixgrpo.train", "--out"), one)


def test_two_ranks_with_shards_are_one_process(launched: Launch, one: Path) -> None:
    """The rank with one prompt samples a second one, which counts for nothing, to keep step."""
    folder = launched(SHARDS, "mixgrpo.train", "--out")
    counts = ("evaluations_computed", "backward_computed", "evaluations_health")
    assert_same(folder, one, ignoring=counts)
    mine, theirs = lines(folder / "metrics.jsonl"), lines(one / "metrics.jsonl")
    for a, b in zip(mine, theirs, strict=True):
        for key in counts[:2]:
            assert a[key] == b[key] / 3 * 4


@pytest.mark.parametrize("flags", [COPIES, SHARDS], ids=["copies", "shards"])
def test_steps_of_norm_one_are_of_all_ranks_together(
    flags: tuple[str, ...], launched: Launch, config: RunConfig, tmp_path: Path
) -> None:
    unit = {"objective": config.objective.model_copy(update={"step_gradient": "unit"})}
    alone = tmp_path / "alone"
    assert train.run(config.model_copy(update=unit), alone, ranks=Ranks()) == "finished"
    further = ("--set", "objective.step_gradient=unit", "--out")
    counts = ("evaluations_computed", "backward_computed", "evaluations_health")
    assert_same(launched(flags, "mixgrpo.train", *further), alone, ignoring=counts)


def test_a_run_goes_on_with_another_number_of_ranks(
    launched: Launch, one: Path, config: RunConfig
) -> None:
    folder = launched(COPIES, "tests.mixgrpo.stopping_train", "2")
    assert len(lines(folder / "metrics.jsonl")) == 2
    said = r"processes 2, goes on with.*prompts, noise, windows and state are exactly those"
    with pytest.warns(UserWarning, match=said):
        assert train.run(config, folder, ranks=Ranks()) == "finished"
    assert_same(folder, one)
