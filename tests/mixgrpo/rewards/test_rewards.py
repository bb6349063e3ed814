"""Rewards by name, by import path and with options; their scales and where their networks wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.files.contents import contents
from mixgrpo.rewards.limit import limited, offloaded
from mixgrpo.rewards.load import load_reward, load_rewards
from mixgrpo.rewards.protocol import for_training
from mixgrpo.settings.config import RewardsConfig, RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import toy

HERE = "tests.mixgrpo.rewards.test_rewards"


class Warmth:
    """A reward of one's own: red minus blue, `gain` times, on another scale for training."""

    name = "warmth"

    def __init__(self, *, gain: float = 1.0) -> None:
        self.gain = gain

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.gain * (images[:, 0] - images[:, 2]).flatten(1).mean(1)

    def for_training(self, scores: Tensor) -> Tensor:
        return 50 * scores + 7


class Broken:
    name = "broken"

    def __init__(self) -> None:
        raise KeyError("no such thing")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError


class Travels(nn.Linear):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, *args: Any, **kwargs: Any) -> "Travels":
        self.sent.append(str(args[0]))
        return self


class Weighted:
    """A reward with a network."""

    name = "weighted"

    def __init__(self) -> None:
        self.module = Travels()

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.module.to("the images' device")
        if prompts == ["raise"]:
            raise ValueError("told to")
        return torch.zeros(len(images))


def settings(**own: Any) -> RewardsConfig:
    return RewardsConfig.model_validate({"train": {"warmth": 1.0}, "held_out": (), **own})


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_a_class_is_found_by_its_import_path_and_made_with_its_options() -> None:
    own = settings(
        classes={"warmth": f"{HERE}:Warmth"}, options={"warmth": {"gain": 3.0}}, timeout=5.0
    )
    reward = load_rewards(["warmth"], own)["warmth"]
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0] = 0.5
    assert reward.score(images, ["a", "b"]).tolist() == [0.0, 1.5]
    # Through the wrapper that limits its time.
    assert for_training(reward, torch.tensor([1.0])).tolist() == [57.0]
    assert for_training(load_reward("palette"), torch.tensor([1.0])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("own", "parts"),
    [
        ({"classes": {"warmth": f"{HERE}:Cold"}}, [f"{HERE}:Cold", "fails", "Cold"]),
        ({"classes": {"warmth": "no_such_package:Warmth"}}, ["no_such_package:Warmth", "fails"]),
        (
            {"classes": {"warmth": f"{HERE}:Warmth"}, "options": {"warmth": {"gian": 2}}},
            ["rewards.options.warmth", "gian", "did you mean gain"],
        ),
        ({"classes": {"warmth": f"{HERE}:Broken"}}, ["KeyError", "no such thing"]),
        ({"classes": {"warmth": f"{HERE}:Weighted"}}, ["weighted", "give it the name warmth"]),
    ],
)
def test_what_is_wrong_with_a_class_is_said_in_one_line(
    own: dict[str, Any], parts: list[str]
) -> None:
    text = refused(lambda: load_reward("warmth", settings(**own)))
    assert "\n" not in text
    assert all(part in text for part in parts), text


def test_all_rewards_that_cannot_be_had_are_named_each_in_a_line() -> None:
    own = settings(classes={"warmth": f"{HERE}:Broken", "cold": f"{HERE}:Cold"})
    with pytest.raises(ConfigError) as caught:
        load_rewards(["warmth", "palette", "cold"], own)
    first, second = map(str, caught.value.errors)
    assert (first[:8], second[:6]) == ("warmth: ", "cold: ")
    assert "\n" not in first + second


def test_a_class_cannot_take_the_name_of_a_built_in_reward() -> None:
    text = refused(lambda: load_reward("hps", settings(classes={"hps": f"{HERE}:Warmth"})))
    assert "hps: is built in" in text
    text = refused(lambda: load_reward("palette", settings(options={"palette": {"gain": 1}})))
    assert "rewards.options.palette" in text


def test_the_network_of_a_reward_waits_on_the_cpu_whatever_becomes_of_the_score() -> None:
    reward = Weighted()
    waiting = limited(offloaded(reward), 5.0)
    waiting.score(torch.zeros(2, 3, 4, 4), ["a", "b"])
    assert reward.module.sent == ["the images' device", "cpu"]
    with pytest.raises(ValueError, match="told to"):
        waiting.score(torch.zeros(1, 3, 4, 4), ["raise"])
    assert reward.module.sent == ["the images' device", "cpu"] * 2


def test_a_reward_without_a_network_is_not_moved() -> None:
    reward = Warmth()
    assert offloaded(reward) is reward


def rewards_of(aggregate: str, weight: float) -> RunConfig:
    return toy.config(
        rewards={
            "train": {"brightness": 1.0, "warmth": weight},
            "held_out": [],
            "classes": {"warmth": f"{HERE}:Warmth"},
            "aggregate": aggregate,
        }
    )


@pytest.mark.usefixtures("toy_site")
def test_advantages_are_of_the_training_scale_and_metrics_of_the_reported_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = rewards_of("reward", 0.02)
    line = Trainer(config, Ranks()).iterate(0)
    # 0.02 (50 s + 7) is s and a constant, which a group's advantages do not see.
    monkeypatch.delattr(Warmth, "for_training")
    same = Trainer(rewards_of("reward", 1.0), Ranks()).iterate(0)
    other = Trainer(config, Ranks()).iterate(0)
    assert line["reward_warmth_mean"] == same["reward_warmth_mean"]
    assert line["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-3)
    assert line["grad_norm"] != pytest.approx(other["grad_norm"], rel=1e-2)


# ---- What identifies a result


def hashed(**own: Any) -> str:
    rewards = {"train": {"warmth": 1.0}, "held_out": (), **own}
    return config_hash(RunConfig.model_validate({"rewards": rewards}))


def test_the_hash_sees_how_a_reward_scores_and_not_where_it_is_asked() -> None:
    plain = hashed()
    asked = {"train": {"unifiedreward": 1.0}}
    servers = {"unifiedreward": {"urls": ("http://a",), "retries": 3}}
    assert hashed(**asked, options=servers) == hashed(**asked)
    assert hashed(options={"hps": {"gain": 2.0}}) == plain  # of a reward that is not asked
    assert hashed(classes={"hps": "a:B"}) == plain
    assert hashed(options={"warmth": {"gain": 2.0}}) != plain
    assert hashed(classes={"warmth": f"{HERE}:B"}) != hashed(classes={"warmth": f"{HERE}:C"})


def test_the_hash_sees_the_contents_of_a_rewards_weights(tmp_path: Path) -> None:
    found = []
    for name, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        (tmp_path / name).write_bytes(content)
        found.append(hashed(options={"warmth": {"checkpoint": str(tmp_path / name)}}))
    assert found[0] == found[1] != found[2]
    assert hashed(options={"warmth": {"checkpoint": "a/name-on-the-hub"}}) not in found


def test_a_folder_is_identified_by_what_is_in_it(tmp_path: Path) -> None:
    big = torch.randn(1 << 20).numpy().tobytes()
    for name in ("one", "two"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "part" / "weights").write_bytes(big)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != ""
    # Other weights of the same size, as another fine-tuning leaves them.
    (tmp_path / "two" / "part" / "weights").write_bytes(bytes(len(big) // 2) + big[len(big) // 2 :])
    assert contents(tmp_path / "one") != contents(tmp_path / "two")
    (tmp_path / "one" / "part" / "weights").rename(tmp_path / "one" / "part" / "other")
    renamed = contents(tmp_path / "one")
    (tmp_path / "one" / "part" / "other").rename(tmp_path / "one" / "part" / "weights")
    assert contents(tmp_path / "one") != renamed
    assert contents(tmp_path / "nothing") == ""
