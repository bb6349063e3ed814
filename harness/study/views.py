"""The views of a report by name, without importing one."""

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
"""The function that makes each view: of (analysis, results, probes), it returns a `View`, or None
where there is no data for it."""

DEFAULT = ("budget",)
"""The views on every page, before those that the sweep file names."""
