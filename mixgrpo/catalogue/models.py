"""The models by name, and the facts about each that need no loading."""

from importlib.metadata import EntryPoint
from pathlib import Path

from mixgrpo.catalogue import registry
from mixgrpo.catalogue.scenes import weights_file
from mixgrpo.errors import ConfigError
from mixgrpo.files.contents import contents, pipeline_contents

_SIZED = ("revision", "height", "width", "text_tokens")
DIFFUSION: dict[str, tuple[str, ...]] = {
    "flux": (*_SIZED, "guidance"),
    "sd3": (*_SIZED, "cfg"),
    "qwen-image": (*_SIZED, "cfg"),
}
"""The models that are pipelines of diffusers, with the settings of `model` that each takes."""

GROUP = "mixgrpo.models"
"""The group of entry points."""
PIPELINES = {
    "flux": "mixgrpo.models.flux:FluxPolicy",
    "sd3": "mixgrpo.models.sd3:SD3Policy",
    "qwen-image": "mixgrpo.models.qwen_image:QwenImagePolicy",
}
BUILT_IN = {
    "scenes": "mixgrpo.models.scenes:ScenesPolicy.load",
    **{name: f"{policy}.load" for name, policy in PIPELINES.items()},
}
_ON_THE_HUB = {
    "flux": "black-forest-labs/FLUX.1-dev",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "qwen-image": "Qwen/Qwen-Image",
}


def model_names() -> list[str]:
    return registry.names(GROUP, BUILT_IN)


def external_model(name: str) -> EntryPoint | None:
    """The entry point of a model from another package; None for a built-in one."""
    return registry.external(GROUP, BUILT_IN, name, None)


def hub_name(name: str, checkpoint: str | None) -> str | None:
    """`checkpoint`, or else the repository of the model's authors on the hub; None where there is
    neither."""
    return checkpoint or _ON_THE_HUB.get(name)


def model_weights(name: str, checkpoint: str | None) -> str:
    """An identifier of the weights that `load_policy` would load: the sha256 of a file, given or
    shipped; a digest of a folder; else a name on the hub."""
    path = Path(checkpoint) if checkpoint else None
    if name == "scenes":
        path = weights_file(checkpoint)
    identify = pipeline_contents if name in DIFFUSION else contents
    try:
        return (identify(path) if path else "") or (hub_name(name, checkpoint) or "")
    except ConfigError as error:
        raise ConfigError(f"model.checkpoint: {error}") from None
