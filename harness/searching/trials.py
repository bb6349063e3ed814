"""The trials under way: begun, judged by what their runs show, given up or told to the study.

Starts and ends no run itself. What it decides comes from the storage and the run folders alone, so
a search can be killed and started again at any time: what finished meanwhile is told.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from harness.launching.plan import evaluations
from harness.runs.result import read_result
from harness.runs.state import LIVE, RunState
from harness.searching import pruning
from harness.searching.file import Search
from harness.searching.runs import Curves, run_seconds, runs_of
from harness.searching.space import label
from harness.searching.study import STATES, Study, Trial, TrialState
from harness.study.spec import Run
from harness.text import number
from mixgrpo.errors import ConfigError, UnidentifiedError


@dataclass
class OpenTrial:
    """A trial under way."""

    trial: Trial
    runs: tuple[Run, ...]
    """Seed by seed."""
    evaluations: int
    """Of one of its runs, known beforehand."""
    dropped: str = ""
    """Why it is being given up."""
    judged: set[tuple[object, ...]] = field(default_factory=set)

    def is_new(self, *what: object) -> bool:
        """Whether this is seen for the first time, so that nothing is tested or asked twice."""
        new = what not in self.judged
        self.judged.add(what)
        return new


class Trials:
    """The trials of one search while a launcher runs it."""

    def __init__(
        self,
        search: Search,
        study: Study,
        curves: Curves,
        say: Callable[[str], None],
        hopeless: Callable[[RunState], bool],
        end: Callable[[list[RunState]], None],
    ) -> None:
        """`hopeless`: whether a run that is not under way will not be started again. `end` asks
        living jobs to stop."""
        self.search, self.study, self._curves = search, study, curves
        self._say, self._hopeless, self._end = say, hopeless, end
        self.under_way: dict[int, OpenTrial] = {}
        """By number."""
        self._over: dict[int, Trial] = {}
        """By number."""
        self._evaluations: dict[str, int] = {}
        """Of one run, by arm."""
        study.resume()
        for trial in study.trials():
            if trial.state == "running":
                self._begin(trial)
            elif trial.state != "waiting":
                self._over[trial.number] = trial
                self._remember(trial)

    def want(self, run: Run) -> bool:
        """Whether a run is one of a trial that is not being given up."""
        return any(not one.dropped and run in one.runs for one in self.under_way.values())

    def judge(self, states: dict[str, RunState], stopping: bool) -> bool:
        """Tell what is over, and give up what falls behind, unless `stopping`. `states` by folder
        name. Whether the runs may be others now."""
        changed = False
        for opened in list(self.under_way.values()):
            runs = [states[r.folder_name] for r in opened.runs if r.folder_name in states]
            changed = self._judge(opened, runs, stopping) or changed
        return changed

    def ask(self) -> bool:
        """Begin trials, as many as may be under way. Whether there was one to begin."""
        asked = False
        while len(self.under_way) < self.search.parallel and self.study.wants_more():
            self._begin(self.study.ask())
            asked = True
        return asked

    def _judge(self, opened: OpenTrial, states: list[RunState], stopping: bool) -> bool:
        live = [state for state in states if state.state in LIVE]
        finished = [state for state in states if state.state == "finished"]
        self._curves.update(states)
        failed = next(filter(self._hopeless, states), None)
        if opened.dropped or failed:
            self._stop(opened, live)
            if live:
                return False
            self._keep_measured(opened, states)
            if opened.dropped:
                self._tell(opened.trial, "pruned", why=opened.dropped)
            elif failed:
                self._tell(opened.trial, "failed", why=_why_failed(failed))
            return True
        if len(finished) == len(opened.runs) and not live:
            self._keep_measured(opened, states)
            self._complete(opened.trial, self.study.trials()[opened.trial.number])
            return True
        if not opened.trial.enqueued and not stopping:
            why = self._behind(opened, states, finished)
            if why:
                opened.dropped = why
                self.study.note(opened.trial, dropped=why)
                self._stop(opened, live)
                return True
        return opened.is_new("seeds", len(finished))  # the next seeds may begin

    def _behind(self, opened: OpenTrial, states: list[RunState], finished: list[RunState]) -> str:
        """Why a trial is given up; empty where it is not."""
        rules = self.search.prune
        rewards = {s.run.seed: s.score for s in finished if s.score is not None}
        # The best trial so far of those that take no more evaluations.
        rivals = [
            trial
            for trial in self._over.values()
            if trial.state == "complete"
            and self._evaluations.get(trial.arm, math.inf) <= opened.evaluations
            and trial.keeps(self.search.budget)
        ]
        rival = max(rivals, key=lambda trial: trial.reward, default=None)
        if (
            rival is not None
            and opened.is_new("rival", tuple(rewards), rival.number)
            and pruning.worse_over_seeds(rewards, rival.rewards, rules.p)
        ):
            return f"worse than trial {rival.number} with {len(rewards)} seeds"
        as_cheap = {arm for arm, n in self._evaluations.items() if n <= opened.evaluations}
        for run in (state.run for state in states if state.state == "running"):
            curve, others = self._curves.of(run), self._curves.others(run, as_cheap)
            if len(curve) < 2 or not opened.is_new("curve", run.seed, len(curve), len(others)):
                continue
            if pruning.behind_on_the_curve(
                curve, others, rules.percentile, rules.warmup, rules.startup
            ):
                return f"behind the others at iteration {max(curve)} with seed {run.seed}"
        return ""

    def _begin(self, trial: Trial) -> None:
        """Begin a trial, or end it at once where there is nothing to run."""
        try:
            runs = runs_of(self.search, trial)
        except UnidentifiedError:  # a file is missing, whatever the settings are
            raise
        except ConfigError as error:
            self._tell(trial, "pruned", why=error.without_place, free=True)
            return
        arm, count = runs[0].arm, evaluations(runs[0].config)
        self._evaluations[arm] = count
        budget = self.search.budget
        if budget is not None and budget.evaluations is not None:
            excess = count - budget.evaluations
            self.study.constrain(trial, "evaluations", excess)
            if excess > 0:
                why = f"takes {count:,} evaluations, {excess:,} over the budget"
                self._tell(trial, "pruned", evaluations=count, why=why, free=True)
                return
        same = [one for one in self._over.values() if one.arm == arm and not one.free]
        first = {one.state: one for one in reversed(same)}
        why = ""
        if twin := first.get("complete"):
            self.study.note(
                trial,
                why=f"the same settings as trial {twin.number}",
                free=True,
                rewards={str(seed): reward for seed, reward in twin.rewards.items()},
                seconds=twin.seconds,
                evaluations=twin.evaluations,
            )
            self._complete(trial, twin)
        elif twin := first.get("pruned"):
            why = f"the same settings as trial {twin.number}, which was given up"
        elif any(opened.runs[0].arm == arm for opened in self.under_way.values()):
            why = "the same settings as a trial under way"
        else:
            self.under_way[trial.number] = OpenTrial(trial, runs, count, dropped=trial.why)
        if why:
            self._tell(trial, "pruned", why=why, free=True)

    def _complete(self, trial: Trial, measured: Trial) -> None:
        """Tell a trial what its runs, or those of another one of the same settings, measured."""
        budget = self.search.budget
        if budget is not None and budget.seconds is not None:
            assert measured.seconds is not None
            self.study.constrain(trial, "seconds", measured.seconds - budget.seconds)
        values = [getattr(measured, objective) for objective in self.search.objectives]
        if all(value is not None and math.isfinite(value) for value in values):
            self._tell(trial, "complete", [float(value) for value in values])
        else:
            self._tell(trial, "failed", why="a run has no finite reward, or no time")

    def _keep_measured(self, opened: OpenTrial, states: list[RunState]) -> None:
        """Keep with a trial what its runs measured."""
        finished = [state for state in states if state.state == "finished"]
        results = [read_result(s.folder, s.run) for s in finished]
        spent = {s.run.seed: run_seconds(s.folder) for s in states}
        counts = [float(result.evaluations_computed) for result in results if result]
        self.study.note(
            opened.trial,
            rewards={str(s.run.seed): s.score for s in finished if s.score is not None},
            spent=sum(spent.values()),
            evaluations=fmean(counts) if counts else float(opened.evaluations),
            seconds=fmean(spent[s.run.seed] for s in finished) if finished else None,
        )

    def _tell(
        self, trial: Trial, state: TrialState, values: list[float] | None = None, **notes: Any
    ) -> None:
        """End a trial, and say how it ended."""
        self.under_way.pop(trial.number, None)
        self.study.tell(trial, state, values, **notes)
        self._over[trial.number] = told = self.study.trials()[trial.number]
        self._say(in_words(self.search, told))

    def _stop(self, opened: OpenTrial, live: list[RunState]) -> None:
        """Ask a trial's living jobs to stop, each once."""
        fresh = [state for state in live if opened.is_new("end", state.run.seed)]
        if fresh:
            self._end(fresh)

    def _remember(self, trial: Trial) -> None:
        """The curves of a trial that is over, for those that are held against it."""
        if trial.asked is None:
            return
        with contextlib.suppress(ConfigError):
            runs = runs_of(self.search, trial)
            self._evaluations[trial.arm] = evaluations(runs[0].config)
            for run in runs:
                self._curves.read(run)


def _why_failed(state: RunState) -> str:
    last = state.attempts[-1].last_line if state.attempts else "it never began"
    if state.state == "failed":
        return f"{state.run.name} failed: {last}"
    return f"{state.run.name} was lost and is not tried again: {last or state.reason}"


def in_words(search: Search, trial: Trial) -> str:
    """How a trial ended, in one line."""
    name = f"trial {trial.number}"
    if trial.asked is not None:
        name += f" ({label(search.space, trial.asked)})"
    if trial.state != "complete":
        return f"{name}: {STATES[trial.state]}{f': {trial.why}' if trial.why else ''}"
    text = f"{name}: {search.measure} {number(trial.reward)}"
    if trial.evaluations is not None:
        text += f", {trial.evaluations:,.0f} evaluations"
    if trial.seconds is not None:
        text += f", {trial.seconds:.1f} s"
    return f"{text} ({trial.why})" if trial.why else text
