"""What is suggested for a name that is none."""

from pathlib import Path

import pytest

from harness.launching.resources import Slurm
from harness.searching.schema import RangeText, SearchFile
from harness.study.sweepfile import SweepFile
from mixgrpo.errors import ConfigError
from mixgrpo.settings.configfile import load_config
from mixgrpo.settings.keys import known_keys
from mixgrpo.text import suggest


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (suggest.RUN, known_keys()),
        (suggest.SLURM, Slurm.model_fields),
        (suggest.SWEEP, SweepFile.model_fields),
        (suggest.SEARCH, SearchFile.model_fields),
        (suggest.RANGE, RangeText.model_fields),
    ],
    ids=["run", "slurm", "sweep", "search", "range"],
)
def test_every_word_of_the_field_leads_to_a_key_that_exists(
    words: dict[str, str], targets: list[str]
) -> None:
    assert set(words.values()) <= set(targets)
    assert not words.keys() & set(targets)
    assert all(word == suggest.plain(word) for word in words)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optimizer.learning_rate", "optimizer.lr"),
        ("learning-rate", "optimizer.lr"),
        ("learningrate", "optimizer.lr"),
        ("maxGradNorm", "optimizer.max_grad_norm"),
        ("optimizer.weightdecay", "optimizer.weight_decay"),
        ("gradient_clip", "optimizer.max_grad_norm"),
        ("gradient_cliping", "optimizer.max_grad_norm"),
        ("kl_ratio", "objective.kl_weight"),
        ("prompts.test", "prompts.held_out"),
        ("save_interval", "output.checkpoint_every"),
        ("max_iters", "iterations"),
        ("window.shift", "window.stride"),
        ("window.length", "window.size"),
        ("cfg_weight", "model.cfg"),
        ("max_epochs", "iterations"),
        ("maxepochs", "iterations"),
        ("ema_rate", "optimizer.ema_decay"),
        ("eval_batch_size", "compute.micro_batch"),
        ("num_images", "rollout.group_size"),
        ("bs", "rollout.prompts"),
        ("K", "rollout.group_size"),
        ("group", "rollout.group_size"),
        ("denoise_steps", "sampler.steps"),
        ("lerning_rate", "optimizer.lr"),
        ("LR", "optimizer.lr"),
        ("optimizer.beta", "optimizer.betas"),
        ("beta", "objective.kl_weight"),
        ("objective.beta", "objective.kl_weight"),
        ("objective.kl_coef", "objective.kl_weight"),
        ("batch_size", "rollout.prompts"),
        ("rollout.num_generations", "rollout.group_size"),
        ("num_inference_steps", "sampler.steps"),
        ("sampler.num_steps", "sampler.steps"),
        ("model.guidance_scale", "model.guidance"),
        ("cfg_scale", "model.cfg"),
        ("model.lora_r", "model.lora_rank"),
        ("model.rank", "model.lora_rank"),
        ("epochs", "iterations"),
        ("max_steps", "iterations"),
        ("seeds", "seed"),
        ("warmup_steps", "optimizer.warmup"),
        ("warmup", "optimizer.warmup"),
        ("clip_eps", "objective.clip_range"),
        ("window.tau", "window.interval"),
        ("window.intervall", "window.interval"),
        ("sampler.interval", "window.interval"),
        ("optimiser.lr", "optimizer.lr"),
        ("evaluation.step", "evaluation.steps"),
        ("widnow.size", "window.size"),
        ("evaluation.num_inference_steps", "evaluation.steps"),
        ("evaluation.num_images_per_prompt", "evaluation.images_per_prompt"),
        ("evaluation.num_prompts", "evaluation.prompts"),
        ("evaluation.flow_shift", "evaluation.shift"),
        ("evaluation.interval", "evaluation.every"),
        ("evaluation.guidance_scale", "model.guidance"),
        ("eval.num_steps", "evaluation.steps"),
        ("optimizer.epsilon", "optimizer.options"),
        ("optimizer.clip", "optimizer.max_grad_norm"),
        ("model.optimizer_type", "optimizer.name"),
    ],
)
def test_a_setting_is_known_by_its_other_names(given: str, meant: str) -> None:
    assert suggest.nearest_setting(given, known_keys()) == meant


def test_what_is_like_nothing_suggests_nothing() -> None:
    assert suggest.nearest_setting("colour", known_keys()) is None
    assert suggest.nearest_setting("x" * 100_000, known_keys()) is None


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        *[("mem", "memory_gb"), ("gpus", "gpus"), ("walltime", "time"), ("timeout", None)],
        *[("lr", None), ("slurm.time", "time"), ("slurm.timeout", "time"), ("slurm.seed", "seed")],
    ],
)
def test_what_a_job_asks_for_is_known_by_its_other_names(name: str, wish: str | None) -> None:
    assert suggest.slurm_wish(name, known_keys()) == wish


@pytest.mark.parametrize("base", [r'"a\0b"', "a" * 5000, "a/" * 3000])
def test_a_base_that_is_no_path_is_an_error_with_its_line(base: str, tmp_path: Path) -> None:
    (said,) = errors(f"seed: 1\nbase: {base}\n", tmp_path)
    assert said.startswith("run.yaml:2: ")
    assert len(said) < 200


def errors(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "run.yaml")
    return [str(one).replace(f"{tmp_path}/", "") for one in raised.value.errors]


def test_wrong_indentation_has_a_hint(tmp_path: Path) -> None:
    said = errors("window:\nsize: 4\niterations: 5\nsampler:\n  steps: 8\n  seed: 1\n", tmp_path)
    assert said == [
        "run.yaml:1: window: expected keys with values below it, not None",
        "run.yaml:2: size: unknown key; did you mean window.size? It belongs below window, "
        "indented",
        "run.yaml:6: sampler.seed: unknown key; seed belongs at the top level, not below sampler; "
        "indent it less",
    ]


def test_a_section_in_capitals_is_known(tmp_path: Path) -> None:
    (said,) = errors("Window: {size: 4}\n", tmp_path)
    assert said == "run.yaml:1: Window: unknown key; did you mean window?"


def test_all_errors_of_a_run_are_said_at_once_even_what_does_not_fit_together(
    tmp_path: Path,
) -> None:
    said = errors(
        "lr: 1\nseed: -1\nsampler: {kernel: x}\nrewards: {classes: {a: my.py:Red}}\n", tmp_path
    )
    assert [one.split(": ")[1] for one in said] == [
        *("lr", "seed", "sampler.kernel", "rewards.classes.a")
    ]
    said = errors(
        "lr: 1\nwindow: {count: 9}\nobjective: {updates: 40}\noptimizer: {name: adam}\n", tmp_path
    )
    assert [one.split(":")[1] for one in said] == ["1", "2"]
    said = errors("lr: 1\nobjective: {updates: 40}\noptimizer: {name: adam}\n", tmp_path)
    assert [one.split(":")[1] for one in said] == ["1", "2", "3"]
    names = "rewards:\n  train: {compostion: 1.0}\n  held_out: [pallete]\n"
    names += "optimizer: {name: adam}\nobjective: {updates: 40}\n"
    wrong = "  classes: {warm: a.Warm}\nmodel: {name: flux1}\nsampler: {kernel: sde}\n"
    assert [one.split(":")[1] for one in errors(names, tmp_path)] == ["2", "3", "4", "5"]
    said = errors(names.replace("optim", f"{wrong}optim"), tmp_path)
    assert [one.split(":")[1] for one in said] == [*"2345678"]


@pytest.mark.parametrize(
    "text",
    [
        "window: {size: x, start: 22}\nsampler: {steps: 23}\n",
        "sampler: {steps: x}\nwindow: {start: 24}\n",
        "rollout: {group_size: x}\nobjective: {updates: 40}\n",
        "rewards: {train: {composition: x}, held_out: [composition]}\n",
        "model: {name: scens, height: 32}\nevaluation: {shift: dynamic}\n",
    ],
)
def test_what_a_wrong_section_may_make_is_not_said(text: str, tmp_path: Path) -> None:
    assert len(errors(text, tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("myrewards.py:Red", "write myrewards:Red, without .py"),
        ("rewards/mine.py:Red", "write rewards.mine:Red, without .py"),
        ("./mine.py:Red", "write mine:Red, without .py"),
        ("myrewards.Red", "write myrewards:Red"),
        ("myrewards.py", "write myrewards:Class, without .py"),
        ("my-rewards:", "write my-rewards:Class"),
        ("", "write module:Class"),
    ],
)
def test_a_class_is_named_as_python_imports_it(path: str, fix: str, tmp_path: Path) -> None:
    (said,) = errors(f"rewards:\n  classes:\n    red: '{path}'\n", tmp_path)
    assert said.startswith("run.yaml:3: rewards.classes.red: ")
    assert fix in said


def test_a_file_is_found_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps" / "search").mkdir(parents=True)
    (tmp_path / "sweeps" / "smoke.yaml").write_text("seed: 1")
    (tmp_path / "sweeps" / "search" / "window.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path)
    for given, found in (
        ("smoke", "sweeps/smoke.yaml"),
        ("smoke.yml", "sweeps/smoke.yaml"),
        ("smok.yaml", "sweeps/smoke.yaml"),
        ("window", "sweeps/search/window.yaml"),
        ("sweeps/smoek.yaml", "sweeps/smoke.yaml"),
    ):
        with pytest.raises(ConfigError, match=rf"no such file; did you mean {found}\?"):
            load_config(Path(given))
