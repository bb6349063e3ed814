"""One typed, validated description of one run, and the hash that identifies its result.

Reading it from YAML files, with bases and overrides, is `configfile`'s work. Nothing here imports
torch, so that the harness can plan thousands of runs in a moment.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mixgrpo.models import model_weights
from mixgrpo.rewards import reward_weights
from mixgrpo.window import Strategy, Window

SCHEMA_VERSION = 1
"""Raised when a default or a meaning changes so that old results are no longer comparable."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""A name that may become part of a path: letters, digits, `_`, `.`, `-`."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are finite and fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ModelConfig(Section):
    name: Name = "scenes"
    """Which policy: a name from the entry-point group `mixgrpo.models`."""
    checkpoint: str | None = None
    """Weights to start from; none means the ones the model ships with."""


class SamplerConfig(Section):
    steps: int = Field(25, ge=2, le=1000)
    """T, the number of steps of a training trajectory."""
    shift: float = Field(3.0, gt=0)
    """Time shift s of the sigma schedule (3 for FLUX)."""
    kernel: Literal["flow", "dance", "cps"] = "flow"
    """Noise of the SDE steps: Flow-GRPO's, DanceGRPO's, or coefficients-preserving."""
    eta: float = Field(0.7, gt=0)
    """Size of the noise of the SDE steps, in the kernel's own unit."""
    tail_ratio: float = Field(1.0, gt=0, le=1)
    """The steps after the window run in this fraction of their number (MixGRPO-Flash)."""
    order: Literal[1, 2, 3] = 1
    """Order of DPM-Solver++ after the window; order 1 is Euler."""
    variant: Literal["midpoint", "heun"] = "midpoint"
    """Which second-order DPM-Solver++."""
    history: Literal["keep", "restart"] = "keep"
    """Whether the solver after the window uses x0 predictions from before and inside it."""


class WindowConfig(Section):
    size: int = Field(4, ge=1)
    """w, the number of SDE steps, which are the trained ones."""
    interval: int = Field(25, ge=1)
    """tau, the iterations between two shifts of the window."""
    stride: int = Field(1, ge=1)
    """s, the steps by which the window moves at a shift."""
    strategy: Strategy = "constant"
    """How the window moves: frozen, random, or progressive (constant, linear-decay, exp-decay)."""
    at_end: Literal["hold", "restart"] = "hold"
    """At the last position: stay (Algorithm 1) or begin again."""
    start: int = Field(0, ge=0)
    """First step of the window at iteration 0."""
    interval_min: int = Field(1, ge=1)
    """linear-decay: the interval at the last position."""
    decay: float = Field(0.1, ge=0)
    """exp-decay: k in ceil(tau exp(-k max(0, l - threshold)))."""
    threshold: int = Field(13, ge=0)
    """exp-decay: the position up to which the interval stays tau."""


class RolloutConfig(Section):
    prompts: int = Field(8, ge=1)
    """Prompts (groups) per iteration."""
    group_size: int = Field(12, ge=2)
    """N, the images of one prompt, which share their initial noise."""


class RewardsConfig(Section):
    train: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        default={"composition": 1.0}, min_length=1
    )
    """Rewards that are trained on, with their weights."""
    held_out: tuple[Name, ...] = ("palette", "strict")
    """Rewards that are only measured, so that reward hacking shows."""
    aggregate: Literal["sum", "mean", "reward"] = "sum"
    """Sum or mean of the normalised rewards, or one normalisation of their weighted sum."""

    @model_validator(mode="after")
    def _disjoint(self) -> "RewardsConfig":
        both = sorted(set(self.train) & set(self.held_out))
        if both:
            raise ValueError(f"{both[0]} is both trained on and held out; name it in one of them")
        if len(set(self.held_out)) < len(self.held_out):
            raise ValueError("held_out names a reward twice; name it once")
        return self


class ObjectiveConfig(Section):
    clip_range: float = Field(1e-4, gt=0)
    """The ratio's distance from 1 beyond which it earns nothing."""
    advantage_clip: float = Field(5.0, gt=0)
    """Advantages are clipped to plus or minus this."""
    updates: int = Field(4, ge=1)
    """Optimizer steps per iteration, each on group_size / updates images of every prompt."""
    kl_weight: float = Field(0.0, ge=0)
    """beta of the KL to the base model; 0 evaluates no reference model."""


class OptimizerConfig(Section):
    lr: float = Field(1e-5, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm where it is longer."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Decay per update of the averaged weights, which are the ones evaluated."""


class EvaluationConfig(Section):
    every: int = Field(15, ge=1)
    """Iterations between two evaluations; before the first and after the last always."""
    prompts: int = Field(0, ge=0)
    """Held-out prompts, chosen by a hash of their text; 0 means all."""
    images_per_prompt: int = Field(2, ge=1)
    steps: int = Field(25, ge=1, le=1000)
    """ODE steps of an evaluated image, whatever sampler an arm trains with."""
    shift: float = Field(3.0, gt=0)
    """Time shift of these steps."""


class OutputConfig(Section):
    """What is kept in the run folder. Changes no result, so it is not part of the hash."""

    checkpoint_every: int = Field(10, ge=1)
    """Iterations between two checkpoints; after the last always."""
    checkpoints_kept: int = Field(2, ge=1)
    samples: int = Field(8, ge=0)
    """Held-out prompts whose first image is kept as a picture at every evaluation."""


class RunConfig(Section):
    """Everything that says what one run computes."""

    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(300, ge=1)
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    window: WindowConfig = WindowConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        w, steps = self.window, self.sampler.steps
        if w.start + w.size > steps:
            raise ValueError(
                f"window.start {w.start} + window.size {w.size} is longer than the trajectory of "
                f"sampler.steps = {steps}; shorten the window or raise sampler.steps"
            )
        if self.rollout.group_size % self.objective.updates:
            raise ValueError(
                f"rollout.group_size {self.rollout.group_size} is not a multiple of "
                f"objective.updates {self.objective.updates}; every update takes the same number "
                "of images of each prompt"
            )
        if self.sampler.kernel == "cps" and self.sampler.eta > 1:
            raise ValueError(
                f"sampler.eta {self.sampler.eta} is above 1, which the cps kernel does not know: "
                "its noise is sigma' sin(eta pi / 2)"
            )
        if w.strategy == "linear-decay" and w.interval_min > w.interval:
            raise ValueError(
                f"window.interval_min {w.interval_min} is larger than window.interval {w.interval}"
            )
        return self

    def make_window(self) -> Window:
        """The window's position as a function of the iteration."""
        return Window(steps=self.sampler.steps, seed=self.seed, **self.window.model_dump())


UNHASHED_SECTIONS = {"output"}


def differences(config: RunConfig) -> dict[str, Any]:
    """The settings that change the result and differ from the defaults, by dotted key."""
    default = RunConfig().model_dump(mode="json", exclude=UNHASHED_SECTIONS)
    found: dict[str, Any] = {}

    def walk(value: Any, base: Any, key: str) -> None:
        # `rewards.train` is a value, not a section: its keys are names of rewards.
        if isinstance(value, dict) and key != "rewards.train":
            for name, inner in value.items():
                walk(inner, base[name], f"{key}.{name}" if key else name)
        elif value != base:
            found[key] = value

    walk(config.model_dump(mode="json", exclude=UNHASHED_SECTIONS), default, "")
    return found


def config_hash(config: RunConfig) -> str:
    """Eight hex digits that identify the result of a run.

    Taken over the differences from the defaults, the contents of the weights that it starts from
    and that score it, and the schema version: a field that is added later with a default that
    changes nothing orphans no finished run, other weights under the same name do.
    """
    rewards = config.rewards
    identity = differences(config)
    identity.pop("model.checkpoint", None)
    if "rewards.held_out" in identity:
        identity["rewards.held_out"] = sorted(rewards.held_out)
    weights = {
        "model": model_weights(config.model.name, config.model.checkpoint),
        **{name: reward_weights(name) for name in (*rewards.train, *rewards.held_out)},
    }
    known = {name: digest for name, digest in weights.items() if digest}
    text = json.dumps([SCHEMA_VERSION, identity, known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
