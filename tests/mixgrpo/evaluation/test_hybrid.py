"""Hybrid inference by p_mix: the run's own evaluations, and what `mixgrpo.evaluate` says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixgrpo import train
from mixgrpo.errors import ConfigError
from mixgrpo.evaluate import compare, judge
from mixgrpo.evaluation import hybrid
from mixgrpo.evaluation.hybrid import measure
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.rewards.load import load_rewards
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import Sampling
from mixgrpo.settings.probes import options_of
from tests.mixgrpo import toy

STEPS = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy-run"
    config = toy.config(
        optimizer={"lr": 0.05},
        evaluation={"every": 4, "steps": STEPS, "images_per_prompt": 5},
        compute={"micro_batch": 3},
    )
    assert train.run(config, folder) == "finished"
    return folder


def measured(run: Path, **given: Any) -> dict[tuple[float, str], dict[str, Any]]:
    options: Any = options_of("hybrid", given)
    return {(row["p_mix"], row["reward"]): row for row in measure(run, 4, options)}


def test_the_ends_are_the_runs_own_first_and_last_evaluations(run: Path) -> None:
    rows = measured(run)
    lines = read_lines(run / "eval.jsonl")
    first, last = lines[0], lines[-1]
    for reward, role in (("brightness", "trained"), ("contrast", "held out")):
        for p, line in ((0.0, first), (1.0, last)):
            row = rows[p, reward]
            assert row["mean"] == pytest.approx(line[f"reward_{reward}_mean"], rel=1e-6)
            assert row["sd"] == pytest.approx(line[f"reward_{reward}_std"], rel=1e-5)
            assert row["images"] == line["images"] == 10
            assert row["role"] == role
        assert rows[0.0, reward]["mean"] != rows[1.0, reward]["mean"]


def test_every_p_mix_is_what_the_evaluation_command_says_of_it(run: Path, toy_site: Path) -> None:
    rows = measured(run, p_mix=[0.3, 0.8], rewards=["constant"])
    loaded = load_run(run)
    ev = loaded.config.evaluation
    rewards = load_rewards(["brightness", "contrast", "constant"], loaded.config.rewards)
    ways = [Sampling(ev.steps, float(ev.shift), p) for p in (0.0, 0.3, 0.8)]
    judged = judge(loaded, ways, rewards, toy.PROMPTS[7:], 5, 3)
    for row in compare(loaded.config, ways, judged, 3):
        if row.sampling.p_mix:
            own = rows[row.sampling.p_mix, row.reward]
            assert own["mean"] == pytest.approx(row.mean.mean, rel=1e-6)
            assert own["trained_steps"] == row.sampling.trained_steps
    assert rows[0.3, "constant"]["role"] == "other"
    assert len({row["trained_steps"] for row in rows.values()}) == 2


def test_the_trained_models_steps_are_taken_once_for_all_values(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"trained": 0, "base": 0}

    def loaded(folder: Path, iteration: int) -> Any:
        found = load_run(folder, iteration)

        def counting(name: str, velocity: Any) -> Any:
            def counted(x: Any, *rest: Any) -> Any:
                counts[name] += len(x)
                return velocity(x, *rest)

            return counted

        return replace(
            found,
            velocity=counting("trained", found.velocity),
            reference=counting("base", found.reference),
        )

    monkeypatch.setattr(hybrid, "load_run", loaded)
    rows = measured(run, p_mix=[0.0, 0.5, 1.0, 0.5])
    assert len(rows) == 6
    assert counts == {"trained": 10 * STEPS, "base": 10 * (STEPS + STEPS - round(STEPS / 2))}


def test_a_reward_that_is_none_is_one_line(run: Path) -> None:
    with pytest.raises(ConfigError, match="sharpness: not a name of"):
        measured(run, rewards=["sharpness"])
