"""One typed, validated description of one run.

`configfile` reads it from YAML files, `consistency` checks which settings fit together, `identity`
names its result. Nothing here imports torch, so that the harness can plan thousands of runs in a
moment. The file is long because it holds every setting with its meaning; `docs/settings.md` is
made from it.
"""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from mixgrpo.errors import shown
from mixgrpo.maths.window import AtEnd, Strategy, Window
from mixgrpo.settings.consistency import check_consistency
from mixgrpo.text.escape import shortened

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
    """Weights to start from: a file or folder, or a name on the Hugging Face hub; none means the
    ones the model ships with, or its authors' on the hub."""
    revision: str | None = None
    """Branch, tag or commit of `checkpoint` on the hub."""
    height: int | None = Field(None, ge=16, le=32768, multiple_of=16)
    """Height of an image in pixels; none: the model's default."""
    width: int | None = Field(None, ge=16, le=32768, multiple_of=16)
    """Width of an image in pixels; none: the model's default."""
    guidance: float | None = Field(None, ge=0)
    """Guidance scale that a distilled model reads as an input (FLUX.1-dev); none: 3.5."""
    cfg: float | None = Field(None, ge=1)
    """Scale of classifier-free guidance, in training and evaluation; none or 1: off."""
    text_tokens: int | None = Field(None, ge=1, le=100_000)
    """Most tokens of a prompt that the longest text encoder reads; none: the model's default."""
    train: Literal["full", "lora"] = "full"
    """Train all weights of the network, or low-rank adapters beside frozen ones (LoRA)."""
    lora_rank: int = Field(32, ge=1, le=100_000)
    """Rank of the adapters."""
    lora_alpha: float = Field(64.0, gt=0)
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Layers that get an adapter, by the end of their names; by default those of attention."""


class PromptsConfig(Section):
    train: str | None = None
    """File of prompts to train on: text, JSON, JSON lines, CSV or Parquet; none: the model's."""
    held_out: str | None = None
    """File of prompts to evaluate on; none: the model's."""
    embeddings: str | None = None
    """Folder where encoded prompts are stored; none: $MIXGRPO_EMBEDDINGS, or else
    ~/.cache/mixgrpo/embeddings. Changes no result, so it is not part of the hash."""


class SamplerConfig(Section):
    steps: int = Field(25, ge=2, le=1000)
    """T, the number of steps of a training trajectory."""
    shift: float = Field(3.0, gt=0)
    """Time shift s of the sigma schedule (3 for FLUX)."""
    kernel: Literal["flow", "dance", "cps"] = "flow"
    """Noise of the SDE steps: Flow-GRPO's, DanceGRPO's, or coefficients-preserving."""
    eta: float = Field(0.7, gt=0)
    """Noise level of the SDE steps; its unit depends on the kernel."""
    density: Literal["normalised", "released"] = "normalised"
    """Log-prob of a cps step: the Gaussian's, or the released code's -(x' - mean)^2."""
    sde: Literal["window", "all"] = "window"
    """Which steps are random: those of the window (MixGRPO), or all (Flow-GRPO, DanceGRPO)."""
    decode: Literal["sample", "x0"] = "sample"
    """What is decoded to the image: the last sample, or the last prediction of x0 (DanceGRPO)."""
    head_ratio: float = Field(1.0, gt=0, le=1)
    """The steps before the window are compressed to this fraction of their number, taken by
    DPM-Solver++."""
    tail_ratio: float = Field(1.0, gt=0, le=1)
    """The steps after the window are compressed to this fraction of their number, taken by
    DPM-Solver++ (MixGRPO-Flash)."""
    order: Literal[1, 2, 3] = 1
    """Order of DPM-Solver++ after the window, and before it where head_ratio is below 1; order 1 is
    Euler."""
    variant: Literal["midpoint", "heun"] = "midpoint"
    """Which second-order DPM-Solver++."""
    history: Literal["keep", "restart"] = "keep"
    """Whether the solver after the window uses x0 predictions from before and inside it."""


class WindowConfig(Section):
    size: int = Field(4, ge=1)
    """w, the number of consecutive steps that are trained."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Fraction of the window's steps that an image is trained on, drawn anew for each image."""
    count: int | None = Field(None, ge=1)
    """Number of the window's steps that an image is trained on, instead of `fraction`."""
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
    """Prompts sampled together, while the previous block is decoded and scored; none: all."""


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
    """User-defined rewards, by name: `package.module:Class`."""
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
    """The policy ratio is clipped to 1 plus or minus this."""
    advantage_clip: float = Field(5.0, gt=0)
    """Advantages are clipped to plus or minus this."""
    updates: int = Field(4, ge=1)
    """Optimizer steps per iteration, each on an equal share of the images of every prompt."""
    best_of: int | None = Field(None, ge=1)
    """Train only with the k best and the k worst images of every group."""
    skip_constant_groups: bool = False
    """Leave groups whose advantages are all 0 out of the update and of its mean."""
    ratio: Literal["plain", "guard"] = "plain"
    """The policy ratio, or GRPO-Guard's, normalised for every image and step."""
    step_weight: Literal["none", "noise", "inverse-dt"] = "none"
    """Weight of a step's loss: by its noise (TempFlow-GRPO) or 1 / -dt (GRPO-Guard)."""
    step_gradient: Literal["plain", "unit"] = "plain"
    """What is averaged over an image's trained steps: their gradients, or each gradient scaled to
    norm 1, so that no step outweighs the others."""
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
    """The rate after the warm-up: constant, or falling to 0 at the last iteration."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Betas of AdamW and similar optimizers."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay, as in AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient with a larger norm is scaled down to this norm."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Decay per update of the averaged weights (EMA), which are the ones evaluated."""


class EvaluationConfig(Section):
    every: int = Field(15, ge=1)
    """Iterations between two evaluations; there is always one before the first iteration and one
    after the last."""
    prompts: int = Field(0, ge=0)
    """Held-out prompts, chosen by a hash of their text; 0 means all."""
    images_per_prompt: int = Field(2, ge=1, le=10_000)
    """Images per prompt, each from another initial noise; the same in every evaluation of a
    seed."""
    final_images_per_prompt: int | None = Field(None, ge=1, le=10_000)
    """Images per prompt in the evaluation after the last iteration: more of them make its means
    less noisy. The first ones are those of the other evaluations. null means
    `images_per_prompt`."""
    steps: int = Field(25, ge=1, le=1000)
    """ODE steps of an evaluated image, whatever the sampler in training."""
    shift: Annotated[float, Field(gt=0)] | Literal["dynamic"] = 3.0
    """Time shift of these steps; dynamic: that of the model's diffusers pipeline."""


class ComputeConfig(Section):
    """How a run is computed. Changes results by rounding only."""

    micro_batch: int | None = Field(None, ge=1)
    """The most latents in one forward (with model.cfg twice as many in the network), and images in
    one decoding; none: no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network's arithmetic. Trained weights, optimizer and samples stay in
    fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Run the network through torch.compile."""
    attention: str | None = Field(None, min_length=1)
    """Attention backend of diffusers, such as native or flash; none: its default."""
    vae_tiling: bool = False
    """Decode images one at a time, and images larger than the VAE's native size (1024 pixels for
    published models) in overlapping tiles."""
    offload: bool = False
    """Keep the VAE and the networks of rewards in CPU memory while they are idle. Changes no
    result, so it is not part of the hash."""


class HealthConfig(Section):
    """What is measured in addition to the metrics. Changes no result, so it is not part of the
    hash."""

    gradient_conflict: bool = True
    """Cosine between the gradients of the window's first and last step, once per iteration. Needs
    memory for three more gradients."""
    drift: bool = True
    """Distance between the SDE's and the ODE's image from the same start, whenever the window
    moves."""


class OutputConfig(Section):
    """What is kept in the run folder. Changes no result, so it is not part of the hash."""

    checkpoint_every: int = Field(10, ge=1)
    """Iterations between two checkpoints; there is always one after the last."""
    checkpoints_kept: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    keep: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Iterations whose checkpoints are written and kept, besides the newest ones."""
    samples: int = Field(8, ge=0)
    """Held-out prompts whose first image is saved as a picture at every evaluation."""
    export: bool = True
    """Whether a finished run exports its averaged weights in the format that diffusers loads."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Experiment trackers that receive the metrics, besides metrics.jsonl."""
    project: Name = "mixgrpo"
    """The project's name at Weights & Biases."""


class RunConfig(Section):
    """Everything that says what one run computes."""

    seed: int = Field(0, ge=0, lt=2**31)
    """The seed of all randomness."""
    iterations: int = Field(300, ge=1, le=10**9)
    """Length of the run; each iteration samples, scores and updates."""
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
        check_consistency(self)
        return self

    def make_window(self) -> Window:
        """The window of SDE steps as a function of the iteration."""
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
        """Steps that one image is trained on: the paper's NFE_theta."""
        w = self.window
        return w.count if w.count is not None else max(1, round(w.size * w.fraction))

    @property
    def trained_images(self) -> int:
        """Images of a group that are trained on: all, or the k best and the k worst."""
        best_of = self.objective.best_of
        return self.rollout.group_size if best_of is None else 2 * best_of


MAPPINGS = {"rewards.train", "rewards.classes", "rewards.options", "optimizer.options"}
"""Settings whose keys are chosen by the user."""
