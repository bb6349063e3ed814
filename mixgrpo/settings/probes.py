"""Measurements on a finished run, by name and with their options.

Nothing here imports torch, so that a sweep file is checked in a moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mixgrpo.settings.config import Name, Section
from mixgrpo.settings.layers import as_tuples

Fraction = Annotated[float, Field(ge=0, le=1)]


class HybridOptions(Section):
    """Options of `hybrid`: held-out rewards where the trained model takes the first steps only."""

    p_mix: tuple[Fraction, ...] = Field((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=1)
    """Fractions of the steps, the first ones, that the trained model takes."""
    rewards: tuple[Name, ...] = ()
    """Rewards beside those that the run itself trains on or holds out."""


class SolverErrorOptions(Section):
    """Options of `solver-error`: how far a solver with fewer steps ends from the exact ODE."""

    orders: tuple[Literal["1", "2 midpoint", "2 heun", "3"], ...] = Field(
        ("1", "2 midpoint", "2 heun", "3"), min_length=1
    )
    """Orders of DPM-Solver++."""
    ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.2, 0.4, 0.6), min_length=1)
    """Fractions to which the steps before or after the window are compressed."""
    starts: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """First steps of windows; none: three, spread over those that the run's window visits."""
    prompts: int = Field(8, ge=1)
    """Held-out prompts, one image each, chosen by a hash of their text."""
    fine: int = Field(4, ge=2)
    """Runge-Kutta steps of the reference ODE within each step of the sampler's grid."""

    @field_validator("orders", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads `1` and `3` as numbers.
        return tuple(map(str, value)) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Probe:
    """One kind of measurement."""

    options: type[Section]
    measure: str
    """`module:function` of (folder of a run, iteration of its last checkpoint, options, the
    rewards as the sweep has them) -> rows, one dict each."""


PROBES: dict[str, Probe] = {
    "hybrid": Probe(HybridOptions, "mixgrpo.evaluation.hybrid:measure"),
    "solver-error": Probe(SolverErrorOptions, "mixgrpo.evaluation.solver_error:measure"),
}


def options_of(name: str, given: Mapping[str, Any]) -> Section:
    """The options of probe `name`, defaults filled in. pydantic's ValidationError for options that
    it does not have."""
    return PROBES[name].options.model_validate(as_tuples(dict(given)))
