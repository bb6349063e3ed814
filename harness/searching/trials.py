"""The trials under way: begun, judged by what their runs show, given up or told to the study.

Starts and ends no run itself. What it decides comes from the storage and the run folders alone, so
a search can be killed and started again at any time: what finished meanwhile is told.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness.launching.plan import evaluations
from harness.runs.store import LIVE, RunState, read_result
from harness.searching import pruning
from harness.searching.file import Search
from harness.searching.runs import Curves, run_seconds, runs_of
from harness.searching.space import label
from harness.searching.study import Study, Trial
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
    """What was looked at, so that nothing is tested twice."""


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
        self._seen: dict[int, Trial] = {}
        """Trials that are over."""
        self._evaluations: dict[str, int] = {}
        """Of one run, by arm."""
        study.resume()
        for trial in study.trials():
            if trial.state == "running":
                self._begin(trial)
            elif trial.state != "waiting":
                self._seen[trial.number] = trial
                self._remember(trial)

    def want(self, run: Run) -> bool:
        """Whether a run is one of a trial that is not being given up."""
        return any(not one.dropped and run in one.runs for one in self.under_way.values())

    def judge(self, states: dict[str, RunState], stopping: bool) -> bool:
        """Tell what is over, and give up what falls behind, unless `stopping`. `states` by folder
        name. Whether the runs may be others now."""
        changed = False
        for opened in list(self.under_way.values()):
            own = [states[r.folder_name] for r in opened.runs if r.folder_name in states]
            changed = self._judge(opened, own, stopping) or changed
        return changed

    def ask(self) -> bool:
        """Begin trials, as many as may be under way. Whether there was one to begin."""
        asked = False
        while len(self.under_way) < self.search.parallel and self.study.wants_more():
            self._begin(self.study.ask())
            asked = True
        return asked

    def _judge(self, opened: OpenTrial, own: list[RunState], stopping: bool) -> bool:
        live = [s for s in own if s.state in LIVE]
        self._curves.update(own)
        if opened.dropped:
            self._stop(opened, live)
            if live:
                return False
            self._keep_measured(opened, own)
            self._close(opened, lambda trial: self.study.prune(trial, opened.dropped))
            return True
        finished = [s for s in own if s.state == "finished"]
        failed = [s for s in own if self._hopeless(s)]
        if failed:
            if live:
                self._stop(opened, live)
                return False
            why = _why_failed(failed[0])
            self._keep_measured(opened, own)
            self._close(opened, lambda trial: self.study.fail(trial, why))
            return True
        if len(finished) == len(opened.runs) and not live:
            self._complete(opened, own)
            return True
        if not opened.trial.enqueued and not stopping:
            why = self._behind(opened, own, finished)
            if why:
                opened.dropped = why
                self.study.drop(opened.trial, why)
                self._stop(opened, live)
                return True
        # The next seeds may begin.
        key = ("seeds", len(finished))
        fresh = key not in opened.judged
        opened.judged.add(key)
        return fresh

    def _behind(self, opened: OpenTrial, own: list[RunState], finished: list[RunState]) -> str:
        """Why a trial is given up; empty where it is not."""
        search = self.search
        rewards = {s.run.seed: s.score for s in finished if s.score is not None}
        rival = self._best_rival(opened)
        tested = ("rival", tuple(rewards), rival.number if rival else None)
        if rival is not None and tested not in opened.judged:
            opened.judged.add(tested)
            if pruning.worse_over_seeds(rewards, rival.rewards, search.prune.p):
                return f"worse than trial {rival.number} with {len(rewards)} seeds"
        as_cheap = {arm for arm, n in self._evaluations.items() if n <= opened.evaluations}
        for state in own:
            curve = self._curves.of(state.run)
            others = self._curves.others(state.run, as_cheap)
            key = ("curve", state.run.seed, len(curve), len(others))
            if state.state != "running" or len(curve) < 2 or key in opened.judged:
                continue
            opened.judged.add(key)
            if pruning.behind_on_the_curve(
                curve, others, search.prune.percentile, search.prune.warmup, search.prune.startup
            ):
                return f"behind the others at iteration {max(curve)} with seed {state.run.seed}"
        return ""

    def _best_rival(self, opened: OpenTrial) -> Trial | None:
        """The best trial so far of those that take no more evaluations."""
        rivals = [
            trial
            for trial in self._seen.values()
            if trial.state == "complete"
            and self._evaluations.get(trial.arm, math.inf) <= opened.evaluations
            and self._keeps_budget(trial)
        ]
        return max(rivals, key=lambda trial: _mean(trial.rewards.values()), default=None)

    def _keeps_budget(self, trial: Trial) -> bool:
        budget = self.search.budget
        if budget is None or budget.seconds is None:
            return True
        return trial.seconds is not None and trial.seconds <= budget.seconds

    def _begin(self, trial: Trial) -> None:
        """Begin a trial, or end it at once where there is nothing to run."""
        try:
            runs = runs_of(self.search, trial)
        except UnidentifiedError:  # a file is missing, which no other settings mend
            raise
        except ConfigError as error:
            wrong = error.without_place
            self._over(trial, lambda: self.study.prune(trial, wrong, free=True))
            return
        arm, count = runs[0].arm, evaluations(runs[0].config)
        self._evaluations[arm] = count
        budget = self.search.budget
        if budget is not None and budget.evaluations is not None:
            excess = count - budget.evaluations
            self.study.constrain(trial, "evaluations", excess)
            if excess > 0:
                why = f"takes {count:,} evaluations, {excess:,} over the budget"
                self.study.note(trial, evaluations=count)
                self._over(trial, lambda: self.study.prune(trial, why, free=True))
                return
        over = reversed(self._seen.values())
        twins = {one.state: one for one in over if one.arm == arm and not one.free}
        if "complete" in twins:
            self._repeat(trial, twins["complete"])
            return
        if "pruned" in twins:
            why = f"the same settings as trial {twins['pruned'].number}, which was given up"
            self._over(trial, lambda: self.study.prune(trial, why, free=True))
            return
        if any(opened.runs[0].arm == arm for opened in self.under_way.values()):
            why = "the same settings as a trial under way"
            self._over(trial, lambda: self.study.prune(trial, why, free=True))
            return
        self.under_way[trial.number] = OpenTrial(trial, runs, count, dropped=trial.why)

    def _repeat(self, trial: Trial, twin: Trial) -> None:
        """Tell a trial what another one of the same settings has measured."""
        self.study.note(
            trial,
            why=f"the same settings as trial {twin.number}",
            free=True,
            rewards={str(seed): reward for seed, reward in twin.rewards.items()},
            seconds=twin.seconds,
            evaluations=twin.evaluations,
        )
        self._over(trial, lambda: self._tell(trial, twin))

    def _tell(self, trial: Trial, measured: Trial) -> None:
        budget = self.search.budget
        if budget is not None and budget.seconds is not None:
            assert measured.seconds is not None
            self.study.constrain(trial, "seconds", measured.seconds - budget.seconds)
        by_name = {
            "reward": _mean(measured.rewards.values()),
            "seconds": measured.seconds,
            "evaluations": measured.evaluations,
        }
        values = [by_name[objective] for objective in self.search.objectives]
        if not all(value is not None and math.isfinite(value) for value in values):
            self.study.fail(trial, "a run has no finite reward, or no time")
            return
        self.study.complete(trial, [float(value or 0.0) for value in values])

    def _complete(self, opened: OpenTrial, own: list[RunState]) -> None:
        self._keep_measured(opened, own)

        def tell(trial: Trial) -> None:
            self._tell(trial, self.study.trials()[trial.number])

        self._close(opened, tell)

    def _keep_measured(self, opened: OpenTrial, own: list[RunState]) -> None:
        """Keep with a trial what its runs measured."""
        finished = [s for s in own if s.state == "finished"]
        results = [read_result(s.folder, s.run.config.evaluation.every) for s in finished]
        spent = {s.run.seed: run_seconds(s.folder) for s in own}
        counts = [float(result.evaluations_computed) for result in results if result]
        self.study.note(
            opened.trial,
            rewards={str(s.run.seed): s.score for s in finished if s.score is not None},
            spent=sum(spent.values()),
            evaluations=_mean(counts) if counts else float(opened.evaluations),
            seconds=_mean([spent[s.run.seed] for s in finished]) if finished else None,
        )

    def _close(self, opened: OpenTrial, tell: Callable[[Trial], None]) -> None:
        del self.under_way[opened.trial.number]
        self._over(opened.trial, lambda: tell(opened.trial))

    def _over(self, trial: Trial, tell: Callable[[], None]) -> None:
        tell()
        told = self.study.trials()[trial.number]
        self._seen[trial.number] = told
        self._say(in_words(self.search, told))

    def _stop(self, opened: OpenTrial, live: list[RunState]) -> None:
        """Ask a trial's living jobs to stop, each once."""
        fresh = [state for state in live if ("end", state.run.seed) not in opened.judged]
        opened.judged |= {("end", state.run.seed) for state in fresh}
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
        word = {"pruned": "given up", "failed": "failed"}.get(trial.state, trial.state)
        return f"{name}: {word}{f': {trial.why}' if trial.why else ''}"
    parts = [f"{search.measure} {number(_mean(trial.rewards.values()))}"]
    if trial.evaluations is not None:
        parts.append(f"{trial.evaluations:,.0f} evaluations")
    if trial.seconds is not None:
        parts.append(f"{trial.seconds:.1f} s")
    text = f"{name}: {', '.join(parts)}"
    return f"{text} ({trial.why})" if trial.why else text


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
