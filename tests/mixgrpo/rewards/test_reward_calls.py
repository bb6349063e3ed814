"""No reward sees or changes what another one is given, what it returned, or how a run computes."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo import train
from mixgrpo.compute.foreign import _torch_settings, settings_restored, stays
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError, RepeatableError
from mixgrpo.evaluation import hybrid
from mixgrpo.models.protocol import Conditioning
from mixgrpo.rewards.calls import check_prompts, for_training, score
from mixgrpo.rewards.limit import limited
from mixgrpo.rewards.protocol import FunctionReward
from mixgrpo.settings.probes import HybridOptions
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import toy

pytestmark = pytest.mark.usefixtures("toy_site")

IMAGES, PROMPTS = torch.rand(8, 3, 2, 2), [f"p{i}" for i in range(8)]
KEPT: list[Tensor] = []


def mean(images: Tensor) -> Tensor:
    return images[:, 0].flatten(1).mean(1)


# Ways to change what was given. Each scores as the toy's brightness does.


def in_place(images: Tensor, prompts: list[str]) -> Tensor:
    scores = mean(images)
    images.mul_(2).sub_(1)
    return scores


def through_numpy(images: Tensor, prompts: list[str]) -> Tensor:
    """Which torch does not notice: the version of the tensor stays."""
    scores = mean(images)
    np.multiply(images.numpy(), 0, out=images.numpy())
    return scores


def through_dlpack(images: Tensor, prompts: list[str]) -> Tensor:
    scores = mean(images)
    torch.from_dlpack(images).zero_()
    return scores


def through_the_storage(images: Tensor, prompts: list[str]) -> Tensor:
    scores = mean(images)
    images.untyped_storage().fill_(0)
    return scores


def later(images: Tensor, prompts: list[str]) -> Tensor:
    """What it was given in its last call."""
    for kept in KEPT:
        kept.zero_()
    KEPT[:] = [images]
    return mean(images)


def prompts_too(images: Tensor, prompts: list[str]) -> Tensor:
    scores = mean(images)
    prompts.sort(reverse=True)
    prompts.clear()
    return scores


def resized(images: Tensor, prompts: list[str]) -> Tensor:
    scores = mean(images)
    images.resize_(0)
    images.requires_grad_()
    return scores


# Ways to return what changes afterwards.


def view_of_the_images(images: Tensor, prompts: list[str]) -> Tensor:
    images[:, 0, 0, 0] = mean(images)
    return images[:, 0, 0, 0]


BUFFER = torch.zeros(64)


def one_buffer(images: Tensor, prompts: list[str]) -> Tensor:
    BUFFER.fill_(-1)
    BUFFER[: len(images)] = mean(images)
    return BUFFER[: len(images)]


CAREFUL = [
    in_place,
    through_numpy,
    through_dlpack,
    through_the_storage,
    later,
    prompts_too,
    resized,
    view_of_the_images,
    one_buffer,
]


@dataclass
class Rude:
    """The toy's brightness, with a habit."""

    habit: Callable[[Tensor, list[str]], Tensor]
    name: str = "brightness"

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.habit(images, prompts)


@dataclass
class Witness:
    """Keeps what it is given, and scores by all of it."""

    name: str = "contrast"
    seen: list[tuple[Tensor, list[str]]] = field(default_factory=list)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.seen.append((images.clone(), list(prompts)))
        return 10 * images.flatten(1).std(1)


def measured(habit: Callable[[Tensor, list[str]], Tensor], **settings: Any) -> dict[str, Any]:
    """Everything that a short training measures and learns with such a reward before another."""
    both = {"train": {"brightness": 1.0, "contrast": 1.0}, "held_out": []}
    trainer = Trainer(toy.config(rewards=both, **settings), Ranks())
    witness = Witness()
    judges = {"brightness": Rude(habit), "contrast": witness}
    trainer.train_rewards, trainer.all_rewards = dict(judges), list(judges.values())
    before = trainer.evaluate(show=trainer.held_out)
    lines = [trainer.iterate(0), trainer.iterate(1)]
    return {
        "scores": [before.scores, trainer.evaluate().scores],
        "images": before.images,
        "diversity": before.diversity,
        "lines": [
            {k: v for k, v in line.items() if not k.startswith(("seconds", "memory"))}
            for line in lines
        ],
        "seen": witness.seen,
        "weights": {k: p.detach() for k, p in trainer.parameters.items()},
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("settings", [{}, {"rollout": {"block": 1}}], ids=["whole", "blocks"])
@pytest.mark.parametrize("habit", CAREFUL, ids=lambda habit: habit.__name__)
def test_nothing_else_depends_on_what_a_reward_does_to_its_own(
    habit: Callable[[Tensor, list[str]], Tensor], settings: dict[str, Any]
) -> None:
    KEPT.clear()
    assert same(measured(habit, **settings), measured(lambda images, _: mean(images), **settings))


@pytest.mark.parametrize("seconds", [None, 60.0])
@pytest.mark.parametrize("habit", CAREFUL, ids=lambda habit: habit.__name__)
def test_images_and_prompts_stay_as_they_were(
    habit: Callable[[Tensor, list[str]], Tensor], seconds: float | None
) -> None:
    images, prompts = IMAGES.clone(), list(PROMPTS)
    first = score(limited(Rude(habit), seconds), images, prompts)
    other = torch.rand(8, 3, 2, 2)
    score(limited(Rude(habit), seconds), other.clone(), prompts)
    assert torch.equal(images, IMAGES)
    assert prompts == PROMPTS
    assert torch.equal(first, mean(IMAGES).double())


def test_hybrid_inference_shares_nothing_among_rewards(tmp_path: Path) -> None:
    config = toy.config(rewards={"train": {"brightness": 1.0}, "held_out": ["contrast"]})
    assert train.run(config, tmp_path) == "finished"
    options = HybridOptions(p_mix=(0.0, 0.4))
    expected = hybrid.measure(tmp_path, 4, options)
    patch = pytest.MonkeyPatch()
    for habit in (in_place, through_numpy, one_buffer):
        patch.setattr(toy.Brightness, "score", lambda _, i, p, habit=habit: habit(i, p))
        assert hybrid.measure(tmp_path, 4, options) == expected
    patch.undo()


def test_the_scale_of_training_is_a_copy_and_checked() -> None:
    class Scaled(toy.Brightness):
        def for_training(self, scores: Tensor) -> Tensor:
            return scores.mul_(3)

    scores = torch.tensor([[0.25, 0.5]], dtype=torch.float64)
    assert for_training(Scaled(), scores).tolist() == [[0.75, 1.5]]
    assert scores.tolist() == [[0.25, 0.5]]
    for wrong, said in (
        (lambda scores: scores.mean(), r"shape \(\), not \(1, 2\)"),
        (lambda scores: scores / 0, "NaN or Inf"),
        (lambda scores: scores.tolist(), "a list, not a tensor"),
        (lambda scores: 1 / 0, "ZeroDivisionError"),
    ):
        reward = Scaled()
        reward.for_training = wrong  # type: ignore[method-assign]
        with pytest.raises(RepeatableError, match=f"reward brightness, for_training: .*{said}"):
            for_training(reward, scores)


def test_a_check_of_prompts_has_its_own_list_and_its_failure_a_name() -> None:
    class Checks(toy.Brightness):
        def check(self, prompts: list[str]) -> None:
            prompts.clear()
            raise KeyError("no such word")

    prompts = list(PROMPTS)
    with pytest.raises(ConfigError, match="reward brightness: its check fails: KeyError"):
        check_prompts(Checks(), prompts)
    assert prompts == PROMPTS


class OfItsOwnError(ConfigError):
    def __init__(self, server: str, code: int) -> None:
        super().__init__(f"{server} says {code}")


def test_an_error_of_any_making_is_told_with_the_rewards_name() -> None:
    def refused(images: Tensor, prompts: list[str]) -> Tensor:
        raise OfItsOwnError("nowhere", 401)

    with pytest.raises(ConfigError, match=r"reward odd on 8 images.*: nowhere says 401"):
        score(FunctionReward("odd", refused), IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.zeros(8).to_sparse(), "a tensor of torch.sparse_coo, not a plain one"),
        (torch.zeros(8, device="meta"), "a tensor without values"),
        (np.zeros(8), "a ndarray, not a tensor"),
    ],
)
def test_tensors_without_plain_numbers_are_no_scores(returned: Any, said: str) -> None:
    with pytest.raises(RepeatableError, match=f"reward odd on 8 images.*returned {said}"):
        score(FunctionReward("odd", lambda i, p: returned), IMAGES, PROMPTS)


# ---- Models


class RudePolicy(toy.ToyPolicy):
    """Writes into everything it is given, and returns one buffer for every velocity and image."""

    buffers: ClassVar[dict[torch.Size, Tensor]] = {}

    def _reused(self, found: Tensor) -> Tensor:
        if found.requires_grad:
            return found
        return self.buffers.setdefault(found.shape, torch.empty_like(found)).copy_(found)

    def velocity(self, latents: Tensor, sigma: Any, conditioning: Conditioning) -> Tensor:
        given = latents.clone(), sigma, {k: v.clone() for k, v in conditioning.items()}
        latents.zero_()
        for value in conditioning.values():
            value.fill_(7)
        conditioning.clear()
        return self._reused(super().velocity(*given))

    def decode(self, latents: Tensor) -> Tensor:
        images = super().decode(latents)
        latents.div_(0.5).add_(1)  # as decoders do
        return self._reused(images)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_a_model_that_writes_into_what_it_is_given_changes_nothing(
    micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned() -> dict[str, Any]:
        steps = {"sampler": {"steps": 5, "tail_ratio": 0.5, "order": 2}}
        return measured(lambda i, _: mean(i), compute={"micro_batch": micro_batch}, **steps)

    expected = learned()
    monkeypatch.setattr(toy.ToyPolicy, "load", lambda checkpoint, device: RudePolicy())
    assert same(learned(), expected)


# ---- Settings of the whole process


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """A test that fails spoils no other."""
    states = [(get(), set_) for get, set_ in _torch_settings()]
    with warnings.catch_warnings(), chdir(Path.cwd()):
        yield
    for state, set_ in states:
        set_(state)


def filters(action: Any) -> Callable[[], None]:
    return lambda: warnings.simplefilter(action)


CHANGES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "gradients off": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(3),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "warn only": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast dtype": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "no warnings": filters("ignore"),
    "warnings as errors": filters("error"),
    "warnings elsewhere": lambda: setattr(warnings, "showwarning", print),
    "signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "working directory": lambda: os.chdir("/"),
}


def settings() -> list[Any]:
    shown = [list(warnings.filters), warnings.showwarning, signal.getsignal(signal.SIGTERM)]
    shown.append(Path.cwd())
    return [*(get() for get, _ in _torch_settings()), *shown]


@pytest.mark.filterwarnings("default")  # one of the changes makes them errors
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_settings_that_are_changed_are_changed_back(change: str, fails: bool) -> None:
    before = settings()

    def changes(images: Tensor, prompts: list[str]) -> Tensor:
        CHANGES[change]()
        assert settings() != before, "the test changes what is looked at"
        if fails:
            raise ValueError
        return torch.zeros(len(prompts), device="cpu")

    reward = FunctionReward("changes", changes)
    if fails:
        with pytest.raises(RepeatableError):
            score(reward, IMAGES, PROMPTS)
    else:
        score(reward, IMAGES, PROMPTS)
    assert settings() == before


def test_random_numbers_of_the_process_are_nobodys(tmp_path: Path) -> None:
    """A reward may seed and use the global generators: nothing of a run comes from them."""

    def draws(images: Tensor, prompts: list[str]) -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        torch.rand(3)
        return mean(images)

    assert same(measured(draws), measured(lambda images, _: mean(images)))


def test_logging_and_the_mode_of_files_are_as_before(tmp_path: Path) -> None:
    """Of a reward's call and of the import of its module."""

    def spoils(images: Tensor, prompts: list[str]) -> Tensor:
        logging.disable(logging.CRITICAL)
        os.umask(0o777)
        return mean(images)

    umask = os.umask(0o022)
    try:
        measured(spoils)
        assert os.umask(0o022) == 0o022
        assert logging.root.manager.disable == 0
        with stays():
            logging.disable(logging.WARNING)
        assert logging.getLogger("mixgrpo").isEnabledFor(logging.WARNING)
    finally:
        os.umask(umask)
        logging.disable(logging.NOTSET)


def test_nothing_changed_costs_next_to_nothing() -> None:
    """Neither the filters of warnings nor a setting is touched where nothing was changed."""
    before = warnings.filters
    with settings_restored():
        pass
    assert warnings.filters is before
