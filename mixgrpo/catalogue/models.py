"""The models by name, and what is known of each without loading it."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from mixgrpo.catalogue import registry
from mixgrpo.catalogue.scenes import weights_file
from mixgrpo.errors import ConfigError
from mixgrpo.files.contents import contents, pipeline_contents

if TYPE_CHECKING:
    pass


_SIZED = ("revision", "height", "width", "text_tokens")
DIFFUSION: dict[str, tuple[str, ...]] = {
    "flux": (*_SIZED, "guidance"),
    "sd3": (*_SIZED, "cfg"),
    "qwen-image": (*_SIZED, "cfg"),
}
"""The models that are pipelines of diffusers, with the settings of `model` that each takes."""

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
_ON_THE_HUB = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "qwen-image": "Qwen/Qwen-Image",
}


def model_names() -> list[str]:
    return registry.names(_GROUP, _BUILT_IN)


def own_model(name: str) -> EntryPoint | None:
    """Where the code of a model is that this package does not bring; None for one that it does."""
    return registry.others(_GROUP, _BUILT_IN, name, None)


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
    try:
        return (identify(place) if place else "") or (hub_name(name, checkpoint) or "")
    except ConfigError as error:
        raise ConfigError(f"model.checkpoint: {error}") from None
