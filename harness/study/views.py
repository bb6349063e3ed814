"""The views of a report by name, without importing one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


VIEWS = {
    "budget": "harness.reporting.views.budget:budget",
    "drift": "harness.reporting.views.drift:drift",
    "turn": "harness.reporting.views.turn:turn",
    "speedup": "harness.reporting.views.speedup:speedup",
    "stability": "harness.reporting.views.stability:stability",
    "interaction": "harness.reporting.views.interaction:interaction",
    "hybrid": "harness.reporting.views.hybrid:hybrid",
    "solver-error": "harness.reporting.views.solver_error:solver_error",
}
"""Where each view is made: a function of (analysis, results, probes) that returns a `View`, or None
where there is no data for it."""

DEFAULT = ("budget",)
"""On every page, before those that the sweep file names."""
