"""Loads the model that a configuration names."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mixgrpo.catalogue import registry
from mixgrpo.catalogue.models import BUILT_IN, DIFFUSION, GROUP, PIPELINES, hub_name
from mixgrpo.catalogue.scenes import weights_file
from mixgrpo.errors import ConfigError
from mixgrpo.files.regular import is_file
from mixgrpo.models.protocol import Policy
from mixgrpo.settings.config import ModelConfig, RunConfig

if TYPE_CHECKING:
    from mixgrpo.models.text import PromptEncoder


_TEXT = {name: f"{policy}.text_only" for name, policy in PIPELINES.items()}
_WANTED = "callable with a checkpoint (or None) and a device, and return a policy"
_MEMBERS = [*Policy.__annotations__, *(name for name in vars(Policy) if name[0] != "_")]


def load_policy(config: RunConfig, device: str) -> Policy:
    """The policy that a run's configuration names, with the weights it starts from.

    ConfigError for an unknown model, where loading fails, and where the loaded object lacks members
    of `Policy`, naming all of them.
    """
    model = config.model
    if model.name not in DIFFUSION:
        return load_model(model.name, model.checkpoint, device)
    policy: Policy = registry.make(
        GROUP, BUILT_IN, model.name, _WANTED, *_arguments(config, device)
    )
    return policy


def load_text(config: RunConfig, device: str) -> "PromptEncoder":
    """The prompt encoder of the configured model, without the model itself.

    ConfigError for a model that stores no embeddings, and where parts are missing.
    """
    name = config.model.name
    if name not in DIFFUSION:
        raise ConfigError(
            f"model.name {name}: stores no embeddings; only prompts of {', '.join(DIFFUSION)} are "
            "encoded in advance"
        )
    text: PromptEncoder = registry.make(GROUP, _TEXT, name, _WANTED, *_arguments(config, device))
    return text


def _arguments(config: RunConfig, device: str) -> tuple[Any, ...]:
    """The arguments that a pipeline is loaded with."""
    from mixgrpo.models.embeddings import embeddings_folder

    model = config.model
    resolved = model.model_copy(update={"checkpoint": hub_name(model.name, model.checkpoint)})
    return resolved, config.compute, device, embeddings_folder(config.prompts.embeddings)


def check_model(model: ModelConfig) -> None:
    """ConfigError where the embedded model's file or another package's code is missing: what
    `load_model` would refuse before it loads anything."""
    if model.name == "scenes":
        file = weights_file(model.checkpoint)
        if not is_file(file):  # asked before the import below, which takes seconds
            raise ConfigError(f"model.checkpoint {file}: there is no such file")
        from mixgrpo.scenes.model import read_sizes

        read_sizes(file)
        return
    registry.check(GROUP, BUILT_IN, model.name, _WANTED, model.checkpoint, "cpu")


def load_model(name: str, checkpoint: str | None, device: str) -> Policy:
    """The policy `name`, the embedded one or another package's, as `load_policy` gives it."""
    policy: Policy = registry.make(GROUP, BUILT_IN, name, _WANTED, checkpoint, device)
    missing = [member for member in _MEMBERS if not hasattr(policy, member)]
    if missing:
        raise ConfigError(
            f"model {name}: its entry point returns an object of {type(policy).__name__} without "
            f"{', '.join(missing)}; a model has all members of mixgrpo.models.protocol.Policy "
            "(docs/extending.md)"
        )
    return policy


def prepare(
    policy: Policy,
    prompts: Sequence[str],
    say: Callable[[str], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Let a model that stores embeddings encode these prompts in advance, or its share k of n."""
    prepare_policy = getattr(policy, "prepare", None)
    if prepare_policy is not None:
        prepare_policy(list(dict.fromkeys(prompts)), say, share)
