"""The embedded task: small scenes of coloured shapes, drawn, described, scored and learned."""

from pathlib import Path

BASE_WEIGHTS = Path(__file__).parent / "weights" / "base.safetensors"
"""The base model that ships with the package."""
CLARITY_WEIGHTS = Path(__file__).parent / "weights" / "clarity.safetensors"
"""The learned scorer that ships with the package."""
REWARDS = {
    "composition": "mixgrpo.scenes.score:composition",
    "palette": "mixgrpo.scenes.score:palette",
    "strict": "mixgrpo.scenes.score:strict",
    "clarity": "mixgrpo.scenes.clarity:clarity",
}
"""Functions that judge pictures of the embedded task."""
