"""The benchmark measures what it says: counts, the floor's passes, the naive way's result."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import iteration_time, larger, one_at_a_time
from benchmarks.arms import (
    FIRST,
    FLOOR,
    ONE,
    OURS,
    UNSHARED,
    Subject,
    Timing,
    check,
    first_position,
    mean_position,
)
from benchmarks.floor import Floor, recorded
from benchmarks.ratios import Measurement, Rounds, Spread, verdicts
from mixgrpo.compute.clock import Clock
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.sampling.plan import Cost, iteration_cost
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_config
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo.toy import ToyPolicy

pytestmark = pytest.mark.usefixtures("toy_site")

PRESETS = Path(__file__).parents[2] / "sweeps" / "presets"
TOY = [
    "model.name=toy",
    "rewards.train={brightness: 1.0, contrast: 0.5}",
    "rewards.held_out=[]",
    "rollout.prompts=2",
    "rollout.group_size=4",
    "objective.updates=2",
]


def config(preset: str, *overrides: str) -> RunConfig:
    return load_config(PRESETS / f"{preset}.yaml", list(overrides))


def subject(preset: str) -> Subject:
    toy = iteration_time.Model("embedded", "The toy", TOY)
    return iteration_time.subject(toy, preset, "cpu")


@pytest.mark.parametrize("preset", iteration_time.PRESETS)
def test_every_arm_runs_and_computes_what_the_plan_says(preset: str) -> None:
    found = subject(preset)
    assert {OURS, FLOOR, UNSHARED, ONE} <= found.arms.keys()
    for arm in found.arms.values():  # each of them checks its counts
        timing = arm()
        assert timing.seconds >= sum(timing.phases.values()) * (1 - 1e-9) > 0


def test_a_wrong_count_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    found = subject("mixgrpo")
    monkeypatch.setattr(found.trainer.velocity, "evaluations", 0)
    inner = found.trainer.velocity._velocity

    def twice(*args: Any) -> Any:
        found.trainer.velocity.evaluations += 1
        return inner(*args)

    monkeypatch.setattr(found.trainer.velocity, "_velocity", twice)
    with pytest.raises(RunError, match="mixgrpo, shared noise, iteration 125: computed"):
        found.arms[OURS]()
    with pytest.raises(RunError, match="one at a time"):
        found.arms[ONE]()
    with pytest.raises(RunError, match=r"8 evaluations, 2 of them with gradient, where .* 8 and 3"):
        check("it", Cost(8, 2), Cost(8, 3))


@pytest.mark.parametrize("preset", iteration_time.PRESETS)
def test_one_at_a_time_ends_with_the_weights_of_the_trainer(preset: str) -> None:
    # Plain gradient steps: Adam would blow rounding of tiny gradients up to whole steps.
    extra = ["optimizer.name=torch.optim.SGD", "optimizer.lr=0.5", "optimizer.max_grad_norm=1.0"]
    settings = config(preset, *TOY, *extra, "health.drift=false", "objective.clip_range=0.1")
    ours, naive = Trainer(settings, Ranks()), Trainer(settings, Ranks())
    start = {k: p.detach().clone() for k, p in ours.parameters.items()}
    # Late in the run, where a moving window has left the first step.
    for iteration in (200, 201):
        ours.iterate(iteration)
        one_at_a_time.iterate(naive, iteration, naive.prompts_at(iteration), Clock("cpu"))
    for name, weights in ours.parameters.items():
        moved = float((weights - start[name]).detach().abs().max())
        assert moved > 1e-3
        torch.testing.assert_close(naive.parameters[name], weights, rtol=0, atol=1e-4 * moved)
        averages = (naive.state.average[name], ours.state.average[name])
        torch.testing.assert_close(*averages, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["flow-grpo", "dance-grpo", "mixgrpo-flash"])
def test_the_floor_makes_the_passes_of_the_iteration(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], bool, bool]] = []
    real = ToyPolicy.velocity

    def noting(self: ToyPolicy, latents: Any, sigma: Any, conditioning: Any) -> Any:
        per_row = isinstance(sigma, torch.Tensor)
        seen.append((tuple(latents.shape), per_row, torch.is_grad_enabled()))
        return real(self, latents, sigma, conditioning)

    monkeypatch.setattr(ToyPolicy, "velocity", noting)
    trainer = Trainer(config(preset, *TOY, "health.drift=false"), Ranks())
    with recorded(trainer) as calls:
        trainer.iterate(200)
    of_iteration = list(seen)
    assert sum(rows[0] for rows, _, _ in seen) == iteration_cost(trainer.config, 200).forward
    assert any(per_row for _, per_row, _ in seen)  # several steps in one forward
    seen.clear()
    for parameter in trainer.parameters.values():
        parameter.grad = None
    clock = Clock("cpu")
    Floor(calls, "cpu").replay(clock)
    assert seen == of_iteration
    assert {"seconds_rollout", "seconds_update"} <= clock.seconds().keys()
    assert all(p.grad is not None and p.grad.any() for p in trainer.parameters.values())
    assert type(trainer.velocity).__name__ == "CountedVelocity"


def test_positions_stand_for_the_run() -> None:
    mean, first = (f(config("mixgrpo")) for f in (mean_position, first_position))
    # 300 iterations with tau = 25 end at l = 11: the mean of 8 (l + 1 + 12 (24 - l)) + 320 over
    # l = 0 .. 11 lies between l = 5 and l = 6.
    assert (mean.iteration, mean.window, mean.steps) == (125, 5, 25)
    assert mean.mean_forward == pytest.approx(8 * (6.5 + 12 * 18.5) + 320)
    assert mean.cost == Cost(8 * (6 + 12 * 19) + 320, 320)
    assert mean.unshared == Cost(8 * 12 * (25 + 4), 8 * 12 * 4)
    assert (first.iteration, first.window) == (0, 0)
    flash = mean_position(config("mixgrpo-flash"))
    assert flash.mean_steps == pytest.approx(16.6, abs=0.05)  # the paper: 16


def timing(seconds: float) -> Timing:
    return Timing(seconds, {"rollout": seconds})


def test_ratios_are_made_within_rounds() -> None:
    seconds = {(OURS, 0): 2.0, (OURS, 1): 30.0, (OURS, 2): 8.0, (ONE, 0): 6.0, (ONE, 2): 40.0}
    rounds = Rounds([Measurement("m", "p", a, r, timing(s)) for (a, r), s in seconds.items()])
    # 6 / 2 and 40 / 8; the round without a partner is left out.
    assert rounds.ratio(("p", ONE), ("p", OURS)) == Spread(4.0, 3.5, 4.5)
    assert rounds.spread("p", OURS) == Spread(8.0, 5.0, 19.0)
    assert rounds.arms("p") == [OURS, ONE]


def test_a_target_is_judged_by_the_median_and_the_worst_preset() -> None:
    of = {
        "dance-grpo": (10.0, 9.6),
        "mixgrpo": (4.2, 4.1),
        "mixgrpo-flash": (3.1, 2.5),
        "mixgrpo-flash-star": (2.6, 2.5),
    }
    rounds = Rounds(
        [
            Measurement("larger", preset, arm, 0, timing(seconds))
            for preset, pair in of.items()
            for arm, seconds in zip((OURS, FLOOR), pair, strict=True)
        ]
    )
    found = {v.target.partition(" (")[0]: v for v in verdicts("larger", "cpu", rounds, list(of))}
    reached = {target: (round(v.measured.median, 2), v.reached) for target, v in found.items()}
    assert reached == {
        "larger: shared / floor, mixgrpo <= 1.05": (1.02, True),
        "larger: shared / floor, largest: mixgrpo-flash <= 1.05": (1.24, False),
        "larger: mixgrpo / dance-grpo": (0.42, True),
        "larger: mixgrpo-flash / dance-grpo": (0.31, False),
        "larger: mixgrpo-flash-star / dance-grpo": (0.26, True),
    }


def test_the_command_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    presets = ["dance-grpo", "mixgrpo"]
    monkeypatch.setattr(iteration_time, "PRESETS", presets)
    monkeypatch.setattr(
        iteration_time, "EMBEDDED", iteration_time.Model("embedded", "The toy", TOY)
    )
    path = list(sys.path)
    iteration_time.main(tmp_path / "results", "embedded", rounds=2)
    assert sys.path == path
    printed = capsys.readouterr().out
    assert (tmp_path / "results" / "iteration_time_cpu.md").read_text() == printed
    data = json.loads((tmp_path / "results" / "iteration_time_cpu.json").read_text())
    taken = [(m["preset"], m["arm"], m["round"]) for m in data["measurements"]]
    assert len(taken) == len(set(taken))
    for preset in presets:
        assert [(preset, arm, 0) in taken for arm in (OURS, FLOOR, UNSHARED, ONE)] == [True] * 4
        assert [(preset, arm, 1) in taken for arm in (OURS, FLOOR, UNSHARED)] == [True, True, False]
    assert ("mixgrpo", FIRST, 0) in taken
    assert data["made_on"]["threads"] == 1
    mine = [m["timing"]["seconds"] for m in data["measurements"] if m["arm"] == ONE][1:]
    assert f"| mixgrpo | one at a time | 5 | 25 | 232 | 32 | {Spread.of(mine)} |" in printed


class Echo(nn.Module):
    """A transformer that predicts the tokens that it is given."""

    def forward(self, hidden_states: Any, **given: Any) -> tuple[Any]:
        self.given = given
        return (hidden_states,)


def test_the_larger_model_has_the_proportions_of_flux() -> None:
    policy = larger.LargerPolicy.load("1x1x4", "cpu")
    network = policy.transformer
    assert len(network.single_transformer_blocks) == 2 * len(network.transformer_blocks) == 2
    assert network.config.attention_head_dim == 128
    assert network.config.guidance_embeds
    assert policy.text_tokens == 4  # 16 * 512 / 2025
    noise = torch.randn(2, *policy.latent_shape)
    text = policy.encode(["a", "b"])
    v = policy.velocity(noise, 0.5, text)
    assert v.shape == noise.shape
    torch.testing.assert_close(
        policy.velocity(noise[1:], torch.tensor([0.5]), {k: t[1:] for k, t in text.items()}), v[1:]
    )
    policy.transformer = Echo()
    assert torch.equal(policy.velocity(noise, 0.5, text), noise)
    assert policy.transformer.given["img_ids"][5].tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match="2x1x8"):
        larger.LargerPolicy.load("huge", "cpu")
