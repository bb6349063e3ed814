"""What a diffusers pipeline's config files imply: image sizes, latent shapes, the time shift."""

from math import exp
from typing import Any

from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import ModelConfig

PATCH = 2
"""Latents on a side of one token, in all three families."""


def vae_factor(vae: dict[str, Any]) -> int:
    """Pixels on a side of one latent, from the VAE's configuration."""
    if "temperal_downsample" in vae:  # as diffusers spells it
        return int(2 ** len(vae["temperal_downsample"]))
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def latent_channels(vae: dict[str, Any]) -> int:
    """Channels of a latent, from the VAE's configuration."""
    return int(vae["z_dim"] if "z_dim" in vae else vae["latent_channels"])


def image_size(
    model: ModelConfig, transformer: dict[str, Any], vae: dict[str, Any]
) -> tuple[int, int]:
    """Height and width in pixels; by default the pipeline's, which is 1024 for published models.

    ConfigError, with the nearest possible size, for one that does not fit: a token is 2 x 2
    latents, and SD3's learned positions end at `pos_embed_max_size` tokens.
    """
    factor = vae_factor(vae)
    unit = PATCH * factor
    most = transformer.get("pos_embed_max_size", 2**16) * unit
    default = transformer.get("sample_size", 128) * factor
    for name, asked in (("height", model.height), ("width", model.width)):
        nearest = min(max(unit, round((asked or default) / unit) * unit), most)
        if asked is not None and asked != nearest:
            limit = f"a multiple of {unit}" if asked % unit else f"at most {most}"
            raise ConfigError(f"model.{name} {asked}: must be {limit}; {nearest} is nearest")
    return model.height or default, model.width or default


def schedule_shift(scheduler: dict[str, Any], image_tokens: int) -> float:
    """The time shift s of a FlowMatchEulerDiscreteScheduler, for `sigma_schedule(steps, s)`.

    With dynamic shifting exp(mu), mu on a line through (base_image_seq_len, base_shift) and
    (max_image_seq_len, max_shift) at the number of image tokens (diffusers, `calculate_shift`;
    FLUX.1-dev: 256, 0.5 and 4096, 1.15); else the scheduler's static shift.

    The grid is the one that diffusers makes of sigmas uniform from 1 to 1/T. SD3's pipeline uses
    other sigmas unless it is given these, and Qwen-Image's stretches its grid to end at
    shift_terminal; neither is done here.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    begin, end = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - begin) / (end - begin)
    return float(mu if scheduler.get("time_shift_type") == "linear" else exp(mu))
