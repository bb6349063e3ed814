"""The function that predicts the velocity, and a wrapper that counts its evaluations."""

from collections.abc import Callable

from torch import Tensor

from mixgrpo.models.protocol import Conditioning

Velocity = Callable[[Tensor, float | Tensor, Conditioning], Tensor]
"""(latents [B, ...], sigma as one number or [B], conditioning of B rows) -> velocity [B, ...]."""


class CountedVelocity:
    """A velocity that counts its evaluations, one per latent."""

    def __init__(self, velocity: Velocity) -> None:
        self._velocity = velocity
        self.evaluations = 0

    def __call__(
        self, latents: Tensor, sigma: float | Tensor, conditioning: Conditioning
    ) -> Tensor:
        self.evaluations += len(latents)
        return self._velocity(latents, sigma, conditioning)
