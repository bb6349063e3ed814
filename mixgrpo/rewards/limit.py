"""Limits on what a reward may take: time, so that one that hangs does not hang the run, and memory
of the device while it does not score."""

import contextlib
import ctypes
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from mixgrpo.compute.foreign import settings_restored
from mixgrpo.rewards.protocol import Reward, check_prompts, for_training

_GRACE_S = 1.0
"""So long a reward that is given up has to end, before the process may."""


def limited(reward: Reward, seconds: float | None) -> Reward:
    """`reward`, whose `score` raises TimeoutError after that many seconds; None: as it is."""
    return reward if seconds is None else _Limited(reward, seconds)


@dataclass(frozen=True)
class _Limited:
    reward: Reward
    seconds: float

    @property
    def name(self) -> str:
        return self.reward.name

    def for_training(self, scores: Tensor) -> Tensor:
        return for_training(self.reward, scores)

    def check(self, prompts: list[str]) -> None:
        check_prompts(self.reward, prompts)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What the reward returns or raises, from a thread of this call alone."""
        answer: Future[Tensor] = Future()
        gradients = torch.is_grad_enabled()

        def ask() -> None:
            try:
                # Set per thread, both of them: a new one would take the first GPU.
                with settings_restored(), torch.set_grad_enabled(gradients), _on(images.device):
                    answer.set_result(self.reward.score(images, prompts))
            except BaseException as error:
                answer.set_exception(error)

        # The interpreter would wait at its end for a thread that is no daemon.
        thread = threading.Thread(target=ask, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not answer.done():
            _give_up(thread)
            raise TimeoutError(
                f"no answer within rewards.timeout = {self.seconds:g} s; see whether its server is "
                "up, or set a higher rewards.timeout"
            )
        return answer.result()


def offloaded(reward: Reward) -> Reward:
    """`reward`, whose network, if it has one, is on the device of the images only while it scores.

    The next one then finds the memory free: rewards are asked one after the other.
    """
    return _Offloaded(reward) if isinstance(getattr(reward, "module", None), Module) else reward


@dataclass(frozen=True)
class _Offloaded:
    reward: Reward

    @property
    def name(self) -> str:
        return self.reward.name

    def for_training(self, scores: Tensor) -> Tensor:
        return for_training(self.reward, scores)

    def check(self, prompts: list[str]) -> None:
        check_prompts(self.reward, prompts)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What the reward returns, which moves its own network to the images."""
        try:
            return self.reward.score(images, prompts)
        finally:
            module: Module = self.reward.module  # type: ignore[attr-defined]
            module.to("cpu")


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _give_up(thread: threading.Thread) -> None:
    """End a thread where it next runs Python; one that never does is left behind.

    A thread that comes back from torch while the interpreter is being torn down would abort the
    process.
    """
    if thread.ident is not None:
        ident, end = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, end)
        thread.join(_GRACE_S)
