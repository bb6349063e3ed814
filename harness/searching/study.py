"""The trials of a search in an Optuna storage: ask for the next, tell how it ended, read them back.

What a trial was given, how it ended and why is all here; what its runs measured lies in their
folders. One launcher at a time writes. A trial that a kill left half asked is asked on.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from harness.searching import space
from harness.searching.file import Search
from harness.searching.schema import Budget
from harness.searching.space import Asked
from harness.searching.storage import NoTrialsError, open_storage, reached, where
from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

TrialState = Literal["complete", "pruned", "failed", "running", "waiting"]
STATES: dict[TrialState, str] = {
    "complete": "complete",
    "pruned": "given up",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
}
"""In words."""
_OPTUNA_NAMES = {state: state.upper().replace("FAILED", "FAIL") for state in STATES}

_MOST_PER_TRIAL = 10
"""Settings asked for at most per trial that is run: the others may be invalid or repeated."""


@dataclass(frozen=True)
class Trial:
    """One trial as the storage has it."""

    number: int
    state: TrialState
    asked: Asked | None
    """None while it waits, or where a kill left it half asked."""
    why: str = ""
    """Why it was given up or failed; of a running one: why it is being given up."""
    enqueued: bool = False
    free: bool = False
    """Whether nothing ran for it: it cannot be run, is over the budget, or was tried before."""
    rewards: Mapping[int, float] = field(default_factory=dict)
    """By seed, of the finished runs."""
    seconds: float | None = None
    """Mean over the finished runs."""
    evaluations: float | None = None
    """Of one run."""
    spent: float = 0.0
    """Seconds of all its runs, unfinished ones included."""

    @property
    def arm(self) -> str:
        return space.arm_name(self.asked) if self.asked is not None else ""

    @property
    def reward(self) -> float:
        """Mean over the finished runs; not a number where there is none."""
        return sum(self.rewards.values()) / len(self.rewards) if self.rewards else math.nan

    def keeps(self, budget: Budget | None) -> bool:
        """Whether its runs took no more than a budget."""
        if budget is None:
            return True
        if budget.evaluations is not None:
            return self.evaluations is not None and self.evaluations <= budget.evaluations
        return self.seconds is not None and self.seconds <= (budget.seconds or 0.0)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_storage(method: _Method) -> _Method:
    """A method of Study that raises RunError where the storage fails."""

    @functools.wraps(method)
    def wrapped(study: "Study", *args: Any, **kwargs: Any) -> Any:
        with reached(study._folder, study._url):
            return method(study, *args, **kwargs)

    return cast(_Method, wrapped)


class Study:
    """The trials of one search."""

    def __init__(self, search: Search, folder: Path, url: str | None, create: bool = True) -> None:
        """`url`: an Optuna storage; the journal in `folder` where none is given. With `create` the
        caller holds the search's lease.

        ConfigError where the storage holds another search of this name; RunError where it cannot be
        reached, NoTrialsError where it has none and `create` is false. All methods raise RunError
        where the storage fails.
        """
        self.search, self._folder, self._url = search, folder, url
        self._open: dict[int, optuna.trial.Trial] = {}
        storage = open_storage(folder, url, create)
        with reached(folder, url):
            self.study: optuna.Study = self._load(storage, create)
            known = self.study.user_attrs.get("identity")
            if known not in (None, search.identity):
                raise ConfigError(
                    f"{search.file}: the trials of {search.report_name} in {where(folder, url)} "
                    "were made with another space, base, objective, measure, other seeds or other "
                    "code of your own, and cannot be compared; give the search another name, or "
                    "take the change back"
                )
            if create and known is None:
                self.study.set_user_attr("identity", search.identity)

    def _load(self, storage: "BaseStorage", create: bool) -> "optuna.Study":
        import optuna

        name, objectives = self.search.report_name, self.search.objectives
        if not create:
            try:
                return optuna.load_study(study_name=name, storage=storage)
            except KeyError:
                raise NoTrialsError(f"{name}: has no trials yet") from None
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["maximize" if one == "reward" else "minimize" for one in objectives],
            load_if_exists=True,
        )
        # As a reader of Optuna's dashboard knows them.
        names = [self.search.measure if one == "reward" else one for one in objectives]
        if study.metric_names != names:
            study.set_metric_names(names)
        return study

    @_in_storage
    def trials(self) -> list[Trial]:
        """All of them, by number."""
        return [_read(self.search, frozen) for frozen in self._frozen()]

    def _frozen(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    @_in_storage
    def enqueue(self, again: bool = False) -> None:
        """Put the settings of `enqueue` first, once; with `again`, failed ones once more."""
        for asked in self.search.enqueue:
            self.study.enqueue_trial(
                dict(asked), user_attrs={"enqueued": True}, skip_if_exists=True
            )
        if not again:
            return
        # A failed one that was put back may have failed once more: the last one counts.
        last = {trial.arm: trial for trial in self.trials() if trial.asked is not None}
        waiting = {
            frozen.user_attrs.get("again")
            for frozen in self._frozen()
            if frozen.state.name == "WAITING"
        }
        for trial in last.values():
            if trial.state == "failed" and trial.arm not in waiting:
                attrs = {"again": trial.arm, "enqueued": trial.enqueued}
                self.study.enqueue_trial(dict(trial.asked or {}), user_attrs=attrs)

    @_in_storage
    def resume(self) -> None:
        """Ask on for the trials that were running when the last launcher ended."""
        from optuna.trial import Trial

        for frozen in self._frozen():
            if frozen.state.name == "RUNNING":
                self._set_sampler(frozen.number)
                self._suggest(Trial(self.study, frozen._trial_id))

    @_in_storage
    def ask(self) -> Trial:
        """The next trial: one that waits, or new settings."""
        self._set_sampler(len(self._frozen()))
        trial = self.study.ask()
        self._suggest(trial)
        return self.trials()[trial.number]

    def _suggest(self, trial: "optuna.trial.Trial") -> None:
        self._open[trial.number] = trial
        space.suggest(self.search.space, trial)

    def _set_sampler(self, number: int) -> None:
        """Tree-structured Parzen estimator whose draws depend on the trial's number and the trials
        before it, so that a search that was stopped does not draw its first settings again."""
        from optuna.samplers import TPESampler

        text = f"{self.search.sampler_seed}:{number}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        # With `group`, settings that are asked for only sometimes are modelled where they are.
        self.study.sampler = TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )

    @_in_storage
    def note(self, trial: Trial, **what: Any) -> None:
        """Keep something about a running trial. `dropped`: why it is being given up."""
        for key, value in what.items():
            self._open[trial.number].set_user_attr(key, value)

    @_in_storage
    def constrain(self, trial: Trial, name: str, excess: float) -> None:
        """How much a trial is over a bound; not above 0 where it keeps it."""
        if name not in self._frozen()[trial.number].constraints:
            self._open[trial.number].set_constraint(name, excess)

    @_in_storage
    def tell(
        self, trial: Trial, state: TrialState, values: list[float] | None = None, **notes: Any
    ) -> None:
        """End a running trial: complete with its `values`, pruned or failed. `notes`: `why`, and
        `free` where nothing has run for it."""
        from optuna.trial import TrialState

        self.note(trial, **notes)
        frozen = self._frozen()[trial.number]
        # TPE ranks pruned trials by their rewards. Optuna keeps them for a single objective only.
        if len(self.search.objectives) == 1 and state != "failed":
            rewards = _by_seed(frozen.user_attrs.get("rewards"))
            for step, seed in enumerate(self.search.seeds):
                if seed in rewards and step not in frozen.intermediate_values:
                    self._open[trial.number].report(rewards[seed], step)
        self.study.tell(trial.number, values, state=TrialState[_OPTUNA_NAMES[state]])

    @_in_storage
    def wants_more(self) -> bool:
        """Whether there are settings left to try."""
        trials = self.trials()
        if any(trial.state == "waiting" for trial in trials):
            return True
        tried = {trial.arm for trial in trials if not trial.free}
        most = _MOST_PER_TRIAL * self.search.trials
        return len(tried) < self.search.trials and len(trials) < most


def _read(search: Search, frozen: "FrozenTrial") -> Trial:
    attrs = frozen.user_attrs
    state = next(one for one, name in _OPTUNA_NAMES.items() if name == frozen.state.name)
    # A kill may have left `why` behind before the trial was told: of a running one it is void.
    why = str(attrs.get("dropped" if state == "running" else "why", ""))
    names = ("enqueued", "free", "seconds", "evaluations", "spent")
    known = {name: attrs[name] for name in names if name in attrs}
    asked = space.read(search.space, frozen.params)
    return Trial(frozen.number, state, asked, why, rewards=_by_seed(attrs.get("rewards")), **known)


def _by_seed(rewards: Any) -> dict[int, float]:
    return {int(seed): float(reward) for seed, reward in (rewards or {}).items()}
