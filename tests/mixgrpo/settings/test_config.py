"""The configuration: defaults, what is refused and how, what identifies a result, what is read."""

import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixgrpo import train
from mixgrpo.errors import ConfigError, Place
from mixgrpo.maths.window import Window
from mixgrpo.runs import folder
from mixgrpo.settings.config import OptimizerConfig, RunConfig, Section
from mixgrpo.settings.configfile import dump_config, load_config, load_layers
from mixgrpo.settings.identity import config_hash, differences, settings_hash
from mixgrpo.settings.keys import known_keys
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.usercode import CodeRecord
from mixgrpo.settings.yamlfile import parse_yaml
from tests.mixgrpo import toy
from tests.mixgrpo.models.tiny import write_flux

ROOT = Path(__file__).parents[3]


def set_(dotted: str, value: Any, base: RunConfig | None = None) -> RunConfig:
    """`base` with one key changed."""
    data = (base or RunConfig()).model_dump()
    *sections, last = dotted.split(".")
    inner = data
    for name in sections:
        inner = inner[name]
    inner[last] = value
    return RunConfig.model_validate(data)


# ---- Defaults


def test_defaults_are_the_papers() -> None:
    c = RunConfig()
    assert (c.iterations, c.sampler.steps, c.sampler.shift, c.sampler.kernel) == (
        300,
        25,
        3,
        "flow",
    )
    assert (c.sampler.eta, c.sampler.tail_ratio, c.sampler.order) == (0.7, 1, 1)
    assert (c.sampler.variant, c.sampler.history) == ("midpoint", "keep")
    w = c.window
    assert (w.size, w.interval, w.stride, w.strategy, w.at_end, w.start) == (
        4,
        25,
        1,
        "constant",
        "hold",
        0,
    )
    assert (w.decay, w.threshold) == (0.1, 13)
    assert c.rollout.group_size == 12
    assert c.rewards.aggregate == "sum"
    o = c.objective
    assert (o.clip_range, o.advantage_clip, o.updates, o.kl_weight) == (1e-4, 5, 4, 0)
    a = c.optimizer
    assert (a.lr, a.betas, a.weight_decay, a.max_grad_norm) == (1e-5, (0.9, 0.999), 1e-4, 1)


def test_the_window_is_made_of_the_configuration() -> None:
    c = toy.config(seed=9, window={"start": 1, "stride": 2, "strategy": "exp-decay", "decay": 0.3})
    assert c.make_window() == Window(
        steps=5, size=2, interval=1, stride=2, strategy="exp-decay", start=1, seed=9, decay=0.3
    )


# ---- What is refused: place, key and fix


def refused(tmp_path: Path, text: str, overrides: list[str] | None = None) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert "pydantic" not in message
    return message


BAD: list[tuple[str, str, list[str]]] = [
    ("unknown key", "window: {intervall: 3}", [":1:", "window.intervall", "did you mean window.i"]),
    ("unknown section", "seed: 1\nwindw: {size: 3}", [":2:", "windw", "unknown key"]),
    (
        "dotted key in a run configuration",
        "objective.updates: 1\nrollout: {group_size: 2}",
        [
            ":1:",
            "objective.updates: a run configuration has no dotted keys",
            "objective: {updates:",
        ],
    ),
    ("key of another section", "eta: 0.3", ["eta: unknown key", "did you mean sampler.eta"]),
    ("wrong type", "window:\n  size: 2\n  interval: soon", [":3:", "window.interval", "'soon'"]),
    ("a text for a number", 'sampler: {eta: "0.7"}', ["sampler.eta", "'0.7'"]),
    ("a fraction for a count", "iterations: 2.5", [":1:", "iterations", "2.5"]),
    ("a bool for a count", "seed: true", ["seed", "True"]),
    ("nothing", "iterations:", ["iterations", "None"]),
    ("a section that is a number", "window: 3", [":1:", "window"]),
    ("a section that is nothing", "window:", ["window"]),
    ("a list for a section", "window: [1]", ["window"]),
    ("unknown choice", "sampler: {kernel: cpps}", ["sampler.kernel", "'cps'", "'cpps'"]),
    ("negative seed", "iterations: 3\nseed: -1", [":2:", "seed", "greater than or equal to 0"]),
    ("huge seed", "seed: 4294967296", ["seed", "less than"]),
    ("zero steps", "sampler: {steps: 0}", ["sampler.steps", "greater than"]),
    ("nan", "sampler: {eta: .nan}", ["sampler.eta", "finite"]),
    ("infinite", "optimizer:\n  lr: .inf", [":2:", "optimizer.lr", "finite"]),
    ("nan inside a tuple", "optimizer: {betas: [0.9, .nan]}", ["optimizer.betas"]),
    ("infinite weight", "rewards: {train: {composition: .inf}}", ["rewards.train.composition"]),
    ("beta of one", "optimizer: {betas: [0.9, 1.0]}", ["optimizer.betas.1", "less than 1"]),
    ("one beta", "optimizer: {betas: [0.9]}", ["optimizer.betas"]),
    (
        "window longer than the trajectory",
        "sampler: {steps: 6}\nwindow:\n  size: 7",
        [":3:", "window.size 7", "sampler.steps = 6", "shorten"],
    ),
    (
        "window that starts too late",
        "window: {start: 22}",
        [":1:", "window.start 22", "window.size 4", "25"],
    ),
    (
        "more updates than images",
        "rollout:\n  group_size: 3",
        [":2:", "objective.updates 4", "3 images", "rollout.group_size"],
    ),
    (
        "more updates than chosen images",
        "objective:\n  updates: 3\n  best_of: 1",
        [":2:", "objective.updates 3", "2 images"],
    ),
    (
        "more best and worst than images",
        "objective: {best_of: 7}",
        [":1:", "objective.best_of 7", "rollout.group_size 12"],
    ),
    (
        "window behind its stop",
        "window: {start: 10, stop: 12}",
        ["window.start 10", "window.size 4", "steps before 12"],
    ),
    (
        "window behind the released bound",
        "window: {start: 20, at_end: released}",
        ["window.start 20", "steps before 23", "window.at_end released"],
    ),
    (
        "stop behind the end",
        "sampler: {steps: 8}\nwindow:\n  stop: 9",
        [":3:", "window.stop 9", "sampler.steps = 8"],
    ),
    (
        "count and fraction",
        "window: {count: 2, fraction: 0.5}",
        ["window.count 2", "window.fraction 0.5", "one of them"],
    ),
    ("more steps than the window has", "window: {count: 5}", ["window.count 5", "window.size 4"]),
    (
        "released density of another kernel",
        "sampler: {density: released}",
        ["sampler.density released", "sampler.kernel is flow"],
    ),
    (
        "guard without a std",
        "sampler: {density: released, kernel: cps}\nobjective: {ratio: guard}",
        ["sampler.density released", "objective.ratio guard"],
    ),
    ("a variant of another order", "sampler: {variant: heun}", ["sampler.variant", "order is 1"]),
    (
        "history of order 1",
        "sampler: {history: restart}",
        ["sampler.history", "sampler.order is 1"],
    ),
    (
        "a rank without adapters",
        "model:\n  lora_rank: 4",
        [":2:", "model.lora_rank", "set model.train to lora"],
    ),
    (
        "noise that no image shows",
        "sampler: {decode: x0}\nwindow: {strategy: constant}",
        ["sampler.decode x0", "step 24", "window.stop to 24"],
    ),
    (
        "a solver where no ODE step is",
        "sampler: {sde: all, tail_ratio: 0.4}",
        ["sampler.sde all", "sampler.tail_ratio"],
    ),
    (
        "warm-up without end",
        "iterations: 10\noptimizer: {warmup: 10}",
        [":2:", "optimizer.warmup 10", "iterations 10"],
    ),
    (
        "optimizer by a mere name",
        "optimizer: {name: adam}",
        [":1:", "optimizer.name adam", "torch.optim.Adafactor"],
    ),
    ("unknown tracker", "output: {trackers: [mlflow]}", ["output.trackers.0", "'wandb'"]),
    (
        "decay upwards",
        "window: {strategy: linear-decay, interval: 3, interval_min: 5}",
        ["window.interval_min 5", "window.interval 3"],
    ),
    ("group of one", "rollout: {group_size: 1}", ["rollout.group_size"]),
    ("no reward", "rewards: {train: {}}", ["rewards.train"]),
    ("reward of no weight", "rewards: {train: {composition: 0}}", ["rewards.train.composition"]),
    (
        "unknown reward",
        "rewards:\n  train: {compositon: 1}",
        [":2", "rewards.train", "compositon", "did you mean composition"],
    ),
    (
        "unknown held-out reward",
        "rewards: {held_out: [pallete]}",
        ["rewards.held_out", "did you mean palette"],
    ),
    (
        "reward on both sides",
        "rewards: {train: {palette: 1}, held_out: [palette]}",
        [":1:", "rewards", "palette", "name it in one"],
    ),
    ("reward held out twice", "rewards: {held_out: [strict, strict]}", ["rewards", "twice"]),
    ("noise beyond what the kernel knows", "sampler: {kernel: cps, eta: 1.2}", ["sampler.eta 1.2"]),
    ("unknown model", "model: {name: scene}", [":1", "model.name", "did you mean scenes"]),
    ("a path for a name", "model: {name: ../../etc}", ["model.name"]),
    (
        "guidance without a distilled model",
        "model:\n  guidance: 3",
        [":2:", "model.guidance", "scenes"],
    ),
    (
        "guidance of the other kind",
        "model:\n  name: flux\n  cfg: 4.5",
        [":3:", "model.cfg", "model flux"],
    ),
    (
        "tiles without a VAE",
        "compute: {vae_tiling: true}",
        [":1:", "compute.vae_tiling", "flux, sd3, qwen-image", "model scenes"],
    ),
    (
        "a schedule of a model that has none",
        "evaluation: {shift: dynamic}",
        [":1:", "evaluation.shift dynamic", "model scenes"],
    ),
    (
        "settings of a model that is misspelt",
        "model:\n  height: 720\n  name: flx",
        [":3:", "model.name", "did you mean flux"],
    ),
    (
        "one side of an image",
        "model:\n  name: flux\n  width: 512",
        [":3:", "model.width alone", "model.height too"],
    ),
    (
        "an image of no whole tokens",
        "model: {name: flux, height: 40}",
        ["model.height", "16", "40"],
    ),
    (
        "a class with a reward's name",
        "rewards:\n  classes:\n    hps: a:B",
        [":3:", "rewards.classes.hps", "another"],
    ),
    (
        "a shift that is no word",
        "evaluation: {shift: fast}",
        ["evaluation.shift: ", "'dynamic'", "'fast'"],
    ),
    (
        "rewards of the embedded task for FLUX",
        "model: {name: flux}\nrewards:\n  train: {palette: 1}\n  held_out: []",
        [":3:", "rewards.train", "palette", "embedded task"],
    ),
    (
        "no prompts",
        "model: {name: sd3}\nrewards: {train: {hps: 1}, held_out: []}",
        [":1:", "prompts.train", "model.name sd3"],
    ),
    (
        "options of no reward",
        "rewards:\n  options: {hpps: {batch: 4}}",
        [":2", "rewards.options", "hpps", "did you mean hps"],
    ),
    ("an option that is a mapping", "rewards: {options: {hps: {a: {b: 1}}}}", ["rewards.options"]),
    (
        "a weight that the scaling of the steps would cancel",
        "objective: {step_gradient: unit, step_weight: inverse-dt}",
        [":1:", "step_gradient unit", "step_weight inverse-dt", "none", "plain"],
    ),
    ("duplicate key", "seed: 1\niterations: 2\nseed: 3", [":3:", "seed", "given twice"]),
    (
        "duplicate key inside",
        "window:\n  size: 1\n  stride: 1\n  size: 2",
        [":4:", "size", "twice"],
    ),
    ("not YAML", "window: {size: 3", ["not valid YAML"]),
    ("not YAML, with a line", "seed: 1\n\tseed: 2", [":2:", "not valid YAML"]),
    ("a list", "- 1\n- 2", ["expected a mapping"]),
    ("a text", "hello", ["expected a mapping"]),
    ("empty", "", ["expected a mapping"]),
    ("two documents", "seed: 1\n---\nseed: 2", ["not valid YAML"]),
    ("a Python object", "seed: !!python/object/apply:os.getpid []", ["the tag", "is not read"]),
    ("a date that is none", "seed: 2024-13-45", [":1:", "read differently", "quote it"]),
    ("a key that is no word", "? [a, b]\n: 1", [":1:", "a key must be a plain word"]),
    ("a key that is a number", "3: 1", ["3"]),
    ("a key that is a number, inside", "window: {3: 1}", ["3"]),
    ("a list inside itself", "a: &x [*x]", ["contains itself"]),
    ("a mapping inside itself", "window: &x {size: *x}", ["contains itself"]),
    ("base that is not there", "seed: 1\nbase: no.yaml", [":2:", "base", "no.yaml", "no such"]),
    ("base that is no path", "base: [1]", [":1:", "base", "path of a file"]),
    ("its own base", "base: run.yaml", ["base", "circle"]),
]


@pytest.mark.parametrize(("text", "parts"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_names_place_key_and_mend(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refused(tmp_path, text)
    for part in parts:
        assert part in message, message
    assert str(tmp_path / "run.yaml") in message, message


OVERRIDES: list[tuple[str, list[str]]] = [
    ("window.interval", ["expected KEY=VALUE"]),
    ("=3", ["expected KEY=VALUE"]),
    ("", ["expected KEY=VALUE"]),
    ("window.intervall=3", ["window.intervall", "did you mean window.interval"]),
    ("interval=3", ["did you mean window.interval"]),
    ("window=3", ["window: is a section", "window.size"]),
    ("window.interval=soon", ["window.interval", "'soon'"]),
    ("window.interval=", ["window.interval"]),
    ("window.interval=[1", ["not valid YAML"]),
    ("seed=2024-13-45", ["quote it"]),
    ("seed=-1", ["seed", "greater than or equal"]),
    ("window.size=30", ["window.size 30", "sampler.steps = 25"]),
    ("rewards.train={compositon: 1}", ["did you mean composition"]),
    ("rewards.train.composition=2", ["set rewards.train as a whole", "rewards.train={...}"]),
]


@pytest.mark.parametrize(("override", "parts"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_bad_override_names_itself(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = refused(tmp_path, "seed: 1", [override])
    assert f"--set {override}" in message
    for part in parts:
        assert part in message, message


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"smoek\.yaml: no such file; did you mean .*smoke\.yaml"):
        load_config(tmp_path / "smoek.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "no" / "such.yaml")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_bytes(b"seed: \x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "run.yaml")


def test_a_circle_of_bases(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("seed: 1\nbase: a.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml:2: base: .*circle"):
        load_config(tmp_path / "a.yaml")


def test_an_error_in_a_base_points_into_the_base(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.yaml").write_text("seed: 1\nwindow: {size: many}")
    (tmp_path / "run.yaml").write_text("base: sub/base.yaml\niterations: 3")
    with pytest.raises(ConfigError, match=r"sub/base\.yaml:2: window\.size"):
        load_config(tmp_path / "run.yaml")
    # What lies on top hides what is wrong below.
    assert load_config(tmp_path / "run.yaml", ["window.size=3"]).window.size == 3


def test_bases_and_overrides_lie_on_each_other_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("seed: 1\nwindow: {size: 2, interval: 5, stride: 3}")
    (tmp_path / "base.yaml").write_text("base: deep.yaml\nwindow: {interval: 6}")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nwindow: {stride: 4}\nseed: 2")
    config = load_config(tmp_path / "run.yaml", ["seed=7", "optimizer.lr=3e-4"])
    w = config.window
    assert (config.seed, w.size, w.interval, w.stride, config.optimizer.lr) == (7, 2, 6, 4, 3e-4)


def test_rewards_to_train_on_are_replaced_not_merged(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("rewards: {train: {composition: 2}}")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nrewards: {train: {clarity: 1}}")
    assert load_config(tmp_path / "run.yaml").rewards.train == {"clarity": 1.0}


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "+1e-4", ".1e-3", "1.e-4", "0.0001"])
def test_numbers_with_an_exponent_are_numbers(text: str) -> None:
    assert parse_yaml(f"x: {text}", Place("here")) == {"x": 1e-4}


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(string.printable, max_size=8)
    | st.sampled_from(["flow", "constant", "scenes", "composition", "1e-4", "~", ""])
)
_keys = st.sampled_from(
    [part for key in known_keys() for part in key.split(".")] + ["base", "x", ""]
) | st.integers(0, 3)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(_keys, _values, max_size=4))
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_mapping_is_a_configuration_or_a_clear_error(
    tmp_path: Path, data: dict[Any, Any]
) -> None:
    file = tmp_path / "any.yaml"
    file.write_text(yaml.safe_dump(data))
    message = str(file)
    try:
        assert isinstance(load_config(file), RunConfig)
    except ConfigError as error:
        message = str(error)
    assert str(file) in message


# ---- The hash


CHANGED: dict[str, Any] = {
    "seed": 1,
    "iterations": 299,
    "model.name": "other",
    "model.checkpoint": "weights.safetensors",
    "model.revision": "main",
    "model.height": 496,
    "model.width": 496,
    "model.guidance": 1.0,
    "model.cfg": 4.5,
    "model.text_tokens": 128,
    "prompts.train": "examples/prompts/held_out.txt",
    "prompts.held_out": "examples/prompts/train.txt",
    "prompts.embeddings": "embeddings",
    "model.train": "lora",
    "model.lora_rank": 8,
    "model.lora_alpha": 16.0,
    "model.lora_targets": ("to_q",),
    "sampler.steps": 24,
    "sampler.shift": 1.0,
    "sampler.kernel": "cps",
    "sampler.eta": 0.8,
    "sampler.density": "released",
    "sampler.sde": "all",
    "sampler.decode": "x0",
    "sampler.head_ratio": 0.5,
    "sampler.tail_ratio": 0.4,
    "sampler.order": 2,
    "sampler.variant": "heun",
    "sampler.history": "restart",
    "window.size": 3,
    "window.fraction": 0.5,
    "window.count": 2,
    "window.stop": 20,
    "window.interval": 24,
    "window.stride": 2,
    "window.strategy": "random",
    "window.at_end": "restart",
    "window.start": 1,
    "window.interval_min": 2,
    "window.decay": 0.2,
    "window.threshold": 12,
    "rollout.prompts": 7,
    "rollout.group_size": 16,
    "rollout.noise": "own",
    "rollout.block": 2,
    "rewards.train": {"composition": 2.0},
    "rewards.held_out": ("palette",),
    "rewards.aggregate": "mean",
    "rewards.classes": {"own": "tests.mixgrpo.moody:Own"},
    "rewards.options": {"palette": {"gain": 2.0}},
    "rewards.timeout": None,
    "objective.clip_range": 2e-4,
    "objective.advantage_clip": 4.0,
    "objective.updates": 3,
    "objective.best_of": 3,
    "objective.skip_constant_groups": True,
    "objective.ratio": "guard",
    "objective.step_weight": "noise",
    "objective.step_gradient": "unit",
    "objective.kl_weight": 0.1,
    "objective.kl": "flow-grpo",
    "optimizer.name": "torch.optim.SGD",
    "optimizer.options": {"eps": 1e-6},
    "optimizer.lr": 2e-5,
    "optimizer.warmup": 5,
    "optimizer.schedule": "cosine",
    "optimizer.betas": (0.9, 0.95),
    "optimizer.weight_decay": 0.0,
    "optimizer.max_grad_norm": 0.5,
    "optimizer.ema_decay": 0.9,
    "evaluation.every": 14,
    "evaluation.prompts": 5,
    "evaluation.images_per_prompt": 3,
    "evaluation.final_images_per_prompt": 8,
    "evaluation.steps": 20,
    "evaluation.shift": 1.0,
    "compute.micro_batch": 8,
    "compute.precision": "bf16",
    "compute.gradient_checkpointing": True,
    "compute.compile": True,
    "compute.attention": "native",
    "compute.vae_tiling": True,
    "compute.offload": True,
    "health.gradient_conflict": False,
    "health.drift": False,
    "output.checkpoint_every": 3,
    "output.checkpoints_kept": 5,
    "output.keep": (4,),
    "output.samples": 1,
    "output.export": False,
    "output.trackers": ("tensorboard",),
    "output.project": "other",
}


UNHASHED = ("output.", "health.", "rewards.timeout", "prompts.embeddings", "compute.offload")
IN_FILES = ("prompts.train", "prompts.held_out")
"""What counts by the contents of a file, and has a test of its own."""


def pipeline(name: str) -> RunConfig:
    """Of a model of diffusers, with the prompts that it needs."""
    prompts = ROOT / "examples" / "prompts"
    return RunConfig.model_validate(
        {
            "model": {"name": name, "height": 720, "width": 720},
            "prompts": {k: str(prompts / f"{k}.txt") for k in ("train", "held_out")},
            "rewards": {"train": {"hps": 1.0}, "held_out": ()},
        }
    )


def base_of(key: str) -> RunConfig:
    """Where the key may be changed alone."""
    needed: dict[str, tuple[str, Any]] = {
        "sampler.density": ("sampler.kernel", "cps"),
        "sampler.variant": ("sampler.order", 2),
        "sampler.history": ("sampler.order", 2),
        "sampler.decode": ("window.stop", 20),
        "model.lora_rank": ("model.train", "lora"),
        "model.lora_alpha": ("model.train", "lora"),
        "model.lora_targets": ("model.train", "lora"),
    }
    if key == "model.cfg":
        return pipeline("sd3")
    own = ("revision", "height", "width", "guidance", "text_tokens", "attention", "vae_tiling")
    if key.rpartition(".")[2] in own:
        return pipeline("flux")
    if key == "rewards.classes":
        own = {"train": {"own": 1.0}, "classes": {"own": "tests.mixgrpo.moody:Other"}}
        return RunConfig.model_validate({"rewards": own})
    return set_(*needed[key]) if key in needed else RunConfig()


def test_every_field_has_an_example() -> None:
    assert sorted(CHANGED) == sorted(known_keys())


@pytest.mark.parametrize("key", CHANGED)
def test_hash_changes_with_what_changes_the_result_and_nothing_else(key: str) -> None:
    base = base_of(key)
    changed = set_(key, CHANGED[key], base)
    if key.startswith(UNHASHED):
        assert config_hash(changed) == config_hash(base)
        assert differences(changed) == differences(base)
    else:
        assert config_hash(changed) != config_hash(base)
        before, after = differences(base), differences(changed)
        assert {k for k in before | after if before.get(k) != after.get(k)} == {key}


def test_all_those_hashes_differ() -> None:
    hashes = [
        config_hash(set_(k, v, base_of(k)))
        for k, v in CHANGED.items()
        if not k.startswith(UNHASHED)
    ]
    assert len(set(hashes)) == len(hashes)


def test_recorded_hashes_stay() -> None:
    """If this fails, finished runs of users are orphaned: raise SCHEMA_VERSION knowingly."""
    # The toy, as what has no weights: those that ship are part of the hash. Its code, the tests',
    # is left out.
    plain = RunConfig.model_validate(
        {
            "model": {"name": "toy"},
            "rewards": {"train": {"brightness": 1.0}, "held_out": ("contrast",)},
        }
    )
    assert settings_hash(plain) == "d7040f5a"
    assert settings_hash(set_("window.interval", 15, plain)) == "ef7a72ac"
    assert settings_hash(set_("optimizer.lr", 1e-4, set_("seed", 4, plain))) == "21874001"


def test_hash_changed_where_the_released_path_did() -> None:
    """What an older version trained on another path of the window is not taken for this one."""

    def identity(**window: Any) -> str:
        return config_hash(RunConfig.model_validate({"window": window}))

    assert identity(at_end="released") == "3240493d"
    assert identity(at_end="released", strategy="linear-decay") != "69cf3956"
    assert identity(at_end="released", strategy="exp-decay") != "c0dfc4fc"
    assert identity(at_end="released", stop=12) != "8b58d45f"


def test_hash_sees_the_contents_of_weights_and_not_their_place(tmp_path: Path) -> None:
    hashes = []
    for name, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        (tmp_path / name).write_bytes(content)
        hashes.append(config_hash(set_("model.checkpoint", str(tmp_path / name))))
    assert hashes[0] == hashes[1] != hashes[2]
    assert config_hash(RunConfig()) not in hashes
    (tmp_path / "a").write_bytes(b"two and more")
    assert config_hash(set_("model.checkpoint", str(tmp_path / "a"))) != hashes[0]


def test_hash_sees_the_prompts_and_not_their_file(tmp_path: Path) -> None:
    hashes = []
    texts = {"a.txt": "one\ntwo\n", "b.jsonl": '"one"\n{"prompt": "two"}\n', "c.txt": "two\none\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        hashes.append(config_hash(set_("prompts.train", str(tmp_path / name))))
    assert hashes[0] == hashes[1] != hashes[2]
    assert config_hash(set_("prompts.held_out", str(tmp_path / "a.txt"))) not in hashes
    with pytest.raises(ConfigError, match=r"prompts\.train: .*none\.txt"):
        config_hash(set_("prompts.train", str(tmp_path / "none.txt")))


def test_hash_takes_the_models_own_weights_for_what_they_are() -> None:
    flux = pipeline("flux")
    named = set_("model.checkpoint", "black-forest-labs/FLUX.1-dev", flux)
    assert config_hash(named) == config_hash(flux)
    assert config_hash(set_("model.checkpoint", "someone/else", flux)) != config_hash(flux)


def test_hash_does_not_see_the_order_of_held_out_rewards() -> None:
    a, b = (set_("rewards.held_out", v) for v in (("clarity", "palette"), ("palette", "clarity")))
    assert config_hash(a) == config_hash(b)


def test_hash_does_not_see_the_order_or_the_spelling_of_keys(tmp_path: Path) -> None:
    texts = [
        "seed: 4\nsampler: {eta: 1, steps: 20}\nrewards: {train: {composition: 1, clarity: 2}}",
        "rewards:\n  train: {clarity: 2.0, composition: 1.0}\n"
        "sampler:\n  steps: 20\n  eta: 1.0\nseed: 0x4\noutput: {samples: 2}",
        "seed: 4\nsampler: {eta: 1.0e0, steps: 20, shift: 3}\nwindow: {}\n"
        "rewards: {train: {composition: 1, clarity: 2}}",
    ]
    hashes = set()
    for text in texts:
        (tmp_path / "run.yaml").write_text(text)
        hashes.add(config_hash(load_config(tmp_path / "run.yaml")))
    assert len(hashes) == 1


@pytest.mark.parametrize("key", [k for k in CHANGED if k != "model.name"])
def test_dump_and_load_give_the_same_back(tmp_path: Path, key: str) -> None:
    config = set_(key, CHANGED[key], base_of(key))
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config
    # Complete: every key is written out.
    written = yaml.safe_load(dump_config(config))
    for dotted in known_keys():
        inner = written
        for part in dotted.split("."):
            inner = inner[part]


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        RunConfig().seed = 3  # type: ignore[misc]


def test_layers_copy_does_not_touch_the_original(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("window: {size: 3}")
    layers = load_layers(tmp_path / "run.yaml")
    copy = layers.copy()
    copy.set("window.size", 5, Place("here"))
    assert layers.validate().window.size == 3
    assert copy.validate(seed=6).window.size == 5
    assert copy.validate(seed=6).seed == 6
    assert isinstance(layers, Layers)


# ---- Every field is read somewhere


@contextmanager
def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, str]]]:
    """(class, field) of every attribute that is read; of the window's, those Window reads."""
    reads: set[tuple[str, str]] = set()

    def watch(patch: pytest.MonkeyPatch, owner: type, label: str | None) -> None:
        original = owner.__getattribute__

        def reading(self: Any, name: str) -> Any:
            reads.add((label or type(self).__name__, name))
            return original(self, name)

        patch.setattr(owner, "__getattribute__", reading)

    with monkeypatch.context() as patch:
        watch(patch, Section, None)
        watch(patch, Window, "WindowConfig")
        yield reads


# What takes all branches together: each field is read by one of these.
BRANCHES: list[dict[str, Any]] = [
    {"objective": {"kl_weight": 0.1}, "sampler": {"tail_ratio": 0.5, "order": 2}},
    {"window": {"strategy": "linear-decay", "interval": 2}},
    {"window": {"strategy": "exp-decay"}},
    {
        "iterations": 1,
        "model": {"name": "scenes", "train": "lora"},
        "rewards": {"train": {"composition": 1.0}, "held_out": []},
        "evaluation": {"prompts": 1, "steps": 1},
        "output": {"trackers": ["wandb"]},
    },
    {"sampler": {"order": 2, "history": "restart", "variant": "heun"}},
]


def unread(
    config_class: type[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """The keys of a configuration that no whole run reads."""
    seen: set[tuple[str, str]] = set()
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", str(tmp_path / "embeddings"))
    flux = {
        "iterations": 1,
        "model": {
            "name": "flux",
            "checkpoint": str(write_flux(tmp_path / "flux")),
            **{"height": 32, "width": 32},
        },
        "prompts": pipeline("flux").prompts.model_dump(),
        "evaluation": {"prompts": 1, "steps": 1},
        "compute": {"attention": "native", "vae_tiling": True, "offload": True},
    }
    for i, branch in enumerate([*BRANCHES, flux]):
        plain = toy.config(**branch)
        config = config_class.model_validate(plain.model_dump())
        monkeypatch.setattr(folder, "config_hash", lambda _: "00000000")
        record = CodeRecord(settings="00000000", code={})
        monkeypatch.setattr(folder, "code_record", lambda _, record=record: record)
        with recorded_reads(monkeypatch) as reads:
            assert train.run(config, tmp_path / f"{config_class.__name__}{i}") == "finished"
        seen |= reads
    missing = set()
    for name, field in config_class.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            fields = section.model_fields
            missing |= {f"{name}.{f}" for f in fields if (section.__name__, f) not in seen}
        elif (config_class.__name__, name) not in seen:
            missing.add(name)
    return missing


@pytest.mark.usefixtures("toy_site")
def test_every_field_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unread(RunConfig, tmp_path, monkeypatch) == set()


class _Optimizer(OptimizerConfig):
    momentum: float = 0.9


class _WithUnread(RunConfig):
    warmup: int = 3
    optimizer: _Optimizer = _Optimizer()


# A tracker does not know the fields that the test adds.
@pytest.mark.filterwarnings("ignore:.*wandb failed")
@pytest.mark.usefixtures("toy_site")
def test_that_check_sees_a_field_that_nothing_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unread(_WithUnread, tmp_path, monkeypatch) == {"warmup", "optimizer.momentum"}


def test_differences_are_plain_data() -> None:
    assert json.loads(json.dumps(differences(toy.config()))) == differences(toy.config())
