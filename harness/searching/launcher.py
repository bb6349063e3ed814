"""Runs a search: asks for trials, starts their runs, gives up what falls behind, tells the rest.

The runs are ordinary ones, and starting, following, resuming and stopping them is the work of
`harness.launcher`, over any executor. Which runs there are grows with the trials. Everything is
decided from the storage and the run folders, so the search can be killed and started again at any
time: what finished meanwhile is told, what died goes on from its checkpoint, what lives is
followed.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.arms import Arm
from harness.dispatch import Executor
from harness.launcher import Launcher, Retry, ask_to_stop
from harness.numbers import number
from harness.plan import evaluations
from harness.progress import Progress
from harness.searching import pruning
from harness.searching.file import Search, reason
from harness.searching.space import arm_name, label
from harness.searching.study import Study, Trial
from harness.sharing import Sharing
from harness.spec import Run, Sweep
from harness.store import LIVE, RunState, read_result
from harness.submissions import Scheduler
from mixgrpo.errors import ConfigError, RunError, UnidentifiedError
from mixgrpo.identity import config_hashes
from mixgrpo.jsonlines import read_lines

_TOGETHER = 2
"""So many seeds of a trial may run at once: with fewer there is no pair to test."""


@dataclass
class _Open:
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


def make_sweep(search: Search, arms: tuple[Arm, ...] = (), runs: tuple[Run, ...] = ()) -> Sweep:
    """A search's runs so far, as everything that starts and follows runs knows them."""
    return Sweep(
        name=search.name,
        question=search.question,
        file=search.file,
        profile=search.profile,
        arms=arms,
        seeds=search.seeds,
        runs=runs,
        reference=arms[0].name if arms else "",
        measure=search.measure,
        paper=None,
        paper_rows={},
        notes=search.notes,
        overrides=search.overrides,
        variant=search.variant,
    )


def runs_of(search: Search, trial: Trial) -> tuple[Run, ...]:
    """The runs of a trial, one for each seed. ConfigError where its settings cannot be run."""
    assert trial.asked is not None
    config = search.config(trial.asked)
    arm = arm_name(trial.asked)
    hashes = config_hashes(config, search.seeds)
    return tuple(
        Run(arm, seed, config.model_copy(update={"seed": seed}), identity)
        for seed, identity in zip(search.seeds, hashes, strict=True)
    )


class SearchLauncher(Launcher):
    """Owns a search while it runs. Use it with the lease of its folder held."""

    def __init__(
        self,
        search: Search,
        study: Study,
        runs_dir: Path,
        progress: Progress,
        make_executor: Callable[[Callable[[], bool]], Executor],
        scheduler: Scheduler,
        retry: Retry = "lost",
    ) -> None:
        super().__init__(make_sweep(search), runs_dir, progress, make_executor, scheduler, retry)
        self.search, self.study = search, study
        self._under_way: dict[int, _Open] = {}
        self._seen: dict[int, Trial] = {}
        """Trials that are over."""
        self._evaluations: dict[str, int] = {}
        """Of one run, by arm."""
        self._curves: dict[str, dict[int, dict[int, float]]] = {}
        """Reward by iteration, by seed and arm: of all runs that were ever looked at."""
        self._whole: set[str] = set()
        """Folder names of the runs whose curves cannot grow."""
        self._looked_for: set[str] = set()
        """Folder names of the runs that were looked for in other sweeps."""
        study.enqueue(again=retry == "failed")
        study.resume()
        for trial in study.trials():
            if trial.state == "running":
                self._open_trial(trial)
            elif trial.state != "waiting":
                self._seen[trial.number] = trial
                self._remember(trial)
        self._lay_out([])

    # -- hooks of the launcher

    def _look(self) -> list[RunState]:
        """All states, after what they mean for the trials was done."""
        states = super()._look()
        while self._advance({state.run.folder_name: state for state in states}):
            self._lay_out(states)
            states = super()._look()
            if self._copy_finished_elsewhere(states):
                states = super()._look()
        return states

    def _wants(self, state: RunState) -> bool:
        asked_for = any(
            not opened.dropped and state.run in opened.runs for opened in self._under_way.values()
        )
        return asked_for and super()._wants(state)

    # -- trials

    def _advance(self, states: dict[str, RunState]) -> bool:
        """Judge the trials under way and ask for more. Whether the runs may be others now."""
        changed = False
        for opened in list(self._under_way.values()):
            own = [states[r.folder_name] for r in opened.runs if r.folder_name in states]
            changed = self._judge(opened, own) or changed
        if not self.signals and not self.no_space:
            while len(self._under_way) < self.search.parallel and self.study.wants_more():
                self._open_trial(self.study.ask())
                changed = True
        return changed

    def _judge(self, opened: _Open, own: list[RunState]) -> bool:
        live = [s for s in own if s.state in LIVE]
        self._read_curves(own)
        if opened.dropped:
            self._end(opened, live)
            if live:
                return False
            self._keep_measured(opened, own)
            self._close(opened, lambda trial: self.study.prune(trial, opened.dropped))
            return True
        finished = [s for s in own if s.state == "finished"]
        failed = [s for s in own if s.state == "failed" and s not in live and not self._wants(s)]
        if failed:
            if live:
                self._end(opened, live)
                return False
            last = failed[0].attempts[-1].last_line if failed[0].attempts else "it never began"
            why = f"{failed[0].run.name} failed: {last}"
            self._keep_measured(opened, own)
            self._close(opened, lambda trial: self.study.fail(trial, why))
            return True
        if len(finished) == len(opened.runs) and not live:
            self._complete(opened, own)
            return True
        if not opened.trial.enqueued and not self.signals:
            why = self._behind(opened, own, finished)
            if why:
                opened.dropped = why
                self.study.note(opened.trial, why=why)
                self._end(opened, live)
                return True
        # The next seeds may begin.
        key = ("seeds", len(finished))
        fresh = key not in opened.judged
        opened.judged.add(key)
        return fresh

    def _behind(self, opened: _Open, own: list[RunState], finished: list[RunState]) -> str:
        """Why a trial is given up; empty where it is not."""
        search = self.search
        rewards = {s.run.seed: s.score for s in finished if s.score is not None}
        rival = self._best_rival(opened)
        tested = ("rival", tuple(rewards), rival.number if rival else None)
        if rival is not None and tested not in opened.judged:
            opened.judged.add(tested)
            if pruning.worse_over_seeds(rewards, rival.rewards, search.prune.p):
                return f"worse than trial {rival.number} with {len(rewards)} seeds"
        for state in own:
            curve = self._curves.get(state.run.arm, {}).get(state.run.seed, {})
            others = self._rival_curves(opened, state.run.seed)
            key = ("curve", state.run.seed, len(curve), len(others))
            if state.state != "running" or len(curve) < 2 or key in opened.judged:
                continue
            opened.judged.add(key)
            if pruning.behind_on_the_curve(
                curve, others, search.prune.percentile, search.prune.warmup, search.prune.startup
            ):
                return f"behind the others at iteration {max(curve)} with seed {state.run.seed}"
        return ""

    def _best_rival(self, opened: _Open) -> Trial | None:
        """The best trial so far of those that take no more evaluations."""
        rivals = [
            trial
            for trial in self._seen.values()
            if trial.state == "complete"
            and self._evaluations[trial.arm] <= opened.evaluations
            and self._keeps_budget(trial)
        ]
        return max(rivals, key=lambda trial: _mean(trial.rewards.values()), default=None)

    def _rival_curves(self, opened: _Open, seed: int) -> list[dict[int, float]]:
        arm = opened.runs[0].arm
        return [
            curves[seed]
            for name, curves in self._curves.items()
            if name != arm and seed in curves and self._evaluations[name] <= opened.evaluations
        ]

    def _keeps_budget(self, trial: Trial) -> bool:
        budget = self.search.budget
        if budget is None or budget.seconds is None:
            return True
        return trial.seconds is not None and trial.seconds <= budget.seconds

    def _open_trial(self, trial: Trial) -> None:
        """Begin a trial, or end it at once where there is nothing to run."""
        try:
            runs = runs_of(self.search, trial)
        except UnidentifiedError:  # a file is missing, which no other settings mend
            raise
        except ConfigError as error:
            wrong = reason(error)
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
        twin = next((t for t in self._seen.values() if t.arm == arm and not t.free), None)
        if twin is not None and twin.state == "pruned":
            why = f"the same settings as trial {twin.number}, which was given up"
            self._over(trial, lambda: self.study.prune(trial, why, free=True))
            return
        if twin is not None and twin.state == "complete":
            self.study.note(
                trial,
                why=f"the same settings as trial {twin.number}",
                free=True,
                rewards={str(seed): reward for seed, reward in twin.rewards.items()},
                seconds=twin.seconds,
                evaluations=twin.evaluations,
            )
            self._over(trial, lambda: self._tell(trial, twin))
            return
        if any(opened.runs[0].arm == arm for opened in self._under_way.values()):
            why = "the same settings as a trial under way"
            self._over(trial, lambda: self.study.prune(trial, why, free=True))
            return
        self._under_way[trial.number] = _Open(trial, runs, count, dropped=trial.why)

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

    def _complete(self, opened: _Open, own: list[RunState]) -> None:
        self._keep_measured(opened, own)

        def tell(trial: Trial) -> None:
            self._tell(trial, self.study.trials()[trial.number])

        self._close(opened, tell)

    def _keep_measured(self, opened: _Open, own: list[RunState]) -> None:
        """Keep with a trial what its runs measured."""
        finished = [s for s in own if s.state == "finished"]
        results = [read_result(s.folder) or {} for s in finished]
        spent = {s.run.seed: run_seconds(s.folder) for s in own}
        counts = [float(result["evaluations_computed"]) for result in results]
        self.study.note(
            opened.trial,
            rewards={str(s.run.seed): s.score for s in finished if s.score is not None},
            spent=sum(spent.values()),
            evaluations=_mean(counts) if counts else float(opened.evaluations),
            seconds=_mean([spent[s.run.seed] for s in finished]) if finished else None,
        )

    def _close(self, opened: _Open, tell: Callable[[Trial], None]) -> None:
        del self._under_way[opened.trial.number]
        self._over(opened.trial, lambda: tell(opened.trial))

    def _over(self, trial: Trial, tell: Callable[[], None]) -> None:
        tell()
        told = self.study.trials()[trial.number]
        self._seen[trial.number] = told
        self.progress.say(in_words(self.search, told))

    def _end(self, opened: _Open, live: list[RunState]) -> None:
        """Ask a trial's living jobs to stop, each once."""
        names = {s.run.folder_name for s in live if ("end", s.run.seed) not in opened.judged}
        opened.judged |= {("end", s.run.seed) for s in live}
        if not names:
            return
        queued = {s.run.folder_name for s in live if s.state == "queued"} & names
        if queued:
            with contextlib.suppress(RunError):  # then it starts, and finds its stop file
                self.scheduler.cancel(queued)
        ask_to_stop([s.folder for s in live if s.run.folder_name in names and s.folder.is_dir()])

    # -- runs

    def _copy_finished_elsewhere(self, states: list[RunState]) -> bool:
        """Take over runs that another sweep has finished; each is looked for once."""
        new = [
            state
            for state in states
            if state.state == "waiting" and state.run.folder_name not in self._looked_for
        ]
        self._looked_for |= {state.run.folder_name for state in new}
        if new:
            Sharing(self.sweep, self.runs_dir).copy_finished(new, self.progress.say)
        return bool(new)

    def _lay_out(self, states: list[RunState]) -> None:
        """Which runs there are now: those of the trials under way, as far as their seeds go."""
        runs: list[tuple[int, int, Run]] = []
        finished = {s.run.folder_name for s in states if s.state == "finished"}
        for place, opened in self._under_way.items():
            done = sum(run.folder_name in finished for run in opened.runs)
            for index, run in enumerate(opened.runs):
                there = (self.runs_dir / self.search.name / run.folder_name).is_dir()
                if there or (not opened.dropped and index < max(_TOGETHER, done + 1)):
                    runs.append((index, place, run))
        # Of trials that are over, the jobs that the launcher has not seen end.
        known = {run.folder_name for _, _, run in runs}
        ending = [
            s.run
            for s in states
            if s.run.folder_name in self.active and s.run.folder_name not in known
        ]
        # First seeds first: they may spare the others.
        self.sweep = make_sweep(
            self.search,
            tuple(
                Arm(opened.runs[0].arm, opened.runs[0].arm, dict(opened.trial.asked or {}))
                for opened in self._under_way.values()
            ),
            (*(run for _, _, run in sorted(runs, key=lambda one: one[:2])), *ending),
        )

    def _remember(self, trial: Trial) -> None:
        """The curves of a trial that is over, for those that are held against it."""
        if trial.asked is None:
            return
        with contextlib.suppress(ConfigError):
            runs = runs_of(self.search, trial)
            self._evaluations[trial.arm] = evaluations(runs[0].config)
            for run in runs:
                self._read_curve(run)

    def _read_curves(self, own: list[RunState]) -> None:
        for state in own:
            if state.run.folder_name in self._whole or state.state not in ("running", "finished"):
                continue
            self._read_curve(state.run)
            if state.state == "finished":
                self._whole.add(state.run.folder_name)

    def _read_curve(self, run: Run) -> None:
        file = self.runs_dir / self.search.name / run.folder_name / "eval.jsonl"
        if not file.exists():
            return
        name = f"reward_{self.search.measure}_mean"
        curve = {int(one["iteration"]): float(one[name]) for one in read_lines(file) if name in one}
        if curve:
            self._curves.setdefault(run.arm, {})[run.seed] = curve


def run_seconds(folder: Path) -> float:
    """Seconds of a run's training so far: of one core where it has them, else by the clock.

    What is measured beside the training (health) is not in them.
    """
    total = 0.0
    file = folder / "metrics.jsonl"
    lines: list[dict[str, Any]] = read_lines(file) if file.exists() else []
    core = bool(lines) and all("seconds_cpu" in line for line in lines) and on_one_core(folder)
    for line in lines:
        if core:
            total += float(line["seconds_cpu"])
        else:
            total += float(line["seconds_total"]) - float(line.get("seconds_health", 0.0))
    return total


def on_one_core(folder: Path) -> bool:
    """Whether a run was computed by one thread of a processor."""
    import json

    try:
        env = json.loads((folder / "env.json").read_text())
        return bool(env["device"] == "cpu" and env["threads"] == 1)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
