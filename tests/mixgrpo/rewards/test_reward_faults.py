"""Rewards that hang, raise or return what are no scores: one clear error, and nothing is lost."""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo import train
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import RepeatableError, RunError
from mixgrpo.rewards.calls import score
from mixgrpo.rewards.limit import limited
from mixgrpo.rewards.protocol import FunctionReward
from mixgrpo.settings.configfile import dump_config
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import moody, toy
from tests.mixgrpo.outcomes import outcome

pytestmark = pytest.mark.usefixtures("toy_site")

IMAGES, PROMPTS = torch.rand(8, 3, 2, 2), [f"p{i}" for i in range(8)]


def raising(error: BaseException) -> Callable[[Tensor, list[str]], Tensor]:
    def raises(images: Tensor, prompts: list[str]) -> Tensor:
        raise error

    return raises


# ---- What an error says


@pytest.mark.parametrize("seconds", [None, 60.0])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("no\nserver"), RunError),
        (TimeoutError("read timed out"), RunError),
        (OSError(101, "Network is unreachable"), RunError),
        (ZeroDivisionError("division\nby zero"), RepeatableError),
        (RuntimeError("CUDA error"), RepeatableError),
        (StopIteration(), RepeatableError),
    ],
)
def test_only_what_could_not_be_reached_may_be_tried_again(
    seconds: float | None, error: Exception, kind: type[RunError]
) -> None:
    reward = limited(FunctionReward("far", raising(error)), seconds)
    with pytest.raises(RunError) as caught:
        score(reward, IMAGES, PROMPTS)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    text = str(caught.value)
    assert text.startswith("reward far on 8 images, the first of 'p0': " + type(error).__name__)
    assert "run the same command again" in text
    # A launcher repeats by itself only what may be over by then.
    assert ("--retry failed" in text) == (kind is RepeatableError)
    assert "\n" not in text


@pytest.mark.parametrize("seconds", [None, 60.0])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.full((8,), math.nan), "returned NaN or Inf for 'p0'"),
        (
            torch.tensor([0.0] * 7 + [1e299], dtype=torch.float64),
            r"returned 1e\+299, a number beyond 3.4e38 \(float32\), for 'p7'",
        ),
        (torch.zeros(8, 1), r"first of 'p0': returned shape \(8, 1\), not \(8,\)"),
        (torch.zeros(0), r"first of 'p0': returned shape \(0,\), not \(8,\)"),
        (torch.zeros(8, dtype=torch.complex64), "first of 'p0': returned complex numbers"),
        ([0.0] * 8, "first of 'p0': returned a list, not a tensor"),
        (None, "first of 'p0': returned a NoneType, not a tensor"),
    ],
)
def test_what_are_no_scores_is_named_with_reward_prompt_and_mend(
    seconds: float | None, returned: Any, message: str
) -> None:
    reward = limited(FunctionReward("odd", lambda images, prompts: returned), seconds)
    with pytest.raises(RepeatableError, match=rf"reward odd.*{message}.*; fix the reward") as e:
        score(reward, IMAGES, PROMPTS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_any_real_numbers_are_scores(dtype: torch.dtype) -> None:
    reward = FunctionReward("ones", lambda images, prompts: torch.ones(len(prompts), dtype=dtype))
    assert torch.equal(score(limited(reward, 60), IMAGES, PROMPTS), torch.ones(8))


# ---- The limit


def test_without_a_limit_a_reward_is_what_it_was() -> None:
    reward = toy.Brightness()
    assert limited(reward, None) is reward
    assert limited(reward, 1.0).name == "brightness"


def test_a_reward_that_hangs_is_given_up_and_ends_with_its_thread() -> None:
    ended = threading.Event()

    def hangs(images: Tensor, prompts: list[str]) -> Tensor:
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    begin = time.monotonic()
    with pytest.raises(RunError, match="'p0': TimeoutError: no answer within") as error:
        score(limited(FunctionReward("stuck", hangs), 0.2), IMAGES, PROMPTS)
    assert 0.2 <= time.monotonic() - begin < 5
    for part in ("reward stuck on 8 images", "rewards.timeout = 0.2 s", "server", "higher"):
        assert part in str(error.value)
    assert not isinstance(error.value, RepeatableError)
    assert ended.wait(5)  # it does not go on computing beside the next run of this process


def test_a_reward_that_blocks_is_left_behind_without_keeping_the_process() -> None:
    free = threading.Event()

    def blocks(images: Tensor, prompts: list[str]) -> Tensor:
        free.wait()
        return torch.zeros(len(prompts))

    with pytest.raises(RunError, match="no answer within"):
        score(limited(FunctionReward("blocked", blocks), 0.1), IMAGES, PROMPTS)
    [thread] = [t for t in threading.enumerate() if t.name == "reward blocked"]
    assert thread.daemon
    free.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_reward_computes_as_it_would_in_the_thread_that_asks() -> None:
    seen: list[list[Any]] = []
    network = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))

    def watches(images: Tensor, prompts: list[str]) -> Tensor:
        modes = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
        seen.append([*modes, torch.is_autocast_enabled("cpu"), torch.get_num_threads()])
        scores: Tensor = network(images.flatten(1)).squeeze(1)
        assert scores.requires_grad == torch.is_grad_enabled()
        return scores

    plain = FunctionReward("watches", watches)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            here, there = (score(limited(plain, s), IMAGES, PROMPTS) for s in (None, 60.0))
        assert torch.equal(here, there)
        assert not there.requires_grad
        assert seen[-1] == seen[-2]
    assert [state[0] for state in seen] == [True, True, False, False]


@dataclass
class Stuck(toy.Brightness):
    """Hangs from some call on; counts the calls."""

    hangs_at: int
    calls: int = 0

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls += 1
        while self.calls >= self.hangs_at:
            time.sleep(0.01)
        return super().score(images, prompts)


@pytest.mark.parametrize(("block", "at"), [(None, 1), (1, 1), (1, 2), (1, 3)])
def test_a_reward_that_hung_is_not_asked_again_for_other_blocks(block: int | None, at: int) -> None:
    trainer = Trainer(toy.config(rollout={"prompts": 4, "block": block}), Ranks())
    before = {k: p.detach().clone() for k, p in trainer.parameters.items()}
    stuck = Stuck(at)
    trainer.train_rewards = {"brightness": limited(stuck, 0.2)}
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"reward brightness on .* no answer within"):
        trainer.iterate(0)
    assert stuck.calls == at
    assert time.monotonic() - begin < 5
    assert all(torch.equal(before[k], p) for k, p in trainer.parameters.items())


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_the_setting_reaches_training_and_evaluation(what: str) -> None:
    trainer = Trainer(toy.config(rewards={"timeout": 0.25}), Ranks())
    for reward in trainer.all_rewards:
        reward.reward.score = raising(AssertionError("not asked"))  # type: ignore[attr-defined]
    slow: Any = trainer.train_rewards["brightness"] if what == "train" else trainer.all_rewards[0]
    slow.reward.score = Stuck(1).score
    with pytest.raises(RunError, match=r"brightness on .* rewards\.timeout = 0\.25 s"):
        trainer.iterate(0) if what == "train" else trainer.evaluate()


# ---- Whole processes


CONFIG = toy.config(rewards={"train": {"moody": 1.0}})


@pytest.fixture
def site(toy_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = moody.install(tmp_path / "site")
    monkeypatch.syspath_prepend(place)
    return place


def command(
    site: Path, toy_site: Path, mood: str, module: str, *arguments: str
) -> tuple[int, str, float]:
    """Exit code, what was said on stderr, seconds."""
    environment = toy.environment(toy_site)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(site)]),
            "MOOD": mood,
        },
        cwd=toy.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr, time.monotonic() - begin


@pytest.fixture
def undisturbed(site: Path, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "undisturbed"
    assert train.run(CONFIG, folder) == "finished"
    return outcome(folder)


# The third call is an evaluation's where there are four iterations: 1 + 2 + 1 + 2 + 1 calls.
@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("1:socket", "no answer within"),
        ("3:torch", "no answer within"),
        ("4:c", "no answer within"),
        ("4:retries", "no answer within"),
        ("4:refused", "ConnectionRefusedError"),
    ],
)
def test_the_process_ends_with_one_line_and_the_same_command_finishes(
    tmp_path: Path,
    toy_site: Path,
    site: Path,
    undisturbed: dict[str, Any],
    mood: str,
    said: str,
) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(CONFIG))
    folder = tmp_path / "run"
    arguments = [str(tmp_path / "run.yaml"), "--out", str(folder), "--set", "rewards.timeout=0.5"]
    code, err, seconds = command(site, toy_site, mood, "mixgrpo.train", *arguments)
    assert code == 1, err
    assert "Traceback" not in err
    [error] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(error + "\n")
    assert "reward moody on" in error
    assert said in error
    assert seconds < 60
    assert train.run(CONFIG, folder) == "finished"  # another limit makes no other run
    found, expected = outcome(folder), dict(undisturbed)
    assert b"timeout: 0.5" in found.pop("config")
    expected.pop("config")
    assert found == expected


def test_an_evaluation_of_a_run_ends_too(tmp_path: Path, toy_site: Path, site: Path) -> None:
    folder = tmp_path / "run"
    quick = CONFIG.model_copy(
        update={"rewards": CONFIG.rewards.model_copy(update={"timeout": 0.5}), "iterations": 1}
    )
    assert train.run(quick, folder) == "finished"
    code, err, _ = command(site, toy_site, "1:socket", "mixgrpo.evaluate", str(folder))
    assert code == 1, err
    assert err.splitlines()[-1].startswith("error: reward moody on 4 images")
    assert "rewards.timeout = 0.5 s" in err
    assert command(site, toy_site, "0:", "mixgrpo.evaluate", str(folder))[0] == 0
