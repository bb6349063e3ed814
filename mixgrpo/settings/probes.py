"""Measurements on a finished run, by name and with their options.

Nothing here imports torch, so that a sweep file is checked in a moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from mixgrpo.files.records import Count, Number, Record, in_words
from mixgrpo.settings.config import Name, RunConfig, Section
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


class HybridRow(Record):
    """A row of `hybrid`."""

    p_mix: Fraction
    trained_steps: Count
    reward: str
    role: Literal["trained", "held out", "other"]
    mean: Number
    sd: Annotated[Number, Field(ge=0)]
    images: Annotated[Count, Field(ge=1)]


class SolverErrorRow(Record):
    """A row of `solver-error`."""

    model: Literal["trained", "base"]
    place: Literal["before", "after", "reference"]
    order: Literal["1", "2 midpoint", "2 heun", "3", ""]
    ratio: Annotated[float, Field(gt=0, le=1)]
    history: Literal["keep", "restart", ""]
    start: Annotated[int, Field(ge=-1, lt=1e6)]
    saved: Annotated[int, Field(gt=-1e6, lt=1e6)]
    window: Literal["ode", "sde"]
    at: Literal["state", "image"]
    error: Annotated[Number, Field(ge=0)]
    images: Annotated[Count, Field(ge=1)]


@dataclass(frozen=True)
class Probe:
    """One kind of measurement."""

    options: type[Section]
    measure: str
    """`module:function` of (folder of a run, iteration of its last checkpoint, options, the
    rewards as the sweep has them) -> rows, one dict each."""
    row: type[Record]


PROBES: dict[str, Probe] = {
    "hybrid": Probe(HybridOptions, "mixgrpo.evaluation.hybrid:measure", HybridRow),
    "solver-error": Probe(
        SolverErrorOptions, "mixgrpo.evaluation.solver_error:measure", SolverErrorRow
    ),
}


def options_of(name: str, given: Mapping[str, Any]) -> Section:
    """The options of probe `name`, defaults filled in. pydantic's ValidationError for options that
    it does not have."""
    return PROBES[name].options.model_validate(as_tuples(dict(given)))


def check_rows(
    name: str, rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any], config: RunConfig
) -> None:
    """ValueError where these are not the rows of probe `name` with the options `given`, of a run
    with this configuration: all that there are, each once."""
    found: list[Any] = []
    for number, row in enumerate(rows):
        try:
            found.append(PROBES[name].row.model_validate(row))
        except ValidationError as error:
            raise ValueError(f"rows.{number}: {in_words(error)}") from None
    if name == "hybrid":
        asked: Any = options_of(name, given)
        rewards = {*config.rewards.train, *config.rewards.held_out, *asked.rewards}
        keys = [(row.p_mix, row.reward) for row in found]
        is_whole = set(keys) == set(product(asked.p_mix, rewards))
    else:  # at every position of the window, for both models, the same solvers
        keys = [tuple(row.model_dump(exclude={"error", "images"}).values()) for row in found]
        solvers: dict[Any, dict[Any, set[Any]]] = {m: {} for m in ("trained", "base")}
        for row in found:
            at = row.place, row.start, row.window, row.at
            solvers[row.model].setdefault(at, set()).add((row.order, row.ratio, row.history))
        of_place = {(at[0], frozenset(some)) for at, some in solvers["base"].items()}
        places = {place for place, _ in of_place}
        is_whole = (
            solvers["trained"] == solvers["base"]
            and "reference" in places
            and len(of_place) == len(places)
        )
    if not is_whole:
        raise ValueError("lacks rows, or has some that were not asked for")
    if len(set(keys)) < len(keys):
        raise ValueError("has rows twice")
