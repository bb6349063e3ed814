"""The views of a study's page: each answers one question of its own with a table or a figure.

`budget` stands on every page; a sweep file's `views:` names the others. A view is made from the
finished runs alone, and where these do not have what it needs, it is left out.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis import Analysis
    from harness.figures import Picture
    from harness.results import Results
    from harness.tables import Table

VIEWS = {
    "budget": "harness.views.budget:budget",
    "drift": "harness.views.drift:drift",
    "turn": "harness.views.turn:turn",
    "speedup": "harness.views.speedup:speedup",
    "stability": "harness.views.stability:stability",
    "interaction": "harness.views.interaction:interaction",
    "hybrid": "harness.views.hybrid:hybrid",
    "solver-error": "harness.views.solver_error:solver_error",
}
"""Where each view is made: a function of (analysis, results, probes) that returns a `View`, or None
where there is no data for it."""

DEFAULT = ("budget",)
"""On every page, before those that the sweep file names."""


@dataclass(frozen=True)
class View:
    title: str
    sentences: tuple[str, ...]
    """The answer, in one to three."""
    tables: "tuple[Table, ...]"
    pictures: "tuple[Picture, ...]"


def make_views(
    analysis: "Analysis",
    results: "Results",
    probes: "pd.DataFrame | None",
    names: Iterable[str],
) -> list[View]:
    """The default views and the named ones, each once; without those that have no data."""
    found = []
    for name in dict.fromkeys((*DEFAULT, *names)):
        module, _, function = VIEWS[name].partition(":")
        view: View | None = getattr(importlib.import_module(module), function)(
            analysis, results, probes
        )
        if view is not None:
            found.append(view)
    return found
