"""The trials of a search in an Optuna storage: ask for the next, tell how it ended, read them back.

What a trial was given, how it ended and why is all here; what its runs measured lies in their
folders. One launcher at a time writes. A trial that a kill left half asked is asked on.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from harness.searching import space
from harness.searching.file import Search
from harness.searching.space import Asked
from harness.searching.storage import NoTrialsError, open_storage, reached, where
from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import TPESampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

TrialState = Literal["waiting", "running", "complete", "pruned", "failed"]

_MOST_PER_TRIAL = 10
"""Of so many settings for each one that is tried, the others may come to nothing."""


@dataclass(frozen=True)
class Trial:
    """One trial as the storage has it."""

    number: int
    state: TrialState
    asked: Asked | None
    """None while it waits, or where a kill left it half asked."""
    why: str = ""
    """Why it was given up or failed; of a running one: why it is being given up (`drop`)."""
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
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
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
                    "code of your own, and "
                    "cannot be compared; give the search another name, or take the change back"
                )
            if create and known is None:
                self.study.set_user_attr("identity", search.identity)

    def _load(self, storage: "BaseStorage", create: bool) -> "optuna.Study":
        import optuna

        name = self.search.report_name
        up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        if create:
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=[up if one == "reward" else down for one in self.search.objectives],
                load_if_exists=True,
            )
            measure = self.search.measure  # as a reader of Optuna's own pages knows it
            names = [measure if one == "reward" else one for one in self.search.objectives]
            if study.metric_names != names:
                study.set_metric_names(names)
            return study
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            raise NoTrialsError(f"{name}: has no trials yet") from None

    @_in_storage
    def trials(self) -> list[Trial]:
        """All of them, by number."""
        return [_read(self.search, found) for found in self._frozen()]

    def _frozen(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    @_in_storage
    def enqueue(self, again: bool = False) -> None:
        """Put the file's own settings first, once; with `again`, failed ones once more."""
        for asked in self.search.enqueue:
            self.study.enqueue_trial(
                dict(asked), user_attrs={"enqueued": True}, skip_if_exists=True
            )
        trials = self.trials() if again else []
        # A failed one that was put back may have failed once more: the last one counts.
        last = {trial.arm: trial for trial in trials if trial.asked is not None}
        waiting = [
            trial.user_attrs.get("again")
            for trial in self._frozen()
            if trial.state.name == "WAITING"
        ]
        for trial in last.values():
            if trial.state == "failed" and trial.arm not in waiting:
                attrs = {"again": trial.arm, "enqueued": trial.enqueued}
                self.study.enqueue_trial(dict(trial.asked or {}), user_attrs=attrs)

    @_in_storage
    def resume(self) -> None:
        """Ask on for the trials that were running when the last launcher ended."""
        for found in self._frozen():
            if found.state.name == "RUNNING":
                self._suggest(found.number)

    @_in_storage
    def ask(self) -> Trial:
        """The next trial: one that waits, or new settings."""
        number = len(self._frozen())
        self.study.sampler = _sampler(self.search, number)
        trial = self.study.ask()
        self._open[trial.number] = trial
        space.suggest(self.search.space, trial)
        return self.trials()[trial.number]

    def _suggest(self, number: int) -> None:
        import optuna

        self.study.sampler = _sampler(self.search, number)
        trial = optuna.trial.Trial(self.study, self._frozen()[number]._trial_id)
        self._open[number] = trial
        space.suggest(self.search.space, trial)

    @_in_storage
    def note(self, trial: Trial, **what: Any) -> None:
        """Keep something about a running trial."""
        for key, value in what.items():
            self._open[trial.number].set_user_attr(key, value)

    def drop(self, trial: Trial, why: str) -> None:
        """Keep that a running trial is being given up, while its jobs end."""
        self.note(trial, dropped=why)

    @_in_storage
    def constrain(self, trial: Trial, name: str, excess: float) -> None:
        """How much a trial is over a bound; not above 0 where it keeps it."""
        if name not in self._frozen()[trial.number].constraints:
            self._open[trial.number].set_constraint(name, excess)

    @_in_storage
    def complete(self, trial: Trial, values: list[float]) -> None:
        self._report(trial)
        self.study.tell(trial.number, values)

    @_in_storage
    def prune(self, trial: Trial, why: str, free: bool = False) -> None:
        """Give a trial up. `free`: nothing has run for it."""
        import optuna

        self.note(trial, why=why, free=free)
        self._report(trial)
        self.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)

    @_in_storage
    def fail(self, trial: Trial, why: str) -> None:
        import optuna

        self.note(trial, why=why)
        self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _report(self, trial: Trial) -> None:
        """Rewards by seed: TPE ranks pruned trials by them. Optuna has them for one objective."""
        found = self._frozen()[trial.number]
        if len(self.search.objectives) == 1:
            for index, seed in enumerate(self.search.seeds):
                reward = _by_seed(found.user_attrs.get("rewards")).get(seed)
                if reward is not None and index not in found.intermediate_values:
                    self._open[trial.number].report(reward, index)

    @_in_storage
    def wants_more(self) -> bool:
        """Whether there are settings left to try."""
        trials = self.trials()
        if any(trial.state == "waiting" for trial in trials):
            return True
        tried = {trial.arm for trial in trials if not trial.free}
        most = _MOST_PER_TRIAL * self.search.trials
        return len(tried) < self.search.trials and len(trials) < most


def _read(search: Search, found: "FrozenTrial") -> Trial:
    states: dict[str, TrialState] = {
        "WAITING": "waiting",
        "RUNNING": "running",
        "COMPLETE": "complete",
        "PRUNED": "pruned",
        "FAIL": "failed",
    }
    attrs = found.user_attrs
    return Trial(
        number=found.number,
        state=states[found.state.name],
        asked=space.read(search.space, found.params),
        # A kill may have left `why` behind before the trial was told: of a running one it is void.
        why=str(attrs.get("dropped" if found.state.name == "RUNNING" else "why", "")),
        enqueued=bool(attrs.get("enqueued")),
        free=bool(attrs.get("free")),
        rewards=_by_seed(attrs.get("rewards")),
        seconds=attrs.get("seconds"),
        evaluations=attrs.get("evaluations"),
        spent=float(attrs.get("spent", 0.0)),
    )


def _by_seed(rewards: Any) -> dict[int, float]:
    return {int(seed): float(reward) for seed, reward in (rewards or {}).items()}


def _sampler(search: Search, number: int) -> "TPESampler":
    """Tree-structured Parzen estimator whose draws depend on the trial's number and the trials
    before it, so that a search that was stopped does not draw its first settings again."""
    from optuna.samplers import TPESampler

    text = f"{search.sampler_seed}:{number}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    # With `group`, settings that are asked for only sometimes are modelled where they are.
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
