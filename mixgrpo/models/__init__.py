"""A policy: encodes prompts, predicts the velocity, decodes latents. Chosen by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mixgrpo import registry
from mixgrpo.errors import ConfigError
from mixgrpo.scenes import BASE_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

Conditioning = dict[str, "Tensor"]
"""What a prompt is turned into: tensors by name, each with the batch first."""


class Policy(Protocol):
    """A flow-matching text-to-image model, as far as the trainer knows it."""

    latent_shape: tuple[int, ...]
    """Shape of one latent, without the batch."""

    @property
    def network(self) -> "Module":
        """The network that predicts the velocity: what is trained, adapted, sharded, compiled.

        `velocity` calls it as a module, `network(...)`: sharding and compilation begin there.
        """
        ...

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning with one row per prompt."""
        ...

    def velocity(
        self, latents: "Tensor", sigma: "float | Tensor", conditioning: Conditioning
    ) -> "Tensor":
        """v = eps - x0 at `latents` [B, ...] and sigma (one number, or [B]); like `latents`."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """Images [B, 3, H, W] in [0, 1] of latents at sigma = 0."""
        ...

    def trainable_parameters(self) -> "dict[str, Parameter]":
        """The parameters of `network` that require a gradient, by name, in a fixed order."""
        ...

    def train_prompts(self) -> list[str]:
        """Prompts to train on."""
        ...

    def held_out_prompts(self) -> list[str]:
        """Prompts that are never trained on, for evaluation."""
        ...


_GROUP = "mixgrpo.models"
_BUILT_IN = {"scenes": "mixgrpo.models.scenes:ScenesPolicy.load"}
_SHIPPED = {"scenes": BASE_WEIGHTS}
_WANTED = "callable with a checkpoint (or None) and a device, and return a policy"
_MEMBERS = [*Policy.__annotations__, *(name for name in vars(Policy) if name[0] != "_")]


def model_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def load_model(name: str, checkpoint: str | None, device: str) -> Policy:
    """The policy `name` with the weights of `checkpoint`, or its own where that is None.

    ConfigError where there is none, where loading fails, and where what is loaded lacks a member
    of `Policy`, naming all that are missing.
    """
    policy: Policy = registry.make(_GROUP, _BUILT_IN, name, _WANTED, checkpoint, device)
    missing = [member for member in _MEMBERS if not hasattr(policy, member)]
    if missing:
        raise ConfigError(
            f"model {name}: its entry point returns an object of {type(policy).__name__} without "
            f"{', '.join(missing)}; a model has all members of mixgrpo.models.Policy "
            "(docs/extending.md)"
        )
    return policy


def model_weights(name: str, checkpoint: str | None) -> str:
    """What identifies the weights that `load_model` would load.

    The sha256 of a file, given or shipped; else `checkpoint` as it is (a name on a hub).
    """
    file = Path(checkpoint) if checkpoint else _SHIPPED.get(name)
    return (registry.contents(file) if file else "") or (checkpoint or "")
