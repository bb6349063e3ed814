"""Traces one forward, update or decoding of a configured model, without weights or data."""

import warnings

import torch
from torch import Tensor, nn

from mixgrpo.forecast.architecture import Architecture
from mixgrpo.forecast.footprint import Footprint, Pass, footprint
from mixgrpo.models.adapters import add_lora
from mixgrpo.models.protocol import Policy
from mixgrpo.settings.config import RunConfig


def policy_of(config: RunConfig, architecture: Architecture) -> Policy:
    """The policy on the meta device with its adapters, as `policy.make_policy` makes it."""
    policy = architecture.policy(architecture.vae() if architecture.vae else None)
    if config.model.train == "lora":
        if config.compute.precision == "bf16":
            nn.Module.to(policy.network, torch.bfloat16)
        add_lora(policy.network, config.model, config.seed)
    if config.compute.gradient_checkpointing:
        policy.network.enable_gradient_checkpointing()  # type: ignore[operator]
    return policy


def trace_velocity(
    config: RunConfig,
    architecture: Architecture,
    policy: Policy,
    as_on: str,
    rows: int,
    gradient: bool,
) -> Footprint:
    """The footprint of predicting the velocity of `rows` latents, and of the backward if asked."""

    def prepare() -> Pass:
        # Tensors that a policy keeps beside its networks go to the device of the trace.
        for name, value in vars(policy).items():
            if isinstance(value, Tensor):
                setattr(policy, name, torch.zeros(value.shape, dtype=value.dtype))
        latents = torch.zeros(rows, *architecture.latent_shape)
        conditioning = architecture.conditioning(rows)
        return lambda: policy.velocity(latents, 0.5, conditioning)

    bf16 = config.compute.precision == "bf16"
    with warnings.catch_warnings():
        # rms_norm warns where its weights have another dtype than its input.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        return footprint([policy.network], prepare, gradient, bf16, as_on)


def trace_decoding(
    config: RunConfig, architecture: Architecture, as_on: str, rows: int
) -> Footprint:
    """The footprint of decoding `rows` latents by the model's VAE, which it must have."""
    assert architecture.vae is not None
    vae = architecture.vae()
    if config.compute.precision == "bf16":
        nn.Module.to(vae, torch.bfloat16)
    policy = architecture.policy(vae)

    def prepare() -> Pass:
        latents = torch.zeros(rows, *architecture.latent_shape)
        return lambda: policy.decode(latents)

    return footprint([vae], prepare, False, as_on=as_on)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The modules that FSDP2 gathers one at a time: the children of the outermost lists, as in
    `Ranks.shard`; the whole network where it has no list."""
    children: list[nn.Module] = []
    for child in network.children():
        children += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return children or [network]


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
