"""Tiny pipelines of FLUX and SD3 through the same commands and sweep files as the embedded task:
train, resume, evaluate, generate, export."""

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixgrpo import train
from mixgrpo.evaluation.held_out import evaluation_noise
from mixgrpo.generate import generate
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import Sampling, shift_of
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config, load_config
from mixgrpo.training import collect
from tests.mixgrpo.models.tiny import write_flux, write_sd3
from tests.mixgrpo.rank_children import SHARDS, launch
from tests.test_end_to_end import ROOT, reproducible, run

PRESETS = ROOT / "sweeps" / "presets"
PRESET = {"flux": "flux-lora.yaml", "sd3": "sd35-medium.yaml"}
FAMILIES = list(PRESET)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pipelines")
    return {"flux": write_flux(place / "flux"), "sd3": write_sd3(place / "sd3")}


@pytest.fixture(autouse=True)
def _embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", str(tmp_path / "embeddings"))


def small(pipeline: Path) -> dict[str, Any]:
    """What makes a preset small: sizes, and rewards that need no weights."""
    prompts = ROOT / "examples" / "prompts"
    return {
        "model.checkpoint": str(pipeline),
        "model.height": 32,
        "model.width": 48,
        "prompts.train": str(prompts / "train.txt"),
        "prompts.held_out": str(prompts / "held_out.txt"),
        "iterations": 3,
        "sampler.steps": 5,
        "window.size": 2,
        "window.interval": 1,
        "rollout.prompts": 2,
        "rollout.group_size": 4,
        "objective.updates": 2,
        "optimizer.lr": 1e-3,
        "rewards.train": {"red": 1.0},
        "rewards.held_out": ["spread"],
        "rewards.classes": {
            "red": "tests.mixgrpo.toy:Red",
            "spread": "tests.mixgrpo.toy:Spread",
        },
        "evaluation.every": 2,
        "evaluation.prompts": 2,
        "evaluation.steps": 3,
        "compute.micro_batch": 3,
        "output.checkpoint_every": 1,
        "output.samples": 2,
    }


def configuration(family: str, pipeline: Path, **own: Any) -> RunConfig:
    settings = small(pipeline) | own
    texts = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(PRESETS / PRESET[family], texts)


@pytest.mark.parametrize("name", ["flux", "flux-8gpu", "flux-lora", "sd35-medium"])
def test_the_presets_ask_for_nothing_but_prompts(name: str) -> None:
    config = load_config(PRESETS / f"{name}.yaml")
    assert config.sampler.steps == (10 if name == "sd35-medium" else 25)
    assert (config.model.height, config.model.cfg) == (
        (512, 4.5) if name == "sd35-medium" else (720, None)
    )
    assert run("mixgrpo.train", PRESETS / f"{name}.yaml", "--out", "/nowhere/x", expect=2).count(
        "prompts/train.txt"
    )


def test_what_a_run_takes_is_said_before_anything_is_loaded(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    settings = [f"--set={k}={json.dumps(v)}" for k, v in small(pipelines["flux"]).items()]
    command = ("mixgrpo.train", PRESETS / "flux-lora.yaml", *settings)
    text = run(*command, "--dry-run", "--processes", "2")
    network = parameters_in(pipelines["flux"])
    assert f"{network:,} parameters, frozen" in text
    assert "2 prompts x 4 images, over 2 ranks" in text
    peak = re.search(r"peak .* ([\d.]+)$", text, re.M)
    assert peak is not None
    assert 0 < float(peak[1]) < 1
    assert "--out" in run(*command, expect=2)
    place = ("--out", tmp_path / "run")
    assert "--dry-run" in run(*command, *place, "--sharded", expect=2)
    assert not (tmp_path / "run").exists()


def parameters_in(pipeline: Path) -> int:
    from safetensors import safe_open

    with safe_open(pipeline / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_run_ends_with_the_same_bytes(
    family: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    config = configuration(family, pipelines[family], **{"compute.precision": "fp32"})
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    assert train.run(config, calm) == "finished"
    asked: list[int] = []

    def after_one() -> bool:
        asked.append(1)
        return len(asked) > 1

    assert train.run(config, stopped, after_one) == "stopped"
    assert train.run(config, stopped) == "finished"
    for file in ("metrics.jsonl", "eval.jsonl"):
        assert reproducible(calm / file) == reproducible(stopped / file)
    weights = "weights/pytorch_lora_weights.safetensors"
    assert (calm / weights).read_bytes() == (stopped / weights).read_bytes()
    lines = reproducible(calm / "metrics.jsonl")
    assert [line["window_start"] for line in lines] == [0, 1, 2]
    assert all(line["grad_norm"] > 0 for line in lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_nothing_but_the_work(
    family: str, pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same iteration with every image evaluated on its own, one in each forward."""
    own = {"iterations": 1, "compute.precision": "fp32"}
    together = configuration(family, pipelines[family], **own)
    alone = configuration(family, pipelines[family], **own, **{"compute.micro_batch": 1})
    train.run(together, tmp_path / "together")
    monkeypatch.setattr(collect, "rollout", partial(collect.rollout, share=False))
    train.run(alone, tmp_path / "alone")
    a, b = (reproducible(tmp_path / n / "metrics.jsonl")[0] for n in ("together", "alone"))
    for key in ("reward_red_mean", "reward_red_std", "grad_norm"):
        assert a[key] == pytest.approx(b[key], rel=2e-3)
    assert a["evaluations_computed"] < b["evaluations_computed"]


def pixels_of_diffusers(pipeline: Any, family: str, policy: Any, prompt: str) -> torch.Tensor:
    """An image [3, H, W] by diffusers' own pipeline, from the noise of our first image."""
    from mixgrpo.models.flux import pack

    noise = evaluation_noise(0, [prompt], 1, policy.latent_shape)
    if family == "flux":
        more: dict[str, Any] = {"guidance_scale": 3.5, "latents": pack(noise)}
    else:
        # Its own spacing of the steps ends elsewhere (mixgrpo.models.sizes.schedule_shift).
        more = {"guidance_scale": 4.5, "latents": noise}
    more["sigmas"] = [1.0, 2 / 3, 1 / 3]
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        prompt=prompt, height=32, width=48, num_inference_steps=3, output_type="pt", **more
    )
    image: torch.Tensor = found.images[0].float()
    return image


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", ["lora", "full"])
def test_what_was_trained_loads_into_the_pipeline_of_diffusers(
    family: str, trained: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """From the same noise diffusers' own pipeline paints the run's image, and not the base's."""
    import diffusers

    own: dict[str, Any] = {"model.train": trained, "optimizer.lr": 0.02, "iterations": 2}
    if trained == "full":
        defaults = RunConfig().model.model_dump()
        own |= {f"model.{k}": defaults[k] for k in ("lora_targets",)}
    own |= {"compute.precision": "fp32", "optimizer.ema_decay": 0.0}
    config = configuration(family, pipelines[family], **own)
    folder = tmp_path / "run"
    train.run(config, folder)

    kind = getattr(diffusers, {"flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline"}[family])
    pipeline = kind.from_pretrained(pipelines[family])
    loaded = load_run(folder, device="cpu")
    prompt = "A red bicycle"
    base = pixels_of_diffusers(pipeline, family, loaded.policy, prompt)
    if trained == "lora":
        pipeline.load_lora_weights(folder / "weights")
    else:
        class_ = type(pipeline.transformer)
        pipeline.transformer = class_.from_pretrained(folder / "weights" / "transformer")
    theirs = pixels_of_diffusers(pipeline, family, loaded.policy, prompt)
    whole = tmp_path / "pipeline"
    run("mixgrpo.to_pipeline", folder, "--trust", "--out", whole)
    merged = pixels_of_diffusers(
        diffusers.DiffusionPipeline.from_pretrained(whole), family, loaded.policy, prompt
    )
    assert (merged - theirs).abs().max() < 1e-3

    sampling = Sampling(steps=3, shift=shift_of("dynamic", loaded.policy))
    ours = generate(loaded, sampling, [prompt], seed=0, images=1)[0, 0]
    moved, apart = (theirs - base).abs().max(), (theirs - ours).abs().max()
    # Embeddings are kept in bfloat16, and guidance multiplies what that rounds off.
    assert apart < 0.01
    assert moved > 10 * apart


def test_a_run_in_bfloat16_loses_nothing_of_its_adapters_as_a_pipeline(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """What they add is less than bfloat16 rounds off the weights beside them."""
    from diffusers import FluxPipeline

    config = configuration("flux", pipelines["flux"], iterations=1)
    assert config.compute.precision == "bf16"
    train.run(config, tmp_path / "run")
    run("mixgrpo.to_pipeline", tmp_path / "run", "--trust", "--out", tmp_path / "whole")
    base = FluxPipeline.from_pretrained(pipelines["flux"])
    before = {k: v.clone() for k, v in base.transformer.state_dict().items()}
    base.load_lora_weights(tmp_path / "run" / "weights")
    base.fuse_lora()
    base.unload_lora_weights()
    merged = FluxPipeline.from_pretrained(tmp_path / "whole").transformer.state_dict()
    for name, expected in base.transformer.state_dict().items():
        change = expected - before[name]
        assert (merged[name] - expected).norm() <= 1e-3 * change.norm() + 1e-9, name
    assert any(not torch.equal(merged[name], before[name]) for name in before)


def test_a_sweep_over_pipelines_is_run_judged_and_shown_by_the_same_commands(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    own = {family: small(pipelines[family]) for family in FAMILIES}
    file = tmp_path / "pipelines.yaml"
    text = {
        "name": "pipelines",
        "question": "Which of the pipelines?",
        "arms": {
            family: {"base": str(PRESETS / PRESET[family]), **own[family]} for family in FAMILIES
        },
        "reference": "flux",
        "measure": "spread",
        "seeds": 1,
    }
    file.write_text(yaml.safe_dump(text))
    runs, reports = tmp_path / "runs", tmp_path / "reports"
    places = ("--runs", runs, "--reports", reports)
    assert "2 of 2 runs finished" in run(
        "harness.sweep", file, *places, "--trust", "--executor", "inline"
    )
    assert (reports / "pipelines" / "index.html").exists()

    for family in FAMILIES:
        [folder] = [r.parent for r in runs.glob(f"pipelines/{family}-*/result.json")]
        asked = tmp_path / f"{family}.json"
        run("mixgrpo.evaluate", folder, "--trust", "--p-mix", "0.4", "--json", "--out", asked)
        judged = json.loads(asked.read_text())
        ways = ["base model", "pure", "p_mix 40 %"]
        rewards = ("red", "spread")
        policies = [(row["reward"], row["policy"]) for row in judged["rows"]]
        assert policies == [(reward, way) for reward in rewards for way in ways]
        # FLUX's own schedule depends on the resolution, SD3's does not.
        mu = 0.5 + 0.65 * (2 * 3 - 256) / (4096 - 256)
        assert judged["shift"] == pytest.approx(math.exp(mu) if family == "flux" else 3.0)
        result = json.loads((folder / "result.json").read_text())
        assert judged["rows"][1]["mean"] == pytest.approx(result["after"]["red"], abs=1e-5)
        whole = tmp_path / f"{family}-pipeline"
        run("mixgrpo.to_pipeline", folder, "--trust", "--out", whole)
        assert "is there already" in run(
            "mixgrpo.to_pipeline", folder, "--trust", "--out", whole, expect=2
        )
        # Another run begins where this one ended.
        next_ = configuration(family, whole, iterations=1)
        train.run(next_, tmp_path / f"{family}-next")
        [first, _] = reproducible(tmp_path / f"{family}-next" / "eval.jsonl")
        assert first["reward_red_mean"] == pytest.approx(result["after"]["red"], abs=2e-3)
    run("mixgrpo.generate", folder, "--trust", "--prompt", "A fox", "--out", tmp_path / "images")
    assert (tmp_path / "images" / "sheet.png").exists()


@pytest.mark.parametrize(("trained", "precision"), [("lora", "fp32"), ("full", "bf16")])
def test_two_ranks_share_the_encoding_and_the_network(
    trained: str,
    precision: str,
    pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As shards of FSDP2: frozen weights beside adapters; and masters in float32 with bfloat16 at
    work, beside the shards of a reference."""
    own = {"compute.precision": precision, "model.train": trained, "iterations": 2}
    own |= {"rewards.held_out": [], "objective.kl_weight": 0.1}
    if trained == "full":
        own |= {"model.lora_targets": RunConfig().model.lora_targets}
    config = configuration("flux", pipelines["flux"], **own)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", str(tmp_path / "of-two"))
    code, said = launch(
        SHARDS, "mixgrpo.train", str(file), "--trust", "--out", str(tmp_path / "two"), seconds=240
    )
    assert code == 0, said
    shards = list((tmp_path / "of-two").rglob("*.safetensors"))
    assert len(shards) == 2  # each rank encoded its share
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", str(tmp_path / "of-one"))
    train.run(config, tmp_path / "one")
    close = 1e-3 if precision == "fp32" else 0.1
    for a, b in zip(
        *(reproducible(tmp_path / n / "metrics.jsonl") for n in ("two", "one")), strict=True
    ):
        assert a["noise_floor"] == b["noise_floor"] == 0
        for key in ("reward_red_mean", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=close)
    for name in ("one", "two"):
        assert list((tmp_path / name / "weights").rglob("*.safetensors"))
