"""A policy: encodes prompts, predicts the velocity, decodes latents. Chosen by name."""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixgrpo import registry
from mixgrpo.config import DIFFUSION, ModelConfig, RunConfig
from mixgrpo.contents import contents, pipeline_contents
from mixgrpo.errors import ConfigError
from mixgrpo.scenes import weights_file

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from mixgrpo.models.text import PromptEncoder

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
PIPELINES = {
    "flux": "mixgrpo.models.flux:FluxPolicy",
    "sd3": "mixgrpo.models.sd3:SD3Policy",
    "qwen-image": "mixgrpo.models.qwen_image:QwenImagePolicy",
}
_BUILT_IN = {
    "scenes": "mixgrpo.models.scenes:ScenesPolicy.load",
    **{name: f"{policy}.load" for name, policy in PIPELINES.items()},
}
_TEXT = {name: f"{policy}.text_only" for name, policy in PIPELINES.items()}
_ON_THE_HUB = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "qwen-image": "Qwen/Qwen-Image",
}
_WANTED = "callable with a checkpoint (or None) and a device, and return a policy"
_MEMBERS = [*Policy.__annotations__, *(name for name in vars(Policy) if name[0] != "_")]


def model_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def own_model(name: str) -> EntryPoint | None:
    """Where the code of a model is that this package does not bring; None for one that it does."""
    return registry.others(_GROUP, _BUILT_IN, name, None)


def load_policy(config: RunConfig, device: str) -> Policy:
    """The policy that a run's configuration names, with the weights it starts from.

    ConfigError where there is none, where loading fails, and where what is loaded lacks a member
    of `Policy`, naming all that are missing.
    """
    model = config.model
    if model.name not in DIFFUSION:
        return load_model(model.name, model.checkpoint, device)
    policy: Policy = registry.make(
        _GROUP, _BUILT_IN, model.name, _WANTED, *_arguments(config, device)
    )
    return policy


def load_text(config: RunConfig, device: str) -> "PromptEncoder":
    """What the configured model encodes prompts with, without the model itself.

    ConfigError for a model that keeps no embeddings, and where parts are missing.
    """
    name = config.model.name
    if name not in DIFFUSION:
        raise ConfigError(
            f"model.name {name}: keeps no embeddings; those of {', '.join(DIFFUSION)} are encoded "
            "ahead"
        )
    text: PromptEncoder = registry.make(_GROUP, _TEXT, name, _WANTED, *_arguments(config, device))
    return text


def _arguments(config: RunConfig, device: str) -> tuple[Any, ...]:
    """What a pipeline is loaded with."""
    from mixgrpo.embeddings import embeddings_folder

    model = config.model
    placed = model.model_copy(update={"checkpoint": hub_name(model.name, model.checkpoint)})
    return placed, config.compute, device, embeddings_folder(config.prompts.embeddings)


def check_model(model: ModelConfig) -> None:
    """ConfigError where the embedded model's file, or another package's code, is not there: what
    `load_model` would refuse before it loads anything."""
    if model.name == "scenes":
        place = weights_file(model.checkpoint)
        if not place.is_file():  # said without the seconds that the next line takes
            raise ConfigError(f"model.checkpoint {place}: there is no such file")
        from mixgrpo.scenes.model import read_sizes

        read_sizes(place)
        return
    registry.check(_GROUP, _BUILT_IN, model.name, _WANTED, model.checkpoint, "cpu")


def load_model(name: str, checkpoint: str | None, device: str) -> Policy:
    """The policy `name`, the embedded one or another package's, as `load_policy` gives it."""
    policy: Policy = registry.make(_GROUP, _BUILT_IN, name, _WANTED, checkpoint, device)
    missing = [member for member in _MEMBERS if not hasattr(policy, member)]
    if missing:
        raise ConfigError(
            f"model {name}: its entry point returns an object of {type(policy).__name__} without "
            f"{', '.join(missing)}; a model has all members of mixgrpo.models.Policy "
            "(docs/extending.md)"
        )
    return policy


def prepare(
    policy: Policy,
    prompts: Sequence[str],
    say: Callable[[str], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Let a model encode these prompts, or its share k of n, before it is put to work."""
    own = getattr(policy, "prepare", None)
    if own is not None:
        own(list(dict.fromkeys(prompts)), say, share)


def hub_name(name: str, checkpoint: str | None) -> str | None:
    """Where the weights of model `name` come from: `checkpoint`, or its authors' on the hub."""
    return checkpoint or _ON_THE_HUB.get(name)


def model_weights(name: str, checkpoint: str | None) -> str:
    """What identifies the weights that `load_policy` would load.

    The sha256 of a file, given or shipped; a digest of a folder; else a name on the hub.
    """
    place = Path(checkpoint) if checkpoint else None
    if name == "scenes":
        place = weights_file(checkpoint)
    identify = pipeline_contents if name in DIFFUSION else contents
    return (identify(place) if place else "") or (hub_name(name, checkpoint) or "")
