"""A study as data frames: what `harness.load` and `harness.load_runs` return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from harness.analysis import columns
from harness.analysis.columns import ARM, SEED, STATE
from harness.analysis.results import Results
from harness.analysis.settings import Settings, with_settings
from harness.frames.compare import Reference, compare, own_references, reference_arm
from harness.frames.query import fulfilled
from harness.stats import LEVEL, mean_interval
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.text.suggest import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from harness.frames.plot import Plots


@dataclass(frozen=True)
class Arms:
    """The arms of a study, in its order."""

    settings: Settings
    """All settings of every arm."""
    labels: Mapping[str, str]
    """As figures show them, such as `τ = 5`."""
    varied: tuple[str, ...]
    """The settings that differ between arms of the study as it was loaded: columns of its
    frames."""


@dataclass(frozen=True, repr=False, eq=False)
class Study:
    """Runs and what they measured. Every frame has the columns arm (a category, in the order of the
    sweep file) and seed, which name a run, and behind the arm a column for each setting that varies
    between arms, under its dotted key: `window.interval`."""

    name: str
    """The study's; of several, all names."""
    question: str
    """What the sweep file asks; empty for folders of runs."""
    arms: Arms
    results: Results
    """The measurements without settings, as `harness.analysis` takes them."""
    measures: tuple[str, ...]
    """The reward that answers the question, of each study."""
    references: Mapping[str, set[str]]
    """By arm, the arms that the sweep files compare it with."""
    read_scores: "Callable[[], pd.DataFrame]"
    """Reads `scores` of the study as it was loaded, once."""

    @cached_property
    def runs(self) -> "pd.DataFrame":
        """One row a run: `study` (of a run that several ask for, all), arm, settings, seed, hash,
        state; of finished ones `before_<reward>` and `after_<reward>` on held-out prompts,
        `iterations`, and the cost: `seconds_total`, `evaluations_computed` and
        `backward_computed` (of the network, after sharing), `nfe_rollout`, `nfe_train`."""
        return self._with_settings(self.results.runs)

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """One row an iteration of every finished run: metrics.jsonl (docs/run-folder.md). Do not
        compare arms by `reward_<name>_mean` here: it depends on where the window stands."""
        return self._with_settings(self.results.metrics)

    @cached_property
    def evaluations(self) -> "pd.DataFrame":
        """One row an evaluation on held-out prompts of every finished run: eval.jsonl."""
        return self._with_settings(self.results.evaluations)

    @cached_property
    def scores(self) -> "pd.DataFrame":
        """One row an image of every evaluation: iteration, prompt, image, `reward_<name>`. Read
        from the run folders when it is first asked for, and empty where only a report's
        measurements are there."""
        return self._with_settings(_of_runs(self.read_scores(), self.results.runs))

    def _with_settings(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        return with_settings(frame, self.arms.settings, self.arms.varied)

    @property
    def finished(self) -> "pd.DataFrame":
        """The rows of `runs` that are finished."""
        return self.runs[self.runs[STATE] == "finished"]

    @property
    def measure(self) -> str:
        """The reward that answers the question. ConfigError where the studies have several."""
        if len(self.measures) != 1:
            have = f"has several, {', '.join(self.measures)}" if self.measures else "names none"
            raise ConfigError(f"measure: {self.name} {have}; say which: {', '.join(self.rewards)}")
        return self.measures[0]

    @property
    def rewards(self) -> tuple[str, ...]:
        """The rewards that any run was judged by on held-out prompts."""
        start = columns.after("")
        names = [c for c in self.results.runs.columns if c.startswith(start)]
        return tuple(name.removeprefix(start) for name in names)

    def where(self, condition: str) -> "Study":
        """The part of the study whose runs fulfil a condition, in all frames.

            study.where("window.size >= 4 and state == 'finished'")

        The condition is an expression of pandas over the columns of `runs` and over every setting,
        also one that does not vary. ConfigError for an unknown column and for what is no condition.
        """
        runs = self.results.runs
        kept = runs[fulfilled(self.runs, self.arms.settings, condition)]
        names = {str(arm) for arm in kept[ARM].unique()}
        arms = replace(
            self.arms,
            settings={arm: of_arm for arm, of_arm in self.arms.settings.items() if arm in names},
        )
        return replace(
            self,
            arms=arms,
            results=replace(
                self.results,
                runs=_of_arms(kept, arms),
                metrics=_of_arms(_of_runs(self.results.metrics, kept), arms),
                evaluations=_of_arms(_of_runs(self.results.evaluations, kept), arms),
            ),
            references={arm: of for arm, of in self.references.items() if arm in names},
        )

    def compare(
        self,
        measure: str | None = None,
        reference: Reference | None = None,
        *,
        margin: float | None = None,
        level: float = LEVEL,
    ) -> "pd.DataFrame":
        """Every arm minus the reference after training, paired by seed: one row a comparison.

            study.compare("composition", {"window.interval": 5}, margin=0.02)

        `measure`: a reward, by default the study's. `reference`: an arm's name, or settings that
        one arm has; by default what the sweep file says. `margin`: differences up to this are worth
        nothing, in the measure's units; without one no arm is equal to the reference.

        Columns: arm, the settings that vary, reference, pairs (seeds that both have), difference
        (the mean), low and high, verdict (better, worse, equal, undecided) and its reason, level
        (of this interval, such that all of them hold together with the `level` that was asked for),
        sd and degrees_of_freedom (of the paired differences, moderated by the other arms':
        `harness.evidence.moderation`).

        ConfigError for an unknown measure, for a reference that no arm or several arms fit, and
        for a margin or level that is none. RunError where no run has finished.
        """
        measure = self.checked(measure)
        references = self.chosen_references(reference)
        compared = compare(self.finished, references, measure, margin, level)
        return with_settings(compared, self.arms.settings, self.arms.varied)

    def checked(self, measure: str | None) -> str:
        """A measure that the finished runs have, the study's by default. ConfigError for an
        unknown one, RunError where no run has finished."""
        if not len(self.finished):
            raise RunError(f"{self.name}: no finished run; `runs` has the states of its runs")
        name = self.measure if measure is None else measure
        if name not in self.rewards:
            raise ConfigError(f"measure: no reward {name}{did_you_mean(str(name), self.rewards)}")
        return name

    def chosen_references(self, reference: Reference | None) -> dict[str, str]:
        """By arm, the one that it is compared with (`compare`)."""
        if reference is None:
            return own_references(self.references, [*self.arms.settings])
        return dict.fromkeys(self.arms.settings, reference_arm(reference, self.arms.settings))

    @property
    def plot(self) -> "Plots":
        """Figures of the study: `plot.learning()`, `plot.differences()`."""
        from harness.frames.plot import Plots

        return Plots(self)

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """One row an arm: settings that vary, runs, finished, and the mean of the measure before
        and after training where the study has one."""
        import pandas as pd

        rows = []
        for arm in self.arms.settings:
            of_arm = self.results.runs[self.results.runs[ARM] == arm]
            row = {"arm": arm, "runs": len(of_arm)}
            row["finished"] = int((of_arm[STATE] == "finished").sum())
            for name in self.measures:
                for column in (columns.before(name), columns.after(name)):
                    if column in of_arm:
                        row[column] = mean_interval([*of_arm[column].dropna()]).mean
            rows.append(row)
        return self._with_settings(pd.DataFrame(rows, columns=None if rows else ["arm"]))

    def __repr__(self) -> str:
        finished = len(self.results.finished)
        return (
            f"<Study {self.name}: {len(self.arms.settings)} arms, "
            f"{finished} of {len(self.results.runs)} runs finished>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        about = f"<p><b>{escape(self.name)}</b> {escape(self.question)}</p>"
        finished = f"{len(self.results.finished)} of {len(self.results.runs)} runs finished"
        table = self.summary.to_html(index=False, float_format="{:.4f}".format, na_rep="", border=0)
        return f"<div>{about}{table}<p>{finished}</p></div>"


def _of_runs(frame: "pd.DataFrame", runs: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of `frame` that belong to these runs."""
    import pandas as pd

    wanted = pd.MultiIndex.from_arrays([runs[ARM].astype("str"), runs[SEED]])
    index = pd.MultiIndex.from_arrays([frame[ARM].astype("str"), frame[SEED]])
    return frame[index.isin(wanted)].reset_index(drop=True)


def _of_arms(frame: "pd.DataFrame", arms: Arms) -> "pd.DataFrame":
    """`frame` with these arms alone as categories."""
    return frame.assign(arm=frame[ARM].cat.set_categories([*arms.settings])).reset_index(drop=True)
