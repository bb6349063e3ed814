"""One typed, validated description of one run.

Reading it from YAML files, with bases and overrides, is `configfile`'s work, naming its result
`identity`'s. Nothing here imports torch, so that the harness can plan thousands of runs in a
moment.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from mixgrpo.catalogue import scenes
from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.errors import shown
from mixgrpo.maths.window import AtEnd, Strategy, Window
from mixgrpo.text.escape import shortened, without_passwords

SCHEMA_VERSION = 1
"""Raised when a default or a meaning changes so that old results are no longer comparable."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""A name that may become part of a path: letters, digits, `_`, `.`, `-`."""


class Conflict(ValueError):
    """Settings that do not fit together, by their dotted keys."""

    def __init__(self, message: str, *keys: str, others: "Iterable[Conflict]" = ()) -> None:
        super().__init__(message)
        self.keys = keys
        self.conflicts = (self, *others)
        """All that there are at once."""


def together(conflicts: "list[Conflict]") -> Conflict:
    """All of these, for pydantic takes one error of a validator."""
    first, *others = conflicts
    return Conflict(str(first), *first.keys, others=others)


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are finite and fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ModelConfig(Section):
    name: Name = "scenes"
    """Which policy: a name from the entry-point group `mixgrpo.models`."""
    checkpoint: str | None = None
    """Weights to start from: a file or folder, or a name on the Hugging Face hub; none means the
    ones the model ships with, or its authors' on the hub."""
    revision: str | None = None
    """Branch, tag or commit of `checkpoint` on the hub."""
    height: int | None = Field(None, ge=16, le=32768, multiple_of=16)
    """Of an image, in pixels; none: the model's own."""
    width: int | None = Field(None, ge=16, le=32768, multiple_of=16)
    """Of an image, in pixels; none: the model's own."""
    guidance: float | None = Field(None, ge=0)
    """Guidance scale that a distilled model reads as an input (FLUX.1-dev); none: 3.5."""
    cfg: float | None = Field(None, ge=1)
    """Scale of classifier-free guidance, in training and after it; none or 1: without it."""
    text_tokens: int | None = Field(None, ge=1, le=100_000)
    """Tokens of a prompt that the longest text encoder reads; none: the model's own number."""
    train: Literal["full", "lora"] = "full"
    """All weights of the network, or low-rank adapters beside frozen ones (LoRA)."""
    lora_rank: int = Field(32, ge=1, le=100_000)
    """Rank of the adapters."""
    lora_alpha: float = Field(64.0, gt=0)
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Layers that get an adapter, by the end of their names; the default is the attention."""


class PromptsConfig(Section):
    train: str | None = None
    """File of prompts to train on: text, JSON, JSON lines, CSV or Parquet; none: the model's."""
    held_out: str | None = None
    """File of prompts to evaluate on; none: the model's."""
    embeddings: str | None = None
    """Folder where encoded prompts are kept; none: $MIXGRPO_EMBEDDINGS, or else
    ~/.cache/mixgrpo/embeddings. Changes no result, so it is not part of the hash."""


class SamplerConfig(Section):
    steps: int = Field(25, ge=2, le=1000)
    """T, the number of steps of a training trajectory."""
    shift: float = Field(3.0, gt=0)
    """Time shift s of the sigma schedule (3 for FLUX)."""
    kernel: Literal["flow", "dance", "cps"] = "flow"
    """Noise of the SDE steps: Flow-GRPO's, DanceGRPO's, or coefficients-preserving."""
    eta: float = Field(0.7, gt=0)
    """Size of the noise of the SDE steps, in the kernel's own unit."""
    density: Literal["normalised", "released"] = "normalised"
    """Log-prob of a cps step: the Gaussian's, or the released code's -(x' - mean)^2."""
    sde: Literal["window", "all"] = "window"
    """Which steps are random: those of the window (MixGRPO), or all (Flow-GRPO, DanceGRPO)."""
    decode: Literal["sample", "x0"] = "sample"
    """What becomes the image: the last sample, or the last prediction of x0 (DanceGRPO)."""
    head_ratio: float = Field(1.0, gt=0, le=1)
    """The steps before the window run in this fraction of their number, by DPM-Solver++."""
    tail_ratio: float = Field(1.0, gt=0, le=1)
    """The steps after the window run in this fraction of their number (MixGRPO-Flash)."""
    order: Literal[1, 2, 3] = 1
    """Order of DPM-Solver++ after the window (before it: with head_ratio); order 1 is Euler."""
    variant: Literal["midpoint", "heun"] = "midpoint"
    """Which second-order DPM-Solver++."""
    history: Literal["keep", "restart"] = "keep"
    """Whether the solver after the window uses x0 predictions from before and inside it."""


class WindowConfig(Section):
    size: int = Field(4, ge=1)
    """w, the number of consecutive steps that are trained."""
    fraction: float = Field(1.0, gt=0, le=1)
    """The fraction of the window's steps trained with an image, drawn for each image anew."""
    count: int | None = Field(None, ge=1)
    """The same as a number of steps, instead of a fraction."""
    interval: int = Field(25, ge=1)
    """tau, the iterations between two shifts of the window."""
    stride: int = Field(1, ge=1)
    """s, the steps by which the window moves at a shift."""
    strategy: Strategy = "constant"
    """How the window moves: frozen, random, or progressive (constant, linear-decay, exp-decay)."""
    at_end: AtEnd = "hold"
    """At the last position: stay (Algorithm 1), begin again, or as the released code does."""
    start: int = Field(0, ge=0)
    """First step of the window at iteration 0; random: the lowest first step."""
    stop: int | None = Field(None, ge=1)
    """The window ends before this step; none means the end of the trajectory."""
    interval_min: int = Field(1, ge=1)
    """linear-decay: the interval at the last position."""
    decay: float = Field(0.1, ge=0)
    """exp-decay: k in ceil(tau exp(-k max(0, l - threshold)))."""
    threshold: int = Field(13, ge=0)
    """exp-decay: the position up to which the interval stays tau."""


class RolloutConfig(Section):
    prompts: int = Field(8, ge=1, le=100_000)
    """Prompts (groups) per iteration."""
    group_size: int = Field(12, ge=2, le=100_000)
    """N, the images of one prompt."""
    noise: Literal["shared", "own"] = "shared"
    """Initial noise: the same for all images of a group, or one for each."""
    block: int | None = Field(None, ge=1)
    """Prompts sampled together while the block before is decoded and scored; none: all."""


def _class_path(text: str) -> str:
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d][\w.]*", text) and ".py:" not in text:
        return text
    module, colon, name = text.partition(":")
    if not colon and "/" not in text and not text.endswith(".py"):
        module, _, name = text.rpartition(".")
    module = re.sub(r"[\\/]+", ".", module.removesuffix(".py")).strip(".")
    name = name if name.isidentifier() else "Class"
    raise ValueError(
        f"{shown(text)} is not module:Class; write {shortened(module or 'module')}:{name}"
        + (", without .py" if ".py" in text else "")
    )


ClassPath = Annotated[str, AfterValidator(_class_path)]
"""`package.module:Class`, as Python imports it."""

RewardOption = bool | int | float | str | tuple[str, ...] | None


class RewardsConfig(Section):
    train: dict[Name, Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(
        default={"composition": 1.0}, min_length=1
    )
    """Rewards that are trained on, with their weights."""
    held_out: tuple[Name, ...] = ("palette", "strict")
    """Rewards that are only measured, so that reward hacking shows."""
    aggregate: Literal["sum", "mean", "reward"] = "sum"
    """Sum or mean of the normalised rewards, or one normalisation of their weighted sum."""
    classes: dict[Name, ClassPath] = Field(default_factory=dict)
    """Rewards of one's own, by name: `package.module:Class`."""
    options: dict[Name, dict[str, RewardOption]] = Field(default_factory=dict)
    """Arguments of a reward, by its name: {hps: {checkpoint: weights/hps.pt}}."""
    timeout: float | None = Field(600.0, gt=0, le=1e6)
    """Seconds after which a reward that has not answered ends the run; none: no limit. Changes no
    result, so it is not part of the hash."""

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
    """Optimizer steps per iteration, each on an equal share of the images of every prompt."""
    best_of: int | None = Field(None, ge=1)
    """Train only with the k best and the k worst images of every group."""
    skip_constant_groups: bool = False
    """Leave groups without any advantage out of the update and of its mean."""
    ratio: Literal["plain", "guard"] = "plain"
    """The policy ratio, or GRPO-Guard's, normalised for every image and step."""
    step_weight: Literal["none", "noise", "inverse-dt"] = "none"
    """Weight of a step's loss: by its noise (TempFlow-GRPO) or 1 / -dt (GRPO-Guard)."""
    step_gradient: Literal["plain", "unit"] = "plain"
    """What is averaged over an image's trained steps: their gradients, or these scaled to norm 1
    each, so that no step outweighs the others."""
    kl_weight: float = Field(0.0, ge=0)
    """beta of the KL to the base model; 0 evaluates no reference model."""
    kl: Literal["exact", "flow-grpo"] = "exact"
    """What beta multiplies: the KL of the steps' Gaussians, or the form of Flow-GRPO's code for
    images, which is -dt times that for the kernels flow and dance."""


class OptimizerConfig(Section):
    name: str = Field("adamw", min_length=1)
    """adamw, or an optimizer's import path such as torch.optim.Adafactor."""
    options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Further arguments of the optimizer, by name."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate."""
    warmup: int = Field(0, ge=0)
    """Iterations over which the rate rises linearly to lr."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on after the warm-up: stays, or falls to 0 at the last iteration."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Of AdamW and its kin."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled, as AdamW has it."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm where it is longer."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Decay per update of the averaged weights, which are the ones evaluated."""


class EvaluationConfig(Section):
    every: int = Field(15, ge=1)
    """Iterations between two evaluations; before the first and after the last always."""
    prompts: int = Field(0, ge=0)
    """Held-out prompts, chosen by a hash of their text; 0 means all."""
    images_per_prompt: int = Field(2, ge=1, le=10_000)
    """From so many initial noises, the same in every evaluation of a seed."""
    final_images_per_prompt: int | None = Field(None, ge=1, le=10_000)
    """The same of the evaluation after the last iteration, which decides: more images make it less
    noisy, and the first of them are those of the other evaluations; none: as in these."""
    steps: int = Field(25, ge=1, le=1000)
    """ODE steps of an evaluated image, whatever sampler an arm trains with."""
    shift: Annotated[float, Field(gt=0)] | Literal["dynamic"] = 3.0
    """Time shift of these steps; dynamic: as the model's own inference has it."""


class ComputeConfig(Section):
    """How it is computed. Changes results by rounding only."""

    micro_batch: int | None = Field(None, ge=1)
    """The most latents in one forward (with model.cfg twice as many in the network), and images in
    one decoding; none: no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's arithmetic. Trained weights, optimizer and samples stay in fp32."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Run the network through torch.compile."""
    attention: str | None = Field(None, min_length=1)
    """Attention backend of diffusers, such as native or flash; none: its default."""
    vae_tiling: bool = False
    """Decode images one at a time, and those above the VAE's own size, 1024 pixels for real ones,
    in overlapping tiles."""
    offload: bool = False
    """Keep the VAE and the networks of rewards in the memory of the CPU while they do not work.
    Changes no result, so it is not part of the hash."""


class HealthConfig(Section):
    """What is measured beside the training. Changes no result, so it is not part of the hash."""

    gradient_conflict: bool = True
    """Cosine between the gradients of the window's first and last step, once per iteration. Takes
    the memory of three more gradients."""
    drift: bool = True
    """Distance between SDE and ODE from the same start, whenever the window moves."""


class OutputConfig(Section):
    """What is kept in the run folder. Changes no result, so it is not part of the hash."""

    checkpoint_every: int = Field(10, ge=1)
    """Iterations between two checkpoints; after the last always."""
    checkpoints_kept: int = Field(2, ge=1)
    """The newest ones."""
    keep: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Iterations whose checkpoints are written and stay, besides the newest ones."""
    samples: int = Field(8, ge=0)
    """Held-out prompts whose first image is kept as a picture at every evaluation."""
    export: bool = True
    """Whether a finished run leaves its averaged weights as diffusers loads them."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Where metrics go besides metrics.jsonl."""
    project: Name = "mixgrpo"
    """The project's name at Weights & Biases."""


class RunConfig(Section):
    """Everything that says what one run computes."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Everything random depends on it."""
    iterations: int = Field(300, ge=1, le=10**9)
    """Length of the run; each samples, scores and updates."""
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampler: SamplerConfig = SamplerConfig()
    window: WindowConfig = WindowConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    health: HealthConfig = HealthConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        _holds_no_secret("", self.model_dump())
        found: list[Conflict] = []
        checks = (
            *(_fits_model, _fits_trajectory, _fits_sampler, _fits_group, _fits_optimizer),
            _fits_evaluation,
        )
        for check in checks:
            try:
                check(self)
            except Conflict as conflict:
                found.append(conflict)
                if check is _fits_trajectory:  # the others go by the window
                    break
        if found:
            raise together(found)
        return self

    def make_window(self) -> Window:
        """The window's position as a function of the iteration."""
        settings = self.window.model_dump(exclude={"fraction", "count"})
        return Window(steps=self.sampler.steps, seed=self.seed, **settings)

    def evaluated_images(self, iteration: int) -> int:
        """Images of each prompt in the evaluation after so many iterations."""
        final = self.evaluation.final_images_per_prompt
        if final is not None and iteration == self.iterations:
            return final
        return self.evaluation.images_per_prompt

    @property
    def trained_per_image(self) -> int:
        """Steps that are trained with one image: the paper's NFE_theta."""
        w = self.window
        return w.count if w.count is not None else max(1, round(w.size * w.fraction))

    @property
    def trained_images(self) -> int:
        """Images of a group that its updates are made of."""
        best_of = self.objective.best_of
        return self.rollout.group_size if best_of is None else 2 * best_of


def _fits_trajectory(config: RunConfig) -> None:
    w, steps = config.window, config.sampler.steps
    stop = steps if w.stop is None else w.stop
    if stop > steps:
        raise Conflict(
            f"window.stop {w.stop} lies behind the trajectory's end, sampler.steps = {steps}",
            "window.stop",
            "sampler.steps",
        )
    if w.at_end == "released":
        stop = min(stop, steps - 2)
    if w.start + w.size > stop:
        bound = f"the trajectory of sampler.steps = {steps}"
        if stop < steps:
            bound = f"the steps before {stop}" + (
                " that window.at_end released leaves it" if w.at_end == "released" else ""
            )
        raise Conflict(
            f"window.start {w.start} + window.size {w.size} is longer than {bound}; shorten the "
            "window or raise sampler.steps",
            "window.start",
            "window.size",
            "sampler.steps",
        )
    if w.count is not None and w.fraction < 1:
        raise Conflict(
            f"window.count {w.count} and window.fraction {w.fraction:g} say the same twice; give "
            "one of them (window.fraction 1.0 leaves it to the count)",
            "window.count",
            "window.fraction",
        )
    if w.count is not None and w.count > w.size:
        raise Conflict(
            f"window.count {w.count} is more than the window has steps, window.size {w.size}",
            "window.count",
            "window.size",
        )
    if w.strategy == "linear-decay" and w.interval_min > w.interval:
        raise Conflict(
            f"window.interval_min {w.interval_min} is larger than window.interval {w.interval}",
            "window.interval_min",
            "window.interval",
        )


def _fits_sampler(config: RunConfig) -> None:
    s = config.sampler
    if s.kernel == "cps" and s.eta > 1:
        raise Conflict(
            f"sampler.eta {s.eta} is above 1, which the cps kernel does not know: "
            "its noise is sigma' sin(eta pi / 2)",
            "sampler.eta",
        )
    if s.variant == "heun" and s.order != 2:
        raise Conflict(
            f"sampler.variant heun is of the second order, sampler.order is {s.order}",
            "sampler.variant",
            "sampler.order",
        )
    if s.history == "restart" and s.order == 1:
        raise Conflict(
            "sampler.history restart forgets nothing where sampler.order is 1",
            "sampler.history",
            "sampler.order",
        )
    last = _last_step(config)
    if s.decode == "x0" and last == s.steps - 1:
        raise Conflict(
            f"sampler.decode x0 never shows the noise of step {last}, so that the window must not "
            f"reach it; set window.stop to {last}",
            "sampler.decode",
            "window.stop",
        )
    if s.density == "released" and s.kernel != "cps":
        raise Conflict(
            f"sampler.density released is a form of the cps kernel's, sampler.kernel is {s.kernel}",
            "sampler.density",
            "sampler.kernel",
        )
    if s.sde == "all" and (s.order > 1 or s.head_ratio < 1 or s.tail_ratio < 1):
        raise Conflict(
            "sampler.sde all leaves no ODE step for sampler.order, sampler.head_ratio and "
            "sampler.tail_ratio to speak of; leave them at 1",
            "sampler.sde",
            "sampler.order",
            "sampler.head_ratio",
            "sampler.tail_ratio",
        )
    if config.objective.step_gradient == "unit" and config.trained_per_image != config.window.size:
        raise Conflict(
            "objective.step_gradient unit needs the same trained steps in every image; leave "
            "window.fraction and window.count at their defaults, or take plain",
            "objective.step_gradient",
            "window.fraction",
            "window.count",
        )
    if config.objective.step_gradient == "unit" and config.objective.step_weight != "none":
        raise Conflict(
            "objective.step_gradient unit scales every step's gradient to norm 1, whatever "
            f"objective.step_weight {config.objective.step_weight} made of it; take step_weight "
            "none, or step_gradient plain",
            "objective.step_gradient",
            "objective.step_weight",
        )
    guard = config.objective.ratio == "guard" or config.objective.step_weight == "noise"
    if guard and s.density == "released":
        raise Conflict(
            "sampler.density released has no std that objective.ratio guard and "
            "objective.step_weight noise could use; take the normalised density",
            "sampler.density",
            "objective.ratio",
            "objective.step_weight",
        )


def _last_step(config: RunConfig) -> int:
    """The last step that any window covers."""
    window = config.make_window()
    return (window.start if window.strategy == "frozen" else window.last) + window.size - 1


_SECRET_KEYS = re.compile(
    r"(?:.*_)?(password|passwd|secret|api_?key|(?:access|auth|hf|hub|bearer)_token)", re.IGNORECASE
)
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bBearer\s+\S")


def _holds_no_secret(key: str, value: object) -> None:
    """A configuration stands in config.yaml, in messages, in reports and at trackers."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _holds_no_secret(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _holds_no_secret(key, inner)
    elif isinstance(value, str) and value:
        if without_passwords(value) != value:
            raise Conflict(
                f"{key}: a URL with a user or a password in it would be kept in config.yaml, in "
                "messages and at trackers; write it without, and name the environment variable "
                "that holds user:password, as login_env of rewards.options.unifiedreward does",
                key,
            )
        if _SECRET_KEYS.fullmatch(key.rpartition(".")[2]) or _SECRET.search(value):
            raise Conflict(
                f"{key}: a password or key would be kept in config.yaml, in messages and at "
                "trackers; name the environment variable that holds it, as api_key_env of "
                "rewards.options.unifiedreward does, and read it in the reward",
                key,
            )


def _fits_model(config: RunConfig) -> None:
    model = config.model
    for name in ("lora_rank", "lora_alpha", "lora_targets"):
        if model.train == "full" and getattr(model, name) != getattr(ModelConfig(), name):
            raise Conflict(
                f"model.{name} is of adapters; set model.train to lora",
                f"model.{name}",
                "model.train",
            )
    takes = DIFFUSION.get(model.name)
    for name in ("revision", "height", "width", "guidance", "cfg", "text_tokens"):
        if getattr(model, name) is not None and name not in (takes or ()):
            raise Conflict(
                f"model.{name} is no setting of model {model.name}; leave it out", f"model.{name}"
            )
    if (model.height is None) != (model.width is None):
        given, other = ("height", "width") if model.width is None else ("width", "height")
        raise Conflict(
            f"model.{given} alone is given; give model.{other} too, or neither",
            f"model.{given}",
            f"model.{other}",
        )
    if takes is None:
        for name in ("attention", "vae_tiling"):
            if getattr(config.compute, name):
                raise Conflict(
                    f"compute.{name} is of models of diffusers ({', '.join(DIFFUSION)}), not of "
                    f"model {model.name}; leave it out",
                    f"compute.{name}",
                    "model.name",
                )
        if config.evaluation.shift == "dynamic":
            raise Conflict(
                f"evaluation.shift dynamic: model {model.name} has no schedule of its own; give a "
                "number",
                "evaluation.shift",
                "model.name",
            )
        return
    for key in ("train", "held_out"):
        rewards: Iterable[str] = getattr(config.rewards, key)
        of_scenes = [name for name in rewards if name in scenes.REWARDS]
        if of_scenes:
            raise Conflict(
                f"rewards.{key} has {of_scenes[0]}, which judges pictures of the embedded task "
                f"alone; name rewards for model {model.name} (docs/models.md)",
                f"rewards.{key}",
                "model.name",
            )
    for key in ("train", "held_out"):
        if getattr(config.prompts, key) is None:
            raise Conflict(
                f"model.name {model.name} has no prompts of its own; name a file of them as "
                f"prompts.{key}",
                "model.name",
                f"prompts.{key}",
            )


_MOST_IMAGES = 10_000_000
"""Of an iteration."""


def _fits_evaluation(config: RunConfig) -> None:
    usual, final = config.evaluation.images_per_prompt, config.evaluation.final_images_per_prompt
    if final is not None and final < usual:
        raise Conflict(
            f"evaluation.final_images_per_prompt {final} is less than "
            f"evaluation.images_per_prompt {usual}; the last evaluation has at least the images of "
            "the others",
            "evaluation.final_images_per_prompt",
            "evaluation.images_per_prompt",
        )


def _fits_group(config: RunConfig) -> None:
    o, group = config.objective, config.rollout.group_size
    if config.rollout.prompts * group > _MOST_IMAGES:
        raise Conflict(
            f"rollout.group_size {group} times rollout.prompts {config.rollout.prompts} is more "
            f"than {_MOST_IMAGES:,} images in an iteration; lower one of them",
            "rollout.group_size",
            "rollout.prompts",
        )
    if o.best_of is not None and 2 * o.best_of > group:
        raise Conflict(
            f"objective.best_of {o.best_of} best and as many worst images are more than "
            f"rollout.group_size {group}",
            "objective.best_of",
            "rollout.group_size",
        )
    if o.updates > config.trained_images:
        raise Conflict(
            f"objective.updates {o.updates} is more than the {config.trained_images} images of a "
            "group that rollout.group_size and objective.best_of leave to train with; every "
            "update takes at least one image of each prompt",
            "objective.updates",
            "rollout.group_size",
            "objective.best_of",
        )


def _fits_optimizer(config: RunConfig) -> None:
    o = config.optimizer
    if o.warmup >= config.iterations and o.warmup:
        raise Conflict(
            f"optimizer.warmup {o.warmup} is not shorter than iterations {config.iterations}",
            "optimizer.warmup",
            "iterations",
        )
    if o.name != "adamw" and "." not in o.name:
        raise Conflict(
            f"optimizer.name {o.name} is neither adamw nor an import path such as "
            "torch.optim.Adafactor",
            "optimizer.name",
        )


MAPPINGS = {"rewards.train", "rewards.classes", "rewards.options", "optimizer.options"}
"""Values whose keys are the user's, not settings."""
