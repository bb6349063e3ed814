"""When a trial is given up: by Optuna's pruners, among trials that it may be held against.

A pruner inside the study would know one objective and all trials. Here a trial is held only against
trials that take no more network evaluations than it does: a cheaper setting may be worse and still
be worth having. Giving up is no verdict; verdicts come from fresh seeds (`confirm`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.searching.storage import quiet

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

Curve = Mapping[int, float]
"""Reward by step: by seed, or by iteration."""


def worse_over_seeds(rewards: Curve, rival: Curve, p: float) -> bool:
    """Whether a setting is given up by what its first seeds gave, paired with a rival's.

    Wilcoxon's signed-rank test (optuna's WilcoxonPruner), one-sided, at least two pairs.
    """
    with quiet():
        from optuna.pruners import WilcoxonPruner

        return _pruned(WilcoxonPruner(p_threshold=p, n_startup_steps=2), rewards, [rival])


def behind_on_the_curve(
    curve: Curve, others: Sequence[Curve], percentile: float, warmup: int, startup: int
) -> bool:
    """Whether a run is given up at its last evaluation, by others with its seed.

    The best of its evaluations is compared with the percentile of the others' at the same
    iteration (optuna's PercentilePruner), from iteration `warmup` on and with `startup` others.
    """
    from optuna.pruners import PercentilePruner

    last = max(curve, default=0)
    reached = [other for other in others if last in other]
    pruner = PercentilePruner(
        percentile, n_startup_trials=startup, n_warmup_steps=warmup, n_min_trials=startup
    )
    return len(reached) >= startup and _pruned(pruner, curve, reached)


def _pruned(pruner: "BasePruner", curve: Curve, others: Sequence[Curve]) -> bool:
    """What a pruner says of a trial among others, in a study of one objective made for it."""
    with quiet():
        from optuna.study import create_study
        from optuna.trial import TrialState, create_trial

        study = create_study(direction="maximize")
        for other in others:
            mean = sum(other.values()) / len(other)
            study.add_trial(create_trial(value=mean, intermediate_values=dict(other)))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(curve))
        return pruner.prune(study, trial)
