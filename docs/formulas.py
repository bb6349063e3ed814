"""A hook of mkdocs: blocks fenced as `math` become MathML, which browsers draw by themselves."""

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Register the fence; GitHub draws the same blocks by a way of its own."""
    settings = config.mdx_configs.setdefault("pymdownx.superfences", {})
    settings["custom_fences"] = [{"name": "math", "class": "math", "format": _formula}]
    return config


def _formula(source: str, *_: Any, **__: Any) -> str:
    # Scrolls by itself on a narrow screen, so it must be reachable by keyboard.
    return f'<div class="math" tabindex="0">{convert(source.strip(), display="block")}</div>'
