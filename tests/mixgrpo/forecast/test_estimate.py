"""A run's forecast is what the run takes: parameters, memory, operations, evaluations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.forecast.architecture import KNOWN, Architecture, architecture
from mixgrpo.forecast.batches import Batches
from mixgrpo.forecast.estimate import describe, memory_lines
from mixgrpo.forecast.footprint import Footprint, Pass, footprint
from mixgrpo.forecast.memory import Estimate, update_peak
from mixgrpo.models.adapters import add_lora
from mixgrpo.settings.config import ModelConfig, RunConfig
from mixgrpo.settings.configfile import load_config

PRESETS = Path(__file__).parents[3] / "sweeps" / "presets"
TOKENS, TEXT = 64, 16
SIZES: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def flux(device: str = "cpu") -> Any:
    import diffusers

    kind: Any = diffusers.FluxTransformer2DModel
    with torch.device(device):
        return kind(**SIZES).eval()


def inputs(batch: int) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(batch, TOKENS, 64),
        "encoder_hidden_states": torch.randn(batch, TEXT, SIZES["joint_attention_dim"]),
        "pooled_projections": torch.randn(batch, SIZES["pooled_projection_dim"]),
        "timestep": torch.rand(batch),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": torch.zeros(TOKENS, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def made(device: str, lora: bool, checkpointing: bool) -> Any:
    network = flux(device)
    if lora:
        add_lora(network, ModelConfig(train="lora", lora_rank=4), 0)
    if checkpointing:
        network.enable_gradient_checkpointing()
    return network


def traced(lora: bool, checkpointing: bool, bf16: bool = False, gradient: bool = True) -> Footprint:
    network = made("meta", lora, checkpointing)

    def prepare() -> Pass:
        given = inputs(3)
        return lambda: network(**given, return_dict=False)[0]

    return footprint([network], prepare, gradient, bf16, as_on="cpu")


def saved_by(network: Any, bf16: bool) -> int:
    """Bytes that autograd truly keeps, counted once for each storage; weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    given = inputs(3)
    weights |= {t.untyped_storage().data_ptr() for t in given.values()}
    result: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            result[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        network(**given, return_dict=False)
    return sum(result.values())


def peak_of(network: Any, reference: Any = None) -> int:
    """The most bytes that the CPU's allocator gave out at a time in a forward and backward, with
    a forward of the reference between them."""
    from torch.profiler import ProfilerActivity, profile

    given = inputs(3)
    network(**given, return_dict=False)[0].sum().backward()  # gradients are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = network(**given, return_dict=False)[0]
        if reference is not None:
            with torch.no_grad():
                base = reference(**given, return_dict=False)[0]
            out = out + base
            del base
        out.backward(torch.ones_like(out))
        del out
    alive = peak = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_a_forward_leaves_behind_is_what_autograd_keeps(
    lora: bool, checkpointing: bool, bf16: bool
) -> None:
    kept = saved_by(made("cpu", lora, checkpointing), bf16)
    assert traced(lora, checkpointing, bf16).saved == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_that_of_the_allocator(checkpointing: bool) -> None:
    real = peak_of(made("cpu", True, checkpointing))
    assert traced(True, checkpointing).peak == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_an_update_has_the_reference_in_it(checkpointing: bool) -> None:
    real = peak_of(made("cpu", False, checkpointing), made("cpu", False, checkpointing))
    update = traced(False, checkpointing)
    forward = traced(False, checkpointing, gradient=False)
    assert update_peak(update, forward) == pytest.approx(real, rel=0.1)
    assert update_peak(update, None) == update.peak
    if not checkpointing:  # else computing blocks again takes more
        assert update.peak < 0.97 * update_peak(update, forward)


def test_checkpointing_saves_memory_and_costs_a_forward() -> None:
    plain, again = traced(True, False), traced(True, True)
    forward = traced(True, False, gradient=False)
    assert forward.saved == 0
    assert again.saved < plain.saved / 5
    assert again.peak < plain.peak / 2
    # All blocks but for the last one's output are computed again, and no more than the forward.
    assert 0.8 * forward.flops < again.flops - plain.flops < forward.flops


def flux_flops() -> int:
    """By hand, of one latent: 2 for every weight that a token meets, 4 d for a pair of tokens."""
    width = SIZES["attention_head_dim"] * SIZES["num_attention_heads"]
    both = TOKENS + TEXT
    attention = 4 * both**2 * width
    double = both * 2 * width * (4 * width + 8 * width) + 2 * 2 * width * 6 * width
    single = both * 2 * width * (3 * width + 4 * width + 5 * width) + 2 * width * 3 * width
    embedded = 2 * (
        2 * (256 * width + width**2) + (SIZES["pooled_projection_dim"] * width + width**2)
    )
    ends = 2 * TOKENS * 64 * width * 2 + 2 * TEXT * SIZES["joint_attention_dim"] * width
    last = 2 * width * 2 * width
    blocks = SIZES["num_layers"] * (double + attention)
    blocks += SIZES["num_single_layers"] * (single + attention)
    return int(blocks + embedded + ends + last)


def test_operations_are_those_of_the_formula_and_of_torchs_counter() -> None:
    result = traced(False, False, gradient=False).flops
    assert result == 3 * flux_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        flux()(**inputs(3))
    # The counter does not know the CPU's attention, whose two products are left out of it.
    width = SIZES["attention_head_dim"] * SIZES["num_attention_heads"]
    attention = 4 * (TOKENS + TEXT) ** 2 * width * 5
    assert counter.get_total_flops() in (result, result - 3 * attention)


def config(preset: str, tmp_path: Path, *overrides: str) -> RunConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na house\n")
    if preset != "scenes":
        overrides = (f"prompts.train={prompts}", f"prompts.held_out={prompts}", *overrides)
    return load_config(PRESETS / f"{preset}.yaml", list(overrides))


@pytest.mark.parametrize(
    ("repository", "parameters"),
    [  # counted from the sizes of the published files: 11.9, 2.24 and 8.06 billion
        ("black-forest-labs/FLUX.1-dev", 11_901_408_320),
        ("black-forest-labs/FLUX.1-schnell", 11_891_178_560),
        ("stabilityai/stable-diffusion-3.5-medium", 2_243_171_520),
        ("stabilityai/stable-diffusion-3.5-large", 8_056_627_520),
    ],
)
def test_known_models_have_their_size(repository: str, parameters: int, tmp_path: Path) -> None:
    preset = "flux" if "FLUX" in repository else "sd35-medium"
    extra = ["model.guidance=null"] if "schnell" in repository else []
    result = architecture(
        config(preset, tmp_path, f"model.checkpoint={repository}", "model.revision=none", *extra)
    )
    assert isinstance(result, Architecture)
    policy = result.policy(result.vae() if result.vae else None)
    assert sum(p.numel() for p in policy.network.parameters()) == parameters
    assert result.source == f"the built-in sizes of {repository}"
    assert set(KNOWN[repository]) - {"transformer", "vae"} == set(result.encoders)


@pytest.mark.parametrize("kind", ["flux", "sd3", "qwen-image"])
def test_a_folder_gives_the_sizes_of_its_own_weights(kind: str, tmp_path: Path) -> None:
    import diffusers

    from tests.mixgrpo.models import tiny

    write: Callable[[Path], Path] = getattr(tiny, f"write_{kind.replace('-', '_')}")
    folder = write(tmp_path / "model")
    name = json.loads((folder / "transformer" / "config.json").read_text())["_class_name"]
    loaded = getattr(diffusers, name).from_pretrained(folder / "transformer")
    preset = "flux-lora" if kind == "flux" else "sd35-medium"
    targets = "model.lora_targets=[to_q]"
    cfg = "null" if kind == "flux" else "4.5"
    settings = config(
        preset, tmp_path, f"model.name={kind}", f"model.checkpoint={folder}", "model.height=64",
        "model.width=64", targets, "model.text_tokens=8", "rollout.prompts=2", f"model.cfg={cfg}",
    )  # fmt: skip
    result = architecture(settings)
    assert isinstance(result, Architecture)
    estimate = Estimate.of(settings, result, Ranks(), "cuda")
    add_lora(loaded, settings.model, 0)
    trained = sum(p.numel() for p in loaded.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in loaded.parameters()) - trained
    assert estimate.weights == (frozen, trained)
    text = describe(settings, Ranks())
    assert f"{frozen:,} parameters, frozen" in text
    assert f"{trained:,} parameters, trained" in text
    assert ("2 forwards per evaluation" in text) == (kind != "flux")


def test_the_embedded_task_is_described_with_the_counts_of_its_plan(tmp_path: Path) -> None:
    text = describe(config("scenes", tmp_path), Ranks())
    # 8 (1 + 12 * 24) + 8 * 4 * (1 + 3 * 3), and a tenth with gradient: as iteration 0 counts them.
    assert "in the first iteration 2,632, 320 of them with gradient" in text
    assert "321,584 parameters, all trained" in text
    assert "1 forward per evaluation" in text


def test_of_a_model_of_ones_own_only_evaluations_are_said(tmp_path: Path, toy_site: None) -> None:
    settings = load_config(
        PRESETS / "mixgrpo.yaml",
        ["model.name=toy", "rewards.train={brightness: 1.0}", "rewards.held_out=[]"],
    )
    text = describe(settings, Ranks())
    assert "in the first iteration 2,632" in text
    assert "of which only the evaluations are known" in text
    assert "GiB" not in text


def test_what_is_not_there_is_said_without_asking_a_hub(tmp_path: Path) -> None:
    text = describe(config("flux", tmp_path, "model.checkpoint=nobody/nothing"), Ranks())
    assert 'hf download nobody/nothing --include "*.json"' in text
    with pytest.raises(ConfigError, match=r"no transformer/config\.json"):
        describe(config("flux", tmp_path, f"model.checkpoint={tmp_path}"), Ranks())


def test_shards_divide_what_is_kept_and_copies_do_not(tmp_path: Path) -> None:
    settings = config("scenes", tmp_path)
    result = architecture(settings)
    assert isinstance(result, Architecture)
    alone, copies, shards = (
        sum(item.bytes for item in Estimate.of(settings, result, ranks, "cuda").resident())
        for ranks in (Ranks(), Ranks(0, 4), Ranks(0, 4, sharded=True))
    )
    # Weights, average, gradients and two moments in float32.
    assert alone == copies == 4 * 5 * 321_584
    assert shards == alone / 4


def whole_flux(tmp_path: Path, ranks: Ranks, *overrides: str) -> Estimate:
    """All that is said of FLUX but for its passes, which would take long to trace."""
    settings = config("flux", tmp_path, "rollout.prompts=3", *overrides)
    result = architecture(settings)
    assert isinstance(result, Architecture)
    nothing = Footprint(0, 0, 0)
    batches = Batches.of(settings, ranks.size)
    return Estimate(
        settings, result, ranks, (0, 11_901_408_320), 0, batches, nothing, nothing, None, nothing,
        None, None,
    )  # fmt: skip


def test_while_it_is_loaded_every_rank_has_the_whole_network(tmp_path: Path) -> None:
    whole = 4 * 11_901_408_320
    shards, alone = Ranks(0, 32, sharded=True), Ranks()
    base = ("compute.offload=true", "objective.kl_weight=0")
    result = whole_flux(tmp_path, shards, *base).before_training()
    phase = result["while the network is loaded, before it is sharded"]
    assert sum(phase.values()) == whole
    text = "\n".join(memory_lines(whole_flux(tmp_path, shards, *base)))
    assert "peak (while the network is loaded, before it is sharded)   44.34" in text
    assert not any(
        "sharded" in name for name in whole_flux(tmp_path, alone, *base).before_training()
    )
    twice = whole_flux(tmp_path, shards, "compute.offload=true", "objective.kl_weight=0.1")
    phase = twice.before_training()["while the reference model is loaded, before it is sharded"]
    assert sum(phase.values()) == whole + 2 * whole // 32


def test_the_reference_of_a_whole_network_brings_a_vae_of_its_own(tmp_path: Path) -> None:
    sizes = [
        sum(
            item.bytes
            for item in whole_flux(tmp_path, Ranks(), f"objective.kl_weight={weight}").resident()
        )
        for weight in (0, 0.1)
    ]
    vae = 83_819_683  # parameters of FLUX's
    kept = 2 if config("flux", tmp_path).compute.precision == "bf16" else 4
    assert sizes[1] - sizes[0] == pytest.approx(4 * 11_901_408_320 + kept * vae, rel=1e-5)


def test_memory_of_the_host_is_said(tmp_path: Path) -> None:
    result = whole_flux(tmp_path, Ranks(0, 32, sharded=True), "compute.offload=true").host()
    whole = 4 * 11_901_408_320
    assert result["the network, while it is loaded"] == whole
    # Weights, their average and two moments are gathered by the first rank.
    assert result["a checkpoint being written, on the first rank"] == 4 * whole
    assert any("offload" in name for name in result)
    result = whole_flux(tmp_path, Ranks(), "compute.offload=false").host()
    assert not any("offload" in name for name in result)


@pytest.mark.parametrize(
    ("overrides", "size", "batch", "held"),
    [
        ([], 1, 128, 128),
        (["compute.micro_batch=5"], 1, 5, 128),
        (["evaluation.images_per_prompt=3"], 1, 126, 126),  # 42 prompts
        (["evaluation.prompts=10", "evaluation.images_per_prompt=2"], 4, 6, 6),  # 3 prompts a rank
    ],
)
def test_an_evaluation_holds_a_slice_of_images(
    overrides: list[str], size: int, batch: int, held: int, tmp_path: Path
) -> None:
    settings = config("scenes", tmp_path, *overrides)
    batches = Batches.of(settings, size)
    assert (batches.evaluation, batches.held) == (batch, held)
    result = architecture(settings)
    assert isinstance(result, Architecture)
    estimate = Estimate.of(settings, result, Ranks(0, size), "cuda")
    phase = estimate.phases()["evaluating"]
    # Parts and the whole that they are joined to, in float32.
    assert phase["images of a slice, in parts and joined"] == 2 * held * 3 * 16 * 16 * 4
    if size == 1 and not overrides:
        forward = 128 / batches.rollout * estimate.forward.peak
        assert phase["sampling 128 latents"] == pytest.approx(forward, rel=0.05)


def test_an_evaluation_of_a_pipeline_decodes_a_whole_batch(tmp_path: Path) -> None:
    from tests.mixgrpo.models import tiny

    folder = tiny.write_flux(tmp_path / "model")
    settings = config(
        "flux-lora", tmp_path, f"model.checkpoint={folder}", "model.height=64", "model.width=64",
        "model.text_tokens=8", "rollout.prompts=1", "rollout.group_size=2",
        "evaluation.images_per_prompt=4", "compute.micro_batch=null", "objective.best_of=null",
        "objective.updates=1", "compute.vae_tiling=false", "compute.offload=false",
    )  # fmt: skip
    result = architecture(settings)
    assert isinstance(result, Architecture)
    estimate = Estimate.of(settings, result, Ranks(), "cuda")
    assert (estimate.batches.decode, estimate.batches.evaluation) == (2, 12)
    assert estimate.decode is not None
    assert estimate.evaluation_decode is not None
    decode = estimate.evaluation_decode.peak
    assert decode == pytest.approx(6 * estimate.decode.peak, rel=0.02)
    phase = estimate.phases()["evaluating"]
    largest = max(decode, estimate.evaluation.peak)
    assert sum(phase.values()) - largest == 12 * (2 * 3 * 64 * 64 + 2 * 16 * 8 * 8) * 4


def test_guidance_doubles_what_a_forward_of_as_many_latents_takes(tmp_path: Path) -> None:
    from tests.mixgrpo.models import tiny

    folder = tiny.write_sd3(tmp_path / "model")
    made = []
    for cfg in ("null", "4.5"):
        settings = config(
            "sd35-medium", tmp_path, f"model.checkpoint={folder}", "model.height=64",
            "model.width=64", "model.text_tokens=8", "rollout.prompts=2", f"model.cfg={cfg}",
            "compute.micro_batch=3", "model.lora_targets=[to_q]",
        )  # fmt: skip
        result = architecture(settings)
        assert isinstance(result, Architecture)
        made.append(Estimate.of(settings, result, Ranks(), "cuda"))
    plain, guided = made
    assert plain.batches == guided.batches
    assert guided.forward.flops == pytest.approx(2 * plain.forward.flops, rel=0.01)
    # Both halves are put together before the forward and taken apart after it.
    assert 1.9 < guided.forward.peak / plain.forward.peak < 2.6
    assert 1.9 < guided.update.peak / plain.update.peak < 2.6
    assert "a forward of 3 latents" in plain.phases()["sampling"]
    assert "a forward of 3 latents (6 with guidance)" in guided.phases()["sampling"]


@pytest.mark.parametrize(
    ("overrides", "rollout", "update"),
    [
        ([], 96, 72),  # 8 prompts x 3 images x the 3 steps that are not shared
        (["compute.micro_batch=5"], 5, 5),
        (["rollout.block=2"], 24, 72),
        (["rollout.noise=own"], 96, 96),
        (["objective.updates=1"], 96, 96),
        (["window.fraction=0.5"], 96, 48),
    ],
)
def test_batches_are_those_that_the_trainer_makes(
    overrides: list[str], rollout: int, update: int, tmp_path: Path
) -> None:
    from benchmarks.floor import recorded
    from mixgrpo.training.trainer import Trainer

    settings = config("scenes", tmp_path, *overrides)
    expected = Batches.of(settings, 1)
    assert (expected.rollout, expected.update) == (rollout, update)
    trainer = Trainer(settings, Ranks())
    with recorded(trainer) as calls:
        trainer.iterate(0)
    assert max(c.rows for c in calls if not c.gradient) == rollout
    assert max(c.rows for c in calls if c.gradient) == update


def test_norms_are_in_full_precision_as_autocast_has_them_on_cuda() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.first(x))
            assert normed.dtype == self.expected
            return normed

    for as_on, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16)):
        with torch.device("meta"):
            net = Net()
        net.expected = dtype  # type: ignore[assignment]
        run = lambda net=net: (lambda x: lambda: net(x))(torch.zeros(2, 8))  # noqa: E731
        footprint([net], run, True, True, as_on)


def test_networks_of_rewards_have_their_published_size() -> None:
    # open_clip's table of models: ViT-H-14 has 986.11 million parameters.
    from mixgrpo.forecast.reward_sizes import REWARD_NETWORKS

    result = {
        name: sum(p.numel() for p in build().parameters()) / 1e6
        for name, build in REWARD_NETWORKS.items()
        if build is not None
    }
    assert result["hps"] == result["pickscore"] == pytest.approx(986.11, abs=0.005)
    # ImageReward's BLIP by hand: ViT-L/16, and a BERT base whose layers also look at the image.
    wide, narrow = 1024, 768
    image = 24 * (12 * wide**2 + 13 * wide) + (narrow + 1 + 1 + 197 + 2) * wide
    looking = 2 * (narrow**2 + narrow) + 2 * (wide * narrow + narrow) + 2 * narrow
    layer = 12 * narrow**2 + 13 * narrow + looking
    text = (30524 + 512 + 2) * narrow + 12 * layer
    assert result["imagereward"] == pytest.approx((image + text) / 1e6)
    # The image side of CLIP ViT-L/14, with its projection.
    side = 24 * (12 * wide**2 + 13 * wide) + (3 * 14**2 + 1 + 257 + 4 + narrow) * wide
    assert result["aesthetic"] == pytest.approx(side / 1e6)
