"""The embedded task's weights that ship with the package, and the names of its rewards."""

from pathlib import Path

_WEIGHTS = Path(__file__).parents[1] / "scenes" / "weights"
BASE_WEIGHTS = _WEIGHTS / "base.safetensors"
"""The base model that ships with the package."""
SIZES = ("small", "base", "large")
"""Base models of the same task that ship with the package, by the name that `model.checkpoint`
takes."""
CLARITY_WEIGHTS = _WEIGHTS / "clarity.safetensors"
"""The learned scorer that ships with the package."""
REWARDS = {
    "composition": "mixgrpo.scenes.score:composition",
    "palette": "mixgrpo.scenes.score:palette",
    "strict": "mixgrpo.scenes.score:strict",
    "clarity": "mixgrpo.scenes.clarity:clarity",
}
"""Functions that score images of the embedded task."""


def weights_file(checkpoint: str | None) -> Path:
    """The file that `model.checkpoint` means: a size's name, a path, or none for the base model."""
    if checkpoint is None:
        return BASE_WEIGHTS
    return _WEIGHTS / f"{checkpoint}.safetensors" if checkpoint in SIZES else Path(checkpoint)
