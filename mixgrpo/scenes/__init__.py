"""The embedded task: small scenes of coloured shapes, drawn, described, scored and learned."""

from pathlib import Path

BASE_WEIGHTS = Path(__file__).parent / "weights" / "base.safetensors"
"""The base model that ships with the package."""
CLARITY_WEIGHTS = Path(__file__).parent / "weights" / "clarity.safetensors"
"""The learned scorer that ships with the package."""
