"""What a configuration asks of the network: adapters, precision, checkpointing, compilation.

On a real diffusers FLUX transformer, tiny and random, saved where the configuration finds it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mixgrpo import train
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.files import checkpoint
from mixgrpo.maths.randomness import normal
from mixgrpo.models.policy import make_policy, reference_of, velocity_of
from mixgrpo.runs.load import load_run
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.trainer import Trainer
from tests.mixgrpo import toy
from tests.mixgrpo.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("toy_site")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Configurations of a small run of the tiny scenes model."""
    file = tiny_model(tmp_path_factory.mktemp("tiny"))

    def make(**sections: Any) -> RunConfig:
        scenes = {
            "model": {"name": "scenes", "checkpoint": str(file), **sections.pop("model", {})},
            "rewards": {"train": {"brightness": 1.0}, "held_out": ["contrast"]},
            "evaluation": {"prompts": 2, "steps": 3},
            **sections,
        }
        return toy.config(**scenes)

    return make


def velocity_at(config: RunConfig) -> tuple[Callable[[], Tensor], nn.Module]:
    policy = make_policy(config, "cpu")
    velocity = velocity_of(policy, config, "cpu")
    x = normal((3, *policy.latent_shape), "x")
    conditioning = policy.encode(policy.train_prompts()[:3])
    return lambda: velocity(x, 0.7, conditioning), policy.network


def state_after(config: RunConfig, iterations: int = 2) -> tuple[dict[str, Tensor], list[Any]]:
    trainer = Trainer(config, Ranks())
    lines = [trainer.iterate(m) for m in range(iterations)]
    return {k: p.detach().clone() for k, p in trainer.parameters.items()}, lines


# ---- Adapters


def test_a_lora_run_from_its_folder_to_its_images(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(
        model={"train": "lora", "lora_rank": 3, "lora_targets": ["to_q", "to_out.0"]},
        objective={"kl_weight": 0.1, "updates": 2},
        optimizer={"lr": 1e-2},
    )
    assert train.run(config, tmp_path / "run") == "finished"
    lines = [json.loads(t) for t in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kl"] > 0
    kept = load_file(tmp_path / "run" / "checkpoints" / "000004" / "weights.safetensors")
    assert all(".lora_" in name for name in kept)
    assert {v.dtype for v in kept.values()} == {torch.float32}
    loaded = load_run(tmp_path / "run")
    base = make_policy(tiny(), "cpu")
    x = normal((2, *base.latent_shape), "x")
    conditioning = base.encode(base.train_prompts()[:2])
    plain = base.velocity(x, 0.7, conditioning)
    assert torch.equal(loaded.reference(x, 0.7, conditioning), plain)
    assert not torch.allclose(loaded.velocity(x, 0.7, conditioning), plain, atol=1e-4)
    assert torch.equal(load_run(tmp_path / "run", 0).velocity(x, 0.7, conditioning), plain)
    # What the run leaves for diffusers is the averaged adapter.
    exported = load_file(tmp_path / "run" / "weights" / "pytorch_lora_weights.safetensors")
    average = load_file(tmp_path / "run" / "checkpoints" / "000004" / "average.safetensors")
    assert len(exported) == len(average)
    for name, value in average.items():
        assert torch.equal(exported[f"transformer.{name.replace('.default.', '.')}"], value)


def test_the_reference_of_adapters_is_the_network_without_them(
    tiny: Callable[..., RunConfig],
) -> None:
    config = tiny(model={"train": "lora"})
    policy = make_policy(config, "cpu")
    reference = reference_of(policy, config, "cpu")
    x, conditioning = normal((1, *policy.latent_shape), "x"), policy.encode(["a red cross"])
    before = reference(x, 0.5, conditioning)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.3)
    assert torch.equal(reference(x, 0.5, conditioning), before)
    assert not torch.equal(policy.velocity(x, 0.5, conditioning), before)


# ---- Precision


def test_bf16_computes_in_bf16_and_keeps_everything_else_in_fp32(
    tiny: Callable[..., RunConfig],
) -> None:
    exact, _ = velocity_at(tiny())
    lowered, network = velocity_at(tiny(compute={"precision": "bf16"}))
    seen: list[torch.dtype] = []
    layer = next(m for m in network.modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    a, b = exact(), lowered()
    assert seen == [torch.bfloat16]
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert float((a - b).detach().norm() / a.detach().norm()) < 0.02
    trainer = Trainer(tiny(compute={"precision": "bf16"}, objective={"kl_weight": 0.1}), Ranks())
    line = trainer.iterate(0)
    assert line["noise_floor"] == 0
    state = trainer.state.tensors()
    assert {v.dtype for group in state.values() for v in group.values()} == {torch.float32}


def test_bf16_does_not_round_sigma(tiny: Callable[..., RunConfig]) -> None:
    """0.9995 and 1.0 are the same number in bf16; to the network they are not."""
    config = tiny(compute={"precision": "bf16"})
    policy = make_policy(config, "cpu")
    velocity = velocity_of(policy, config, "cpu")
    seen: list[Tensor] = []
    embedder = next(m for n, m in policy.network.named_modules() if n.endswith("time_proj"))
    embedder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x, conditioning = normal((1, *policy.latent_shape), "x"), policy.encode(["a red cross"])
    for sigma in (0.9995, 1.0):
        velocity(x, sigma, conditioning)
    assert [float(s) for s in seen] == pytest.approx([999.5, 1000.0])


def test_a_frozen_base_is_kept_in_bf16_beside_fp32_adapters(
    tiny: Callable[..., RunConfig],
) -> None:
    config = tiny(model={"train": "lora"}, compute={"precision": "bf16"})
    policy = make_policy(config, "cpu")
    dtypes = {p.requires_grad: p.dtype for p in policy.network.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    _, lines = state_after(config)
    assert lines[-1]["grad_norm"] > 0


# ---- Checkpointing and compilation


def test_gradient_checkpointing_computes_blocks_twice_to_the_same_end(
    tiny: Callable[..., RunConfig],
) -> None:
    forwards = {}
    for keeps in (False, True):
        velocity, network = velocity_at(tiny(compute={"gradient_checkpointing": keeps}))
        calls: list[int] = []
        block = network.get_submodule("single_transformer_blocks.0")
        block.register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        velocity().sum().backward()
        forwards[keeps] = len(calls)
    assert forwards == {False: 1, True: 2}
    plain, _ = state_after(tiny())
    again, lines = state_after(tiny(compute={"gradient_checkpointing": True}))
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-4)
    assert lines[0]["noise_floor"] == 0


def test_a_model_without_checkpointing_says_so() -> None:
    with pytest.raises(ConfigError, match=r"compute\.gradient_checkpointing: model toy"):
        make_policy(toy.config(compute={"gradient_checkpointing": True}), "cpu")


def test_a_compiled_network_gives_the_same(tiny: Callable[..., RunConfig]) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plain, _ = velocity_at(tiny())
    compiled, _ = velocity_at(tiny(compute={"compile": True}))
    torch.testing.assert_close(compiled(), plain(), atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] > 0


# ---- A run's folder


def test_what_is_no_run_and_what_it_has_not(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        load_run(tmp_path)
    config = tiny(iterations=2, output={"checkpoints_kept": 1})
    train.run(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="no checkpoint of iteration 1; it has: 2"):
        load_run(tmp_path / "run", 1)
    last, first = load_run(tmp_path / "run"), load_run(tmp_path / "run", 0)
    assert (last.iteration, first.iteration) == (2, 0)
    current = load_run(tmp_path / "run", averaged=False)
    weights = [dict(r.policy.network.state_dict()) for r in (last, first, current)]
    name = "proj_out.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


KINDS: dict[str, dict[str, Any]] = {
    "steps drawn per image": {
        "sampler": {"sde": "all", "kernel": "dance", "decode": "x0"},
        "window": {"size": 4, "count": 2, "strategy": "frozen"},
    },
    "own noise, random window": {
        "rollout": {"noise": "own"},
        "window": {"strategy": "random"},
    },
    "adapters by Muon": {
        "model": {"train": "lora", "lora_rank": 2},
        "optimizer": {"name": "torch.optim.Muon", "options": {"momentum": 0.8}, "lr": 1e-2},
    },
    "warm-up and cosine": {"optimizer": {"warmup": 2, "schedule": "cosine", "lr": 1e-2}},
    "bf16, checkpointing": {"compute": {"precision": "bf16", "gradient_checkpointing": True}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_of_any_kind_ends_with_the_same_bytes(
    kind: str, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny(**{k: dict(v) for k, v in KINDS[kind].items()})
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train.run(config, straight) == "finished"
    asked: list[int] = []
    assert train.run(config, stopped, lambda: bool(asked.append(1)) or len(asked) > 1) == "stopped"
    assert train.run(config, stopped) == "finished"
    for group in ("weights", "average", "optimizer"):
        name = f"checkpoints/000004/{group}.safetensors"
        assert (straight / name).read_bytes() == (stopped / name).read_bytes()

    def timeless(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        timed = ("seconds", "memory")
        return [{k: v for k, v in json.loads(t).items() if not k.startswith(timed)} for t in lines]

    assert len(timeless(stopped)) == 4
    assert timeless(stopped) == timeless(straight)


def test_a_reader_goes_along_with_a_run_that_prunes(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(iterations=2, output={"checkpoints_kept": 1})
    train.run(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    root = tmp_path / "run" / "checkpoints"
    load = checkpoint.load_file

    def pruned_meanwhile(file: Path) -> Any:
        """What a run that goes on does between the listing and the reading."""
        newest = int(file.parent.name)
        if newest < 7:
            later = root / f"{newest + 1:06d}"
            shutil.copytree(file.parent, later)
            manifest = json.loads((later / "manifest.json").read_text())
            (later / "manifest.json").write_text(json.dumps({**manifest, "iteration": newest + 1}))
            shutil.rmtree(file.parent)
        return load(file)

    monkeypatch.setattr(checkpoint, "load_file", pruned_meanwhile)
    assert load_run(tmp_path / "run").iteration == 7
