"""Figures of a study for a notebook or script: matplotlib axes, to be changed as one likes.

They look as a report's do (`harness.reporting.drawing`) and are made by pyplot, so that a notebook
shows them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from harness.analysis import columns
from harness.analysis.columns import ARM, ITERATION
from harness.analysis.seconds import at_evaluations
from harness.frames.compare import Reference
from harness.stats import LEVEL
from mixgrpo.errors import ConfigError
from mixgrpo.text.suggest import did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.frames.study import Study

Over = Literal["iterations", "evaluations", "seconds"]
_LABELS = {
    "iterations": "iterations",
    "evaluations": "network evaluations",
    "seconds": "seconds of training",
}


@dataclass(frozen=True)
class Plots:
    """`Study.plot`. Each draws into `axes`, or into a new figure, and returns the axes."""

    study: "Study"

    def learning(
        self, measure: str | None = None, x: Over = "iterations", axes: "Axes | None" = None
    ) -> "Axes":
        """A reward on held-out prompts over iterations, network evaluations or seconds: each arm's
        mean over seeds, with its 95 % interval as a band.

        ConfigError for an unknown measure or `x`, RunError where no run has finished.
        """
        from harness.reporting.drawing import marks, plot_curve, seed_curve, thousands, wrapped

        measure = self.study.checked(measure)
        if x not in get_args(Over):
            raise ConfigError(f"learning: x: no {x}{did_you_mean(str(x), get_args(Over))}")
        axes = axes if axes is not None else _new_axes(4.5)
        column, labels = ITERATION if x == "iterations" else x, self.study.arms.labels
        lines = at_evaluations(self.study.results)
        style = marks([*labels])
        for arm, rows in lines.groupby(ARM, observed=True):
            curve = seed_curve(rows, column, columns.reward(measure))
            if curve:
                plot_curve(axes, curve, style[str(arm)], wrapped(labels[str(arm)], 40))
        axes.set_xlabel(_LABELS[x])
        axes.set_ylabel(measure)
        if x == "evaluations":
            axes.xaxis.set_major_formatter(thousands)
        axes.legend(frameon=False)
        return axes

    def differences(
        self,
        measure: str | None = None,
        reference: Reference | None = None,
        *,
        margin: float | None = None,
        level: float = LEVEL,
        axes: "Axes | None" = None,
    ) -> "Axes":
        """What `Study.compare` says of these arguments, which raise the same errors: a row an arm
        with the mean difference and its interval, and the margin as a band."""
        from harness.reporting.drawing import GREY, marks, name_rows, wrapped

        study = self.study
        compared = study.compare(measure, reference, margin=margin, level=level)
        labels = study.arms.labels
        axes = axes if axes is not None else _new_axes(1.0 + 0.5 * max(2, len(compared)))
        axes.axvline(0, color=GREY, linewidth=1.2)
        if margin is not None:
            axes.axvspan(-margin, margin, color=GREY, alpha=0.12, linewidth=0)
        style = marks([*labels])
        for y, row in enumerate(compared.to_dict("records")):
            mark = style[row["arm"]]
            axes.plot([row["low"], row["high"]], [y, y], color=mark.colour, linewidth=1.8)
            axes.plot(row["difference"], y, mark.marker, color=mark.colour, markersize=8)
        name_rows(axes, [wrapped(f"{labels[a]}", 28) for a in compared["arm"]])
        names = dict.fromkeys(labels[arm] for arm in compared["reference"])
        to = next(iter(names)) if len(names) == 1 else "its reference"
        axes.set_xlabel(f"difference in {study.checked(measure)} to {to}")
        return axes


def _new_axes(height: float) -> "Axes":
    import matplotlib.pyplot as plt

    from harness.reporting.drawing import WIDTH

    _, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    return axes
