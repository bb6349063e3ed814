"""Images from a trained model and the one it started from, by the ODE: pure or hybrid.

Hybrid inference (MixGRPO, arXiv 2507.21802) takes the first steps with the trained model and the
rest with the base model. What is reported must say which of the two it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.maths.dpm import DPMSolver
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import StepKind
from mixgrpo.sampling.rollout import slices
from mixgrpo.sampling.walk import walk
from mixgrpo.settings.config import ComputeConfig

Order = Literal[1, 2, 3]
Variant = Literal["midpoint", "heun"]


@dataclass(frozen=True)
class Sampling:
    """How an image is made of its noise. ConfigError for what is not possible."""

    steps: int
    shift: float
    """Time shift of the sigma schedule."""
    p_mix: float = 1.0
    """The fraction of the steps, the first ones, that the trained model takes."""
    order: Order = 1
    """Of DPM-Solver++ over the whole trajectory; order 1 is Euler."""
    variant: Variant = "midpoint"
    """Which second-order DPM-Solver++."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps {self.steps}: a trajectory has at least 1")
        if not 0 < self.shift < float("inf"):
            raise ConfigError(f"shift {self.shift}: must be a number above 0")
        if not 0 <= self.p_mix <= 1:
            raise ConfigError(
                f"--p-mix {self.p_mix}: must lie between 0 (base model) and 1 (trained model)"
            )

    @property
    def trained_steps(self) -> int:
        """The number of steps that the trained model takes, a half rounded to the even number."""
        return round(self.p_mix * self.steps)

    @property
    def label(self) -> str:
        """`pure`, `base model`, or `p_mix 80 %`: by what was asked for, not by its rounding."""
        if self.p_mix in (0, 1):
            return "pure" if self.p_mix else "base model"
        return f"p_mix {100 * self.p_mix:.10g} %"

    @property
    def in_words(self) -> str:
        """What `label` stands for."""
        if self.p_mix in (0, 1):
            model = "trained" if self.p_mix else "base"
            return f"{self.label}: all {self.steps} steps with the {model} model."
        return (
            f"{self.label}: the first {self.trained_steps} of {self.steps} steps with the trained "
            "model, the rest with the base model."
        )


@torch.no_grad()
def sample(
    velocity: Velocity,
    reference: Velocity,
    sampling: Sampling,
    conditioning: Conditioning,
    noise: Tensor,
) -> Tensor:
    """noise [B, ...] at sigma = 1 -> latents [B, ...] at sigma = 0; conditioning: B rows.

    `velocity` is the trained model's, `reference` the base model's. The solver begins anew where
    the base model takes over: a prediction of the other model would be no derivative of this one's.
    """
    sigmas = sigma_schedule(sampling.steps, sampling.shift, torch.float64)
    switch = sampling.trained_steps

    def at(x: Tensor, sigma: float, index: int) -> Tensor:
        return (velocity if index < switch else reference)(x, sigma, conditioning)

    kind: StepKind = "ode" if sampling.order == 1 else "dpm"
    solver = DPMSolver(sampling.order, sampling.variant)
    x, kinds = noise, (kind,) * sampling.steps
    for step in walk(at, sigmas, kinds, x, solver=solver, restart=switch):
        x = step.after
    return x


@torch.no_grad()
def draw(
    policy: Policy,
    velocity: Velocity,
    reference: Velocity,
    sampling: Sampling,
    prompts: Sequence[str],
    noise: Tensor,
    batch: int,
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of B prompts from noise [B, ...], `batch` in one forward.

    Batches of the same size give the same bytes; `batch` is part of what is held fixed.
    """
    images = []
    for part in slices(len(prompts), batch):
        conditioning = policy.encode(list(prompts[part]))
        latents = sample(velocity, reference, sampling, conditioning, noise[part])
        images.append(decoded(policy, latents))
    return torch.cat(images)


def decoded(policy: Policy, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] of latents [B, ...]. The model works on a copy, and its result is copied:
    it may write into what it is given, and return one buffer each time."""
    return policy.decode(latents.clone()).clone()


def shift_of(setting: "float | Literal['dynamic']", policy: Policy) -> float:
    """The time shift that a configuration asks for. `dynamic`: that of the model's pipeline.

    FLUX's depends on the number of image tokens (diffusers, `calculate_shift`), so that it is one
    number at one resolution.
    """
    return float(policy.dynamic_shift if setting == "dynamic" else setting)  # type: ignore[attr-defined]


def asked_shift(text: str, policy: Policy) -> float:
    """The time shift that a command line asks for: a number, or `dynamic`."""
    if text == "dynamic":
        if not hasattr(policy, "dynamic_shift"):
            raise ConfigError("--shift dynamic: this model has no schedule of its own")
        return shift_of("dynamic", policy)
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--shift {text}: expected a number, or dynamic") from None


def images_at_once(compute: ComputeConfig) -> int:
    """The images that an evaluation samples in one forward."""
    return min(128, compute.micro_batch or 128)
