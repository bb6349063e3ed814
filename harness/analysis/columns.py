"""The columns of the frames. Each is named here once; `results.Results` says what they mean.

The names are those of the files that the trainer writes (result.json, metrics.jsonl, eval.jsonl).
"""

ARM, SEED, ITERATION = "arm", "seed", "iteration"
RUN = [ARM, SEED]
"""These two name a run of a sweep."""

STATE, HASH, ITERATIONS = "state", "hash", "iterations"
ACCEPTED_CODE = "accepted_code"
SHARED, SHARED_SECONDS, TRAINED_BY = "shared", "shared_seconds", "trained_by"

SECONDS, SECONDS_CPU = "seconds_total", "seconds_cpu"
EVALUATIONS, BACKWARD = "evaluations_computed", "backward_computed"
NFE_ROLLOUT, NFE_TRAIN = "nfe_rollout", "nfe_train"
TOTALS = (SECONDS, EVALUATIONS, BACKWARD, NFE_ROLLOUT, NFE_TRAIN)
"""Of an iteration in metrics.jsonl, of a whole run in result.json."""

WINDOW_START, WINDOW_SIZE = "window_start", "window_size"
GRADIENT_NORM = "grad_norm"
IMAGE_KL, STEP_KL = "drift_image_kl", "drift_step_kl"

METHOD_SECONDS = "seconds_method"
"""Computed: the seconds that count (`harness.analysis.seconds.method_seconds`)."""


def reward(name: str) -> str:
    """The mean of a reward in an iteration or an evaluation."""
    return f"reward_{name}_mean"


def is_reward(column: str) -> bool:
    return column.startswith("reward_") and column.endswith("_mean")


def before(name: str) -> str:
    """A run's reward on held-out prompts before training."""
    return f"before_{name}"


def after(name: str) -> str:
    """The same after training."""
    return f"after_{name}"


def seconds(phase: str) -> str:
    """The seconds that a phase of an iteration took."""
    return f"seconds_{phase}"
