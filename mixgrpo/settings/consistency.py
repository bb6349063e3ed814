"""Which settings do not fit together: the checks of a run configuration as a whole.

Each check raises a `Conflict` that names the settings by their dotted keys and says what to change.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixgrpo.catalogue import scenes
from mixgrpo.catalogue.models import DIFFUSION
from mixgrpo.text.escape import without_passwords
from mixgrpo.text.secrets import has_login, is_variable, why_no_addresses

if TYPE_CHECKING:
    from mixgrpo.settings.config import RunConfig

_MOST_IMAGES = 10_000_000
"""Images per iteration."""


class Conflict(ValueError):
    """Settings that do not fit together; `keys` are their dotted keys."""

    def __init__(self, message: str, *keys: str, others: "Sequence[Conflict]" = ()) -> None:
        super().__init__(message)
        self.keys = keys
        self.conflicts = (self, *others)
        """This conflict and the others of the same configuration."""


def all_conflicts(conflicts: list[Conflict]) -> Conflict:
    """One exception for all of these: pydantic takes a single error from a validator."""
    first, *others = conflicts
    return Conflict(str(first), *first.keys, others=others)


def check_consistency(config: "RunConfig") -> None:
    """Conflict, with all conflicts that there are, where settings do not fit together."""
    _holds_no_secret("", config.model_dump())
    conflicts: list[Conflict] = []
    checks = (
        *(_fits_model, _fits_trajectory, _fits_sampler, _fits_group, _fits_optimizer),
        _fits_evaluation,
    )
    for check in checks:
        try:
            check(config)
        except Conflict as conflict:
            conflicts.append(conflict)
            if check is _fits_trajectory:  # the checks after it make the window
                break
    if conflicts:
        raise all_conflicts(conflicts)


def _fits_trajectory(config: "RunConfig") -> None:
    w, steps = config.window, config.sampler.steps
    stop = steps if w.stop is None else w.stop
    if stop > steps:
        raise Conflict(
            f"window.stop {w.stop} lies beyond the trajectory's end, sampler.steps = {steps}",
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


def _fits_sampler(config: "RunConfig") -> None:
    s = config.sampler
    if s.kernel == "cps" and s.eta > 1:
        raise Conflict(
            f"sampler.eta {s.eta} is above 1, the most that the cps kernel takes: "
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
            "sampler.history restart has no effect where sampler.order is 1",
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
            f"sampler.density released is for the cps kernel only, sampler.kernel is {s.kernel}",
            "sampler.density",
            "sampler.kernel",
        )
    if s.sde == "all" and (s.order > 1 or s.head_ratio < 1 or s.tail_ratio < 1):
        raise Conflict(
            "sampler.sde all leaves no ODE steps, which sampler.order, sampler.head_ratio and "
            "sampler.tail_ratio are about; leave them at 1",
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


def _last_step(config: "RunConfig") -> int:
    """The last step that any window covers."""
    window = config.make_window()
    return (window.start if window.strategy == "frozen" else window.last) + window.size - 1


_NAMES_OF_VARIABLES = {
    f"rewards.options.unifiedreward.{name}" for name in ("api_key_env", "login_env")
}
_SECRET_KEYS = re.compile(
    r"(?:.*_)?(password|passwd|secret|api_?key|(?:access|auth|hf|hub|bearer)_token)", re.IGNORECASE
)
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bBearer\s+\S")


def _holds_no_secret(key: str, value: object) -> None:
    """Conflict for a password or key: a configuration is written to config.yaml, messages, reports
    and trackers."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _holds_no_secret(f"{key}.{name}" if key else str(name), inner)
    elif key == "rewards.options.unifiedreward.urls":
        if value is not None and (wrong := why_no_addresses(value)):
            raise Conflict(f"{key}: {wrong}", key)
    elif key in _NAMES_OF_VARIABLES:
        if value is not None and not is_variable(value):
            raise Conflict(
                f"{key}: must be the name of an environment variable, such as MY_KEY; what stands "
                "there is not shown, for it may be the key itself",
                key,
            )
    elif isinstance(value, list | tuple):
        for inner in value:
            _holds_no_secret(key, inner)
    elif isinstance(value, str) and value:
        of_a_reward = key.startswith("rewards.options.")
        if without_passwords(value) != value or (of_a_reward and has_login(value)):
            raise Conflict(
                f"{key}: a URL with a user, a password or a key in it would be kept in "
                "config.yaml, in messages and at trackers; write it without, and name the "
                "environment variable that holds user:password, as login_env of "
                "rewards.options.unifiedreward does",
                key,
            )
        if _SECRET_KEYS.fullmatch(key.rpartition(".")[2]) or _SECRET.search(value):
            raise Conflict(
                f"{key}: a password or key would be kept in config.yaml, in messages and at "
                "trackers; name the environment variable that holds it, as api_key_env of "
                "rewards.options.unifiedreward does, and read it in the reward",
                key,
            )


def _fits_model(config: "RunConfig") -> None:
    model = config.model
    for name in ("lora_rank", "lora_alpha", "lora_targets"):
        default = type(model).model_fields[name].default
        if model.train == "full" and getattr(model, name) != default:
            raise Conflict(
                f"model.{name} is a setting of adapters; set model.train to lora",
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
                    f"compute.{name} is a setting of diffusers models ({', '.join(DIFFUSION)}), "
                    f"not of model {model.name}; leave it out",
                    f"compute.{name}",
                    "model.name",
                )
        if config.evaluation.shift == "dynamic":
            raise Conflict(
                f"evaluation.shift dynamic: model {model.name} brings no schedule; give a number",
                "evaluation.shift",
                "model.name",
            )
        return
    for key in ("train", "held_out"):
        scene_rewards = [name for name in getattr(config.rewards, key) if name in scenes.REWARDS]
        if scene_rewards:
            raise Conflict(
                f"rewards.{key} has {scene_rewards[0]}, which scores images of the embedded task "
                f"only; name rewards for model {model.name} (docs/models.md)",
                f"rewards.{key}",
                "model.name",
            )
    for key in ("train", "held_out"):
        if getattr(config.prompts, key) is None:
            raise Conflict(
                f"model.name {model.name} brings no prompts; name a file of prompts as "
                f"prompts.{key}",
                "model.name",
                f"prompts.{key}",
            )


def _fits_evaluation(config: "RunConfig") -> None:
    usual, final = config.evaluation.images_per_prompt, config.evaluation.final_images_per_prompt
    if final is not None and final < usual:
        raise Conflict(
            f"evaluation.final_images_per_prompt {final} is less than "
            f"evaluation.images_per_prompt {usual}; the last evaluation has at least the images of "
            "the others",
            "evaluation.final_images_per_prompt",
            "evaluation.images_per_prompt",
        )


def _fits_group(config: "RunConfig") -> None:
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


def _fits_optimizer(config: "RunConfig") -> None:
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
