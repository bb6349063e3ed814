"""The report's figures: PNG for the page and PDF for print, each with its caption.

`plots` draws; this says which figures there are, in which style, and turns them into bytes. The
same measurements give the same bytes. Rollout rewards are not among them: they depend on where
the window stands, so a comparison of arms by them shows an effect that is not there.
"""

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from harness.analysis.analyse import Analysis
from harness.analysis.seconds import HEALTH, ONE_CORE
from harness.reporting import plots
from harness.reporting.drawing import drawn_arms, some_drawn
from mixgrpo.errors import RunError
from mixgrpo.text.escape import one_line, shortened, visible

if TYPE_CHECKING:
    from harness.analysis.results import Results
    from harness.analysis.samples import Samples

DPI = 200
LONGEST_LINE = 110
"""Characters: a longer line leaves every figure on both sides."""

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
    # A text is drawn as it stands, whatever matplotlibrc says: no dollar begins mathematics.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its name, the two files, and what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes = b""
    pdf: bytes = b""
    whole: tuple[str, ...] = ()
    """Texts that the figure shows shortened, in its order."""
    error: str = ""
    """Why it could not be drawn: then there are no files."""

    @property
    def files(self) -> dict[str, bytes]:
        """By path inside a report's folder."""
        if self.error:
            return {}
        path = f"figures/{self.name}"
        return {f"{path}.png": self.png, f"{path}.pdf": self.pdf}


class FigureError(RunError):
    """A report was written without some of its figures."""


def check_drawn(page: Path, pictures: Iterable[Picture]) -> None:
    """FigureError naming those that could not be drawn. For the end, when all else is written."""
    failed = [f"{picture.name} ({picture.error})" for picture in pictures if picture.error]
    if failed:
        raise FigureError(f"{page}: is written without figures that failed: {', '.join(failed)}")


def draw(analysis: Analysis, results: "Results", samples: "Samples | None") -> list[Picture]:
    """All figures, in the order a reader wants them. Those without data are left out."""
    drawn: list[tuple[str, str, str, Callable[[], Figure]]] = []
    reward = f"The reward {analysis.measure}"
    if analysis.compared:
        caption = (
            f"{reward} after training on held-out prompts, arm minus reference, paired by seed. "
            "Small marks: one seed each. Thick line: 95 % interval of this arm alone. Thin line: "
            "the interval that holds for all arms together: better or worse where it excludes "
            "zero, equal where it lies in the grey band, which is as wide as the margin. Right of "
            "zero: better than the reference."
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
        shown, label = samples, analysis.label(samples.arm)
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
                f" {analysis.label(name)} trains {config.trained_per_image} of the "
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
    if any(result.cost.phases[HEALTH] > 0 for result in analysis.arms):
        caption += (
            " Health, what is measured beside the training, is in the bar but not in the number: "
            "no comparison of seconds counts it."
        )
    drawn.append(("time", "Time per phase", caption, lambda: plots.time(analysis)))
    some = some_drawn(analysis)
    prompts: tuple[str, ...] = ()
    if samples is not None and any("…" in plots.prompt_title(p) for p in samples.prompts):
        prompts = tuple(map(one_line, samples.prompts))
    return [
        picture(name, title, caption, make, prompts)
        if name == "samples"
        else picture(name, title, caption + some, make)
        for name, title, caption, make in drawn
    ]


def picture(
    name: str,
    title: str,
    caption: str,
    make: Callable[[], Figure],
    whole: tuple[str, ...] = (),
) -> Picture:
    """What `make` draws, in the report's style, as the two files. A failure is stored in it:
    no figure keeps a report from being written."""
    png, pdf = io.BytesIO(), io.BytesIO()
    try:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # The font draws a box for what it lacks, and would say so for every letter.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
            figure = make()
            _make_drawable(figure)
            figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
            figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    except Exception as error:
        reason = shortened(f"{type(error).__name__}: {error}", 200)
        caption = f"This figure could not be drawn ({reason}); the tables have its numbers."
        return Picture(name, title, caption, error=reason)
    return Picture(name, title, caption, png.getvalue(), pdf.getvalue(), whole)


def _make_drawable(figure: Figure) -> None:
    """Make control characters visible, and cut lines short that are wider than the figure."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Labels of ticks are made whenever they are drawn.
            if isinstance(formatter := axis.get_major_formatter(), FuncFormatter):
                formatter.func = _drawable_ticks(formatter.func)
    for text in figure.findobj(Text):
        text.set_text(_drawable(text.get_text()))


def _drawable(text: str) -> str:
    lines = visible(text).replace("\t", " ").split("\n")
    return "\n".join(s if len(s) <= LONGEST_LINE else f"{s[: LONGEST_LINE - 1]}…" for s in lines)


def _drawable_ticks(label: Callable[..., str]) -> Callable[..., str]:
    return lambda value, position=None: _drawable(label(value, position))
