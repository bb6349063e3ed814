"""The attention backends of diffusers, by name."""

from typing import Any

from mixgrpo.errors import ConfigError


def check_attention(backend: str) -> None:
    """ConfigError for a name that is not a backend of diffusers."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [name.value for name in AttentionBackendName]
    if backend not in known:
        raise ConfigError(f"compute.attention {backend}: not one of {', '.join(known)}")


def set_attention(network: Any, backend: str) -> None:
    """Make the network compute its attention by a backend of diffusers. ConfigError where it
    cannot."""
    check_attention(backend)
    if not any(hasattr(p, "_attention_backend") for p in network.attn_processors.values()):
        raise ConfigError(
            f"compute.attention {backend}: diffusers computes the attention of "
            f"{type(network).__name__} in one way only; leave it out"
        )
    try:
        network.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"compute.attention {backend}: cannot be used here ({text})") from error
