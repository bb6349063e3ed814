"""One iteration against an oracle, from noise to weights; what must stop it; what evaluates it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo import evaluate as evaluation
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.evaluation.held_out import evaluation_noise
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.models.velocity import CountedVelocity
from mixgrpo.rewards.calls import score
from mixgrpo.sampling.plan import make_plan
from mixgrpo.sampling.rollout import repeat, sample_ode
from mixgrpo.training import collect
from mixgrpo.training.losses import policy as policy_losses
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import oracle, toy

pytestmark = pytest.mark.usefixtures("toy_site")


def make(**sections: Any) -> Trainer:
    return Trainer(toy.config(**sections), Ranks())


@dataclass
class Recorder:
    """Notes what the trainer gives to the rollout."""

    calls: list[tuple[Any, ...]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        return self.rollout(*args, **kwargs)

    rollout: Callable[..., Any] = collect.rollout


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder([])
    monkeypatch.setattr(collect, "rollout", found)
    return found


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in trainer.parameters.items()}


def net(values: dict[str, Tensor]) -> oracle.ToyNet:
    return oracle.ToyNet(values["inner"].double().numpy(), values["outer"].double().numpy())


@pytest.mark.parametrize("updates", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 2, 3])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_counted_cost_is_the_plans(updates: int, start: int, kl_weight: float) -> None:
    trainer = make(
        objective={"updates": updates, "kl_weight": kl_weight},
        window={"start": start, "strategy": "frozen"},
        sampler={"tail_ratio": 0.5, "order": 2},
        health={"drift": False},
    )
    prompts, group = trainer.config.rollout.prompts, trainer.config.rollout.group_size
    plan = make_plan(trainer.config.sampler, range(start, start + 2))
    policy = trainer.policy
    assert isinstance(policy, toy.ToyPolicy)
    policy.rows.clear()
    line = trainer.iterate(0)
    backward = prompts * plan.update_evaluations(group, updates)
    forward = prompts * plan.evaluations(group) + backward
    assert sum(policy.rows) == forward
    assert line["backward_computed"] == backward
    # A reference model is evaluated where the policy is, and costs as much.
    reference = trainer.reference.evaluations if trainer.reference is not None else 0
    assert reference == (backward if kl_weight else 0)
    assert line["evaluations_computed"] == forward + reference


def test_ratio_is_one_in_the_first_update_and_not_after_it() -> None:
    """In float32, with the batch geometry of the configuration."""
    for start in (0, 3):
        trainer = make(objective={"updates": 1}, window={"start": start})
        line = trainer.iterate(0)
        assert (line["ratio_max"], line["noise_floor"], line["clip_fraction"]) == (0, 0, 0)
        trainer = make(objective={"updates": 2}, window={"start": start})
        line = trainer.iterate(0)
        assert line["noise_floor"] == 0
        assert line["ratio_max"] > 0
        assert line["clip_fraction"] > 0


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"group_size": 10}, "objective": {"updates": 4}},
        {"rollout": {"group_size": 5}, "objective": {"updates": 3}, "compute": {"micro_batch": 4}},
        {"rollout": {"group_size": 7, "noise": "own"}, "objective": {"updates": 5}},
        {"rollout": {"group_size": 7, "prompts": 3, "block": 2}, "objective": {"updates": 2}},
        {
            "rollout": {"group_size": 7, "prompts": 3, "block": 2},
            "objective": {"updates": 3},
            "compute": {"micro_batch": 3},
            "window": {"start": 2},
        },
    ],
    ids=str,
)
def test_the_first_updates_batches_are_the_rollouts(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latent by latent: then the ratio is 1 in every precision, on every device."""
    trainer = make(**sections)
    sampled: set[tuple[tuple[int, ...], bytes]] = set()
    updated: list[tuple[tuple[int, ...], bytes]] = []
    plain, step = trainer.velocity._velocity, trainer.state.step
    updates = 0

    def velocity(x: Tensor, sigma: Any, conditioning: Any) -> Tensor:
        batch = (tuple(x.shape), x.detach().numpy().tobytes())
        if torch.is_grad_enabled():
            if not updates:
                updated.append(batch)
        else:
            sampled.add(batch)
        return plain(x, sigma, conditioning)

    def stepped(ema_decay: float) -> None:
        nonlocal updates
        updates += 1
        step(ema_decay)

    monkeypatch.setattr(trainer.velocity, "_velocity", velocity)
    monkeypatch.setattr(trainer.state, "step", stepped)
    line = trainer.iterate(0)
    assert updates == trainer.config.objective.updates
    assert set(updated) <= sampled
    assert len(updated) >= trainer.config.window.size
    assert line["noise_floor"] == 0


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30])
def test_a_rewards_scale_changes_no_weight(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two changes no bit; float64 holds what float32 cannot."""
    plain = make()
    lines = [plain.iterate(m) for m in range(2)]
    exact = 2.0 ** round(math.log2(scale))
    own = toy.Brightness.score

    def scaled_score(reward: toy.Brightness, images: Tensor, prompts: list[str]) -> Tensor:
        return own(reward, images, prompts).double() * exact

    monkeypatch.setattr(toy.Brightness, "score", scaled_score)
    scaled = make()
    others = [scaled.iterate(m) for m in range(2)]
    for line, other in zip(lines, others, strict=True):
        assert other["advantage_std"] == line["advantage_std"] > 0
        assert other["reward_brightness_mean"] == pytest.approx(
            exact * line["reward_brightness_mean"]
        )
        assert other["groups_without_variance"] == line["groups_without_variance"]
    for name, parameter in weights(plain).items():
        assert torch.equal(parameter, scaled.parameters[name])


def test_an_infinite_ratio_of_a_group_without_advantages_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first prompt's images all have one score, and ratios that no float holds."""
    trainer = make(rollout={"prompts": 2}, objective={"updates": 1, "kl_weight": 0.1})
    group = trainer.config.rollout.group_size

    def one_score(reward: Any, images: Tensor, prompts: list[str]) -> Tensor:
        values: Tensor = reward.score(images, prompts).double()
        values[:group] = 0.5
        return values

    original = policy_losses.log_prob

    def huge(sample: Tensor, *rest: Any) -> Tensor:
        more = torch.zeros(len(sample), dtype=sample.dtype)
        more[: len(sample) // 2] = 1e4
        return original(sample, *rest) + more

    monkeypatch.setattr(collect, "score", one_score)
    monkeypatch.setattr(policy_losses, "log_prob", huge)
    before = weights(trainer)
    line = trainer.iterate(0)
    assert line["groups_without_variance"] == 1
    assert math.isfinite(line["loss"])
    assert 0 < line["grad_norm"] < math.inf
    assert line["ratio_max"] == math.inf
    for name, value in weights(trainer).items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name])


def test_kl_is_zero_at_first_and_positive_once_the_policy_has_moved() -> None:
    trainer = make(objective={"kl_weight": 0.1, "updates": 1})
    assert trainer.iterate(0)["kl"] == 0
    assert trainer.iterate(1)["kl"] > 0
    assert make(objective={"updates": 1}).iterate(0)["kl"] == 0


def test_the_window_may_end_with_a_step_without_noise() -> None:
    """CPS at sigma' = 0, alone in the window: nothing to learn, and nothing breaks."""
    trainer = make(
        sampler={"kernel": "cps"},
        window={"size": 1, "start": 4},
        optimizer={"weight_decay": 0.0},
        objective={"kl_weight": 0.5},
    )
    before = weights(trainer)
    line = trainer.iterate(0)
    assert line["ratio_max"] == line["grad_norm"] == 0
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_log_ratio_of_the_density_is_that_of_the_mean_times_the_elements() -> None:
    trainer = make(objective={"updates": 2, "clip_range": 0.5})
    line = trainer.iterate(0)
    largest = line["log_ratio_sum_max"] / 12
    # ratio_max is the largest |ratio - 1| and the other the largest |log ratio|.
    assert line["ratio_max"] in (
        pytest.approx(math.expm1(largest), rel=1e-4),
        pytest.approx(-math.expm1(-largest), rel=1e-4),
    )


# ---- Prompts


def test_an_epoch_shows_each_prompt_at_most_once_in_an_order_of_its_own(
    recorder: Recorder,
) -> None:
    trainer = make()

    def prompts(t: Trainer, iteration: int) -> list[str]:
        seen: list[str] = []
        encode = t.policy.encode
        t.policy.encode = lambda p: seen.extend(p) or encode(p)  # type: ignore[method-assign, func-returns-value]
        t.iterate(iteration)
        t.policy.encode = encode  # type: ignore[method-assign]
        return seen

    # Seven prompts, two per iteration: three iterations per epoch.
    epochs = [[prompts(trainer, 3 * e + i) for i in range(3)] for e in range(4)]
    for epoch in epochs:
        flat = [p for batch in epoch for p in batch]
        assert len(flat) == len(set(flat)) == 6
        assert set(flat) <= set(toy.PROMPTS[:7])
    assert len({str(e) for e in epochs}) > 1
    # Of (seed, epoch) alone: another trainer, asked out of order, says the same.
    again = make()
    assert prompts(again, 7) == epochs[2][1]
    assert prompts(again, 0) == epochs[0][0]
    others = [prompts(make(seed=s), 0) for s in range(5)]
    assert len({str(o) for o in others}) > 1


def test_too_few_prompts_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.prompts: 8 prompts .* toy has 7"):
        make(rollout={"prompts": 8})


def test_noise_of_a_prompt_does_not_depend_on_its_neighbours(recorder: Recorder) -> None:
    few, many = make(rollout={"prompts": 2}), make(rollout={"prompts": 3, "group_size": 6})
    both = []
    for trainer in (few, many):
        prompts: list[str] = []
        encode = trainer.policy.encode
        trainer.policy.encode = lambda p, e=encode, s=prompts: s.extend(p) or e(p)  # type: ignore[method-assign, misc]
        trainer.iterate(0)
        _, _, _, initial, noise = recorder.calls[-1][:5]
        both.append({p: (initial[i], noise[i]) for i, p in enumerate(prompts)})
    common = both[0].keys() & both[1].keys()
    assert common
    for prompt in common:
        assert torch.equal(both[0][prompt][0], both[1][prompt][0])
        assert torch.equal(both[0][prompt][1], both[1][prompt][1][:4])


# ---- What stops an iteration


@dataclass
class Faulty:
    returns: Callable[[Tensor], Any]
    name: str = "faulty"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        value: Tensor = self.returns(images[:, 0].flatten(1).mean(1))
        return value


def _raise(_: Tensor) -> Tensor:
    raise ZeroDivisionError("server is down")


def _spoil(value: float) -> Callable[[Tensor], Tensor]:
    def spoiled(scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[5] = value
        return scores

    return spoiled


FAULTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "raises": (_raise, "ZeroDivisionError: server is down"),
    "nan": (_spoil(math.nan), "NaN or Inf"),
    "inf": (_spoil(-math.inf), "NaN or Inf"),
    "too few": (lambda s: s[:-1], "shape (7,)"),
    "one too many axes": (lambda s: s[:, None], "shape (8, 1)"),
    "a scalar": (lambda s: s.mean(), "shape ()"),
    "a list": (lambda s: s.tolist(), "a list"),
    "nothing": (lambda s: None, "a NoneType"),
    "complex numbers": (lambda s: s + 0j, "complex numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_reward_stops_the_run_and_leaves_the_weights(fault: str) -> None:
    returns, message = FAULTS[fault]
    trainer = make()
    trainer.train_rewards = {"faulty": Faulty(returns)}
    before = weights(trainer)
    with pytest.raises(RunError) as error:
        trainer.iterate(0)
    assert "reward faulty" in str(error.value)
    assert message in str(error.value)
    assert "'prompt " in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_the_spoiled_image_is_named_by_its_own_prompt() -> None:
    with pytest.raises(RunError, match="'p5'"):
        score(Faulty(_spoil(math.nan)), torch.rand(8, 3, 2, 2), [f"p{i}" for i in range(8)])


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoiled() -> None:
    trainer = make()
    with torch.no_grad():
        trainer.parameters["outer"][0, 0] = math.nan
    before = weights(trainer)
    with pytest.raises(RunError):
        trainer.iterate(0)
    for name, value in weights(trainer).items():
        assert torch.equal(before[name].nan_to_num(), value.nan_to_num())


def test_a_non_finite_gradient_names_iteration_and_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make()
    before = weights(trainer)
    policy = trainer.policy
    assert isinstance(policy, toy.ToyPolicy)
    trainer.parameters["outer"].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(RunError, match="iteration 5: the gradient of outer is not finite"):
        trainer.iterate(5)
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_weights_and_samples_that_are_not_finite_are_told_apart() -> None:
    trainer = make()
    with torch.no_grad():
        trainer.parameters["outer"][2, 1] = math.inf
    with pytest.raises(RunError, match="iteration 3: the weights outer are not finite"):
        trainer.iterate(3)
    trainer = make(window={"start": 1, "size": 3, "strategy": "frozen"})
    velocity, policy = trainer.policy.velocity, trainer.policy
    assert isinstance(policy, toy.ToyPolicy)
    calls = 0

    def overflows(latents: Tensor, sigma: Any, conditioning: Any) -> Tensor:
        nonlocal calls
        calls += 1
        # The window's first step is one call for the prompts, its second one per update.
        return velocity(latents, sigma, conditioning) * (math.inf if calls == 4 else 1)

    trainer.velocity = CountedVelocity(overflows)
    with pytest.raises(RunError, match=r"iteration 0: the sample of step 2 of 'prompt \d'"):
        trainer.iterate(0)


def test_a_group_that_learns_nothing_is_counted() -> None:
    trainer = make(rewards={"train": {"constant": 1.0}}, optimizer={"weight_decay": 0.0})
    before = weights(trainer)
    line = trainer.iterate(0)
    assert line["groups_without_variance"] == trainer.config.rollout.prompts
    assert line["grad_norm"] == 0
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())
    assert make().iterate(0)["groups_without_variance"] == 0
    # One reward that tells a group's images apart is enough to learn from it.
    both = make(rewards={"train": {"constant": 1.0, "brightness": 1.0}})
    line = both.iterate(0)
    assert line["groups_without_variance"] == 0
    assert line["grad_norm"] > 0


# ---- Evaluation


def test_evaluation_uses_the_average_and_gives_the_weights_back() -> None:
    trainer = make(optimizer={"lr": 1e-2}, evaluation={"steps": 7, "shift": 2.0})
    trainer.iterate(0)
    before = weights(trainer)
    judged = trainer.evaluate(toy.PROMPTS)
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())
    policy = toy.ToyPolicy()
    policy.load_state_dict(trainer.state.average)
    prompts = policy.held_out_prompts()
    shape = policy.latent_shape
    noise = evaluation_noise(trainer.config.seed, prompts, 2, shape)
    latents = sample_ode(
        policy.velocity,
        sigma_schedule(7, 2.0, torch.float64),
        repeat(policy.encode(prompts), 2),
        noise,
    )
    assert torch.equal(torch.cat(list(judged.images.values())), policy.decode(latents))
    assert judged.prompts == prompts
    assert set(judged.scores) == {"brightness", "contrast"}
    assert torch.equal(
        judged.scores["brightness"].flatten(), policy.decode(latents)[:, 0].flatten(1).mean(1)
    )


def test_a_failed_evaluation_gives_the_weights_back() -> None:
    trainer = make(optimizer={"lr": 1e-2})
    trainer.iterate(0)
    before = weights(trainer)
    trainer.all_rewards = [Faulty(_raise)]
    with pytest.raises(RunError):
        trainer.evaluate()
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_evaluation_changes_nothing_in_training() -> None:
    plain, judged = make(), make()
    for iteration in range(3):
        judged.evaluate()
        assert plain.iterate(iteration)["loss"] == judged.iterate(iteration)["loss"]


def test_evaluation_noise_is_of_seed_prompt_and_index_alone() -> None:
    shape = (2, 3)
    noise = evaluation_noise(1, ["a", "b"], 3, shape).unflatten(0, (2, 3))
    fewer = evaluation_noise(1, ["b"], 2, shape)
    assert torch.equal(noise[1, :2], fewer)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert not torch.equal(evaluation_noise(2, ["b"], 2, shape), fewer)


def test_evaluation_settings_are_obeyed() -> None:
    trainer = make(evaluation={"prompts": 1, "images_per_prompt": 3, "steps": 9})
    policy = trainer.policy
    assert isinstance(policy, toy.ToyPolicy)
    policy.rows.clear()
    judged = trainer.evaluate()
    assert policy.rows == [3] * 9
    assert len(judged.prompts) == 1
    assert judged.prompts[0] in toy.PROMPTS[7:]
    assert judged.images == {}
    [image] = trainer.evaluate(judged.prompts).images.values()
    assert image.shape == (3, 3, 2, 2)
    assert {k: tuple(v.shape) for k, v in judged.scores.items()} == {
        "brightness": (1, 3),
        "contrast": (1, 3),
    }


def test_prompts_that_are_trained_on_and_held_out_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("prompt 1\na new one\nprompt 2\n")
    with pytest.warns(UserWarning, match="2 of the 3 held-out prompts are also .* 'prompt 1'"):
        make(prompts={"held_out": str(tmp_path / "held.txt")})


def test_a_prompt_that_a_reward_cannot_judge_is_named_before_the_run() -> None:
    with pytest.raises(ConfigError, match="prompt 3 is not to my taste"):
        make(
            rewards={
                "train": {"picky": 1.0},
                "held_out": [],
                "classes": {"picky": "tests.mixgrpo.training.test_trainer:Picky"},
            }
        )


class Picky(toy.Brightness):
    name = "picky"

    def check(self, prompts: list[str]) -> None:
        if "prompt 3" in prompts:
            raise ConfigError("prompt 3 is not to my taste")


def test_held_out_prompts_are_chosen_by_what_they_say() -> None:
    prompts = [f"a prompt {i}" for i in range(30)]
    chosen = evaluation.choose(prompts, 6)
    assert len(chosen) == 6
    assert sorted(evaluation.choose(prompts[::-1], 6)) == sorted(chosen)
    # More of them keep the ones that were there; of these, none is preferred by its place.
    assert set(chosen) <= set(evaluation.choose(prompts, 12))
    assert evaluation.choose(prompts, 0) == prompts
    assert chosen != prompts[:6]
    assert [p for p in prompts if p in chosen] == chosen


def test_batches_of_an_evaluation_do_not_mix_images_up() -> None:
    policy = toy.ToyPolicy()
    prompts = toy.PROMPTS[:5]
    noise = evaluation_noise(0, prompts, 2, policy.latent_shape)
    whole, parts = (
        evaluation.evaluate(
            *(policy, policy.velocity, [toy.Brightness()], prompts, noise, 4, 3.0, n), show=prompts
        )
        for n in (128, 3)
    )
    torch.testing.assert_close(whole.images, parts.images)
    torch.testing.assert_close(whole.scores, parts.scores)


# ---- State


def test_state_that_is_saved_and_loaded_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    straight = make()
    for iteration in range(2):
        straight.iterate(iteration)
    state = {
        g: {k: v.detach().clone() for k, v in t.items()}
        for g, t in straight.state.tensors().items()
    }
    resumed = make()
    resumed.state.load_tensors(state)
    for iteration in range(2, 4):
        a, b = straight.iterate(iteration), resumed.iterate(iteration)
        timed = ("seconds", "memory")
        assert {k: v for k, v in a.items() if not k.startswith(timed)} == {
            k: v for k, v in b.items() if not k.startswith(timed)
        }
    for group, members in straight.state.tensors().items():
        for name, value in members.items():
            assert torch.equal(value, resumed.state.tensors()[group][name]), (group, name)
    assert {k.split("/")[1] for k in straight.state.tensors()["optimizer"]} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_a_checkpoint_of_another_model_is_refused() -> None:
    trainer = make()
    state = trainer.state.tensors()
    with pytest.raises(RunError, match="of another model: inner"):
        trainer.state.load_tensors({**state, "weights": {"outer": state["weights"]["outer"]}})
    with pytest.raises(RunError, match="of another model: outer"):
        trainer.state.load_tensors(
            {**state, "weights": {**state["weights"], "outer": torch.zeros(1)}}
        )


def test_learning_raises_the_reward() -> None:
    """The sign of everything: brightness on held-out prompts grows with training."""
    trainer = make(optimizer={"lr": 1e-2}, rollout={"group_size": 8}, window={"interval": 20})
    before = float(trainer.evaluate().scores["brightness"].mean())
    for iteration in range(40):
        trainer.iterate(iteration)
    after = float(trainer.evaluate().scores["brightness"].mean())
    assert after > before + 0.02
