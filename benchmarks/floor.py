"""The floor of an iteration: the network's passes that it counts, and nothing else.

Records every call of the velocity in one iteration and repeats these calls alone, with random
inputs of the same shapes: forwards without gradient, and forward and backward of a mere sum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.compute.clock import Clock
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import CountedVelocity, Velocity
from mixgrpo.training.trainer import Trainer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a velocity, as far as its time depends on it."""

    velocity: Velocity
    """The policy's or the reference model's."""
    latents: Shape
    sigma: Shape | None
    """None: one number on the host."""
    conditioning: tuple[tuple[str, Shape], ...]
    gradient: bool

    @property
    def rows(self) -> int:
        return self.latents[0]


class Recorder(CountedVelocity):
    """A velocity that notes its calls in `calls`, in order."""

    def __init__(self, velocity: Velocity, calls: list[Call]) -> None:
        super().__init__(velocity)
        self.inner, self.calls = velocity, calls

    def __call__(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        self.calls.append(
            Call(
                self.inner,
                tuple(latents.shape),
                tuple(sigma.shape) if isinstance(sigma, Tensor) else None,
                tuple((name, tuple(value.shape)) for name, value in conditioning.items()),
                torch.is_grad_enabled(),
            )
        )
        return super().__call__(latents, sigma, conditioning)


@contextmanager
def recorded(trainer: Trainer) -> Iterator[list[Call]]:
    """Inside, the calls of the trainer's velocities are noted in the list that it gives."""
    calls: list[Call] = []
    velocity, reference = trainer.velocity, trainer.reference
    trainer.velocity = Recorder(velocity, calls)
    trainer.reference = None if reference is None else Recorder(reference, calls)
    try:
        yield calls
    finally:
        trainer.velocity, trainer.reference = velocity, reference


class Floor:
    """Recorded calls, ready to be repeated."""

    def __init__(self, calls: list[Call], device: str) -> None:
        self.calls, self.device = calls, device
        # One tensor for each shape: what a floor keeps in memory must not slow it down.
        self._drawn: dict[Shape, Tensor] = {}
        self._inputs = [
            (
                self._random(call.latents),
                0.5 if call.sigma is None else torch.full(call.sigma, 0.5, device=device),
                {name: self._random(shape) for name, shape in call.conditioning},
            )
            for call in calls
        ]

    def _random(self, shape: Shape) -> Tensor:
        if shape not in self._drawn:
            generator = torch.Generator().manual_seed(len(self._drawn))
            self._drawn[shape] = torch.randn(shape, generator=generator).to(self.device)
        return self._drawn[shape]

    def replay(self, clock: Clock) -> None:
        """Make the calls again. The phase `rollout` ends before the first one with gradient."""
        updating = False
        for call, inputs in zip(self.calls, self._inputs, strict=True):
            if call.gradient and not updating:
                clock.lap("rollout")
                updating = True
            if call.gradient:
                call.velocity(*inputs).sum().backward()
            else:
                with torch.no_grad():
                    call.velocity(*inputs)
        clock.lap("update" if updating else "rollout")
