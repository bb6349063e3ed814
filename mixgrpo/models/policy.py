"""Makes the policy, its velocity and its reference model as a configuration describes them."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.files.prompts import read_prompts
from mixgrpo.models.adapters import add_lora, without_adapters
from mixgrpo.models.load import load_policy
from mixgrpo.models.protocol import Conditioning, Policy
from mixgrpo.models.velocity import Velocity
from mixgrpo.settings.config import RunConfig


def make_policy(config: RunConfig, device: str, ranks: Ranks | None = None) -> Policy:
    """The model with its adapters, sharded, checkpointed and compiled as the configuration says.

    ConfigError where the model does not support a setting.
    """
    policy = load_policy(config, device)
    network, compute = policy.network, config.compute
    if config.model.train == "lora":
        if compute.precision == "bf16":
            # Frozen weights need no float32 copy. nn.Module's `to`, since diffusers' warns of it.
            torch.nn.Module.to(network, torch.bfloat16)
        add_lora(network, config.model, config.seed)
    if compute.gradient_checkpointing:
        enable = getattr(network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ConfigError(
                f"compute.gradient_checkpointing: model {config.model.name} does not offer it; "
                "leave it off"
            )
        enable()
    if ranks is not None and ranks.sharded:
        ranks.shard(network, compute.precision == "bf16")
    if compute.compile:
        network.compile()
    return policy


def train_prompts(config: RunConfig, policy: Policy) -> list[str]:
    """The prompts to train on: those of the configured file, or else the model's."""
    file = config.prompts.train
    return read_prompts(Path(file)) if file else policy.train_prompts()


def held_out_prompts(config: RunConfig, policy: Policy) -> list[str]:
    """The prompts to evaluate on: those of the configured file, or else the model's."""
    file = config.prompts.held_out
    return read_prompts(Path(file)) if file else policy.held_out_prompts()


def velocity_of(policy: Policy, config: RunConfig, device: str) -> Velocity:
    """The policy's velocity, computed in the configured precision.

    Inputs and output are copied: a model may write into its inputs, and return the same buffer each
    time.
    """

    def copied(latents: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        copies = {name: value.clone() for name, value in conditioning.items()}
        sigma = sigma.clone() if isinstance(sigma, Tensor) else sigma
        velocity = policy.velocity(latents.clone(), sigma, copies)
        return velocity if velocity.requires_grad else velocity.clone()

    if config.compute.precision == "fp32":
        return copied
    kind = torch.device(device).type
    # rms_norm warns since its weights stay in fp32: this is slower, and as exact.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

    def autocast(latents: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            return copied(latents, sigma, conditioning).to(latents.dtype)

    return autocast


def reference_of(
    policy: Policy, config: RunConfig, device: str, ranks: Ranks | None = None
) -> Velocity:
    """The velocity of the model that training starts from (the reference of the KL term). With
    adapters it is the trained network with its adapters switched off."""
    if config.model.train == "lora":
        velocity = velocity_of(policy, config, device)

        def base(latents: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
            with without_adapters(policy.network):
                return velocity(latents, sigma, conditioning)

        return base
    frozen = make_policy(config, device, ranks)
    frozen.network.requires_grad_(False)
    return velocity_of(frozen, config, device)
