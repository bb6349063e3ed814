"""The report's figures: PNG for the page and PDF for print, each with its caption.

`plots` draws; this says which figures there are, in which style, and turns them into bytes. The
same measurements give the same bytes. Rollout rewards are not among them: they depend on where
the window stands, so a comparison of arms by them shows an effect that is not there.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from harness import plots
from harness.analysis import HEALTH, ONE_CORE, Analysis
from harness.drawing import drawn_arms, some_drawn

if TYPE_CHECKING:
    from harness.measurements import Samples
    from harness.results import Results

DPI = 200

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its name, the two files, and what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes


def draw(analysis: Analysis, results: "Results", samples: "Samples | None") -> list[Picture]:
    """All figures, in the order a reader wants them. Those without data are left out."""
    drawn: list[tuple[str, str, str, Callable[[], Figure]]] = []
    reward = f"The reward {analysis.measure}"
    if analysis.compared:
        caption = (
            f"{reward} after training on held-out prompts, arm minus reference, paired by seed. "
            "Small marks: one seed each. Thick line: 95 % interval of this arm alone. Thin line: "
            "the interval that holds for all arms together; only where it leaves zero out is an "
            "arm called better or worse. Right of zero: better than the reference."
        )
        title = "Difference to the reference"
        drawn.append(("differences", title, caption, lambda: plots.differences(analysis)))
    caption = (
        f"{reward} on held-out prompts after training: every seed, the mean and its 95 % interval. "
        "Open mark: the mean before training."
    )
    drawn.append(("final", "Final reward", caption, lambda: plots.final(analysis)))
    caption = (
        f"{reward} on held-out prompts over iterations, network evaluations and seconds: mean over "
        "seeds, and its 95 % interval as a band. Seconds count training only, not evaluation or "
        + (
            f"health, and are {ONE_CORE}."
            if analysis.core_time
            else "health; they also depend on what else the machine did."
        )
    )
    drawn.append(
        ("learning", "Learning curves", caption, lambda: plots.learning(analysis, results))
    )
    if analysis.others:
        caption = (
            "The rewards that arms train on beside the others, on the same held-out prompts. Where "
            "a reward falls that an arm does not train on, while one rises that it does, that is "
            "reward hacking."
        )
        title = "Trained and held-out rewards"
        drawn.append(("heldout", title, caption, lambda: plots.heldout(analysis, results)))
    if samples is not None:
        shown, label = samples, analysis.by_name(samples.arm).arm.label
        caption = (
            "The same noise and the same held-out prompts before training and after "
            f"{samples.iterations} iterations ({label}, seed {samples.seed})."
        )
        drawn.append(
            ("samples", "Pictures before and after", caption, lambda: plots.pictures(shown))
        )
    caption = (
        "Which steps of the trajectory each arm trains over the iterations. The dark line is the "
        "window's first step, the shaded band its extent."
    )
    configs = {run.arm: run.config for run in analysis.sweep.runs}
    shown_arms = drawn_arms(analysis)
    for name in shown_arms or configs:
        config = configs[name]
        if config.trained_per_image < config.window.size:
            caption += (
                f" {analysis.by_name(name).arm.label} trains {config.trained_per_image} of the "
                f"{config.window.size} steps of its window, drawn for every image anew."
            )
    drawn.append(("window", "The window's path", caption, lambda: plots.window(analysis, results)))
    caption = (
        "Median seconds of each phase of an iteration, over all iterations and seeds after "
        "warm-up. The number beside a bar is the median of the whole iteration."
    )
    if analysis.core_time:
        caption += (
            " Seconds are those of one core's time. A phase has the part of them that it had of "
            "the iteration by the clock."
        )
    if any(result.phases[HEALTH] > 0 for result in analysis.arms):
        caption += (
            " Health, what is measured beside the training, is in the bar but not in the number: "
            "no comparison of seconds counts it."
        )
    drawn.append(("time", "Time per phase", caption, lambda: plots.time(analysis)))
    some = some_drawn(analysis)
    return [
        picture(name, title, caption + ("" if name == "samples" else some), make)
        for name, title, caption, make in drawn
    ]


def picture(name: str, title: str, caption: str, make: Callable[[], Figure]) -> Picture:
    """What `make` draws, in the report's style, as the two files."""
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = make()
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Picture(name, title, caption, png.getvalue(), pdf.getvalue())
