"""Low-rank adapters beside the FLUX transformer of the scenes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.errors import ConfigError
from mixgrpo.models.adapters import add_lora, without_adapters
from mixgrpo.models.scenes import ScenesPolicy
from mixgrpo.settings.config import ModelConfig

LORA = ModelConfig(train="lora", lora_rank=3, lora_alpha=5.0)


def policy(
    seed: int = 0, dtype: torch.dtype | None = None, model: ModelConfig = LORA
) -> ScenesPolicy:
    made = ScenesPolicy.tiny().to(dtype=dtype)
    add_lora(made.network, model, seed)
    return made


def velocity(of: ScenesPolicy) -> Tensor:
    prompts = of.train_prompts()[:3]
    latents = torch.randn(3, *of.latent_shape, generator=torch.Generator().manual_seed(5))
    return of.velocity(latents, torch.tensor([0.9, 0.5, 0.1]), of.encode(prompts))


def train_a_little(network: nn.Module, seed: int = 1) -> None:
    """Give every B, which is 0 at first, some values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".lora_B." in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_trained_ones_do() -> None:
    base, adapted = velocity(ScenesPolicy.tiny()), policy()
    assert torch.equal(velocity(adapted), base)
    train_a_little(adapted.network)
    assert (velocity(adapted) - base).abs().max() > 1e-3
    with without_adapters(adapted.network):
        assert torch.equal(velocity(adapted), base)
    assert not torch.equal(velocity(adapted), base)


@torch.no_grad()
def test_an_adapter_adds_a_low_rank_matrix_times_alpha_over_rank() -> None:
    adapted, merged = policy(), ScenesPolicy.tiny()
    train_a_little(adapted.network)
    values = trained(adapted.network)
    plain = dict(merged.network.named_parameters())
    for name, a in values.items():
        if ".lora_A." in name:
            b = values[name.replace("lora_A", "lora_B")]
            plain[name.partition(".lora_A")[0] + ".weight"] += 5.0 / 3 * b @ a
    assert torch.allclose(velocity(adapted), velocity(merged), atol=1e-5)


@torch.no_grad()
def test_adapters_come_back_after_an_exception_and_out_of_nested_uses() -> None:
    adapted = policy()
    train_a_little(adapted.network)
    before, wanted = velocity(adapted), list(trained(adapted.network))
    with pytest.raises(ZeroDivisionError), without_adapters(adapted.network):
        raise ZeroDivisionError
    assert torch.equal(velocity(adapted), before)
    with without_adapters(adapted.network):
        with without_adapters(adapted.network):
            base = velocity(adapted)
        assert torch.equal(velocity(adapted), base)
    assert torch.equal(velocity(adapted), before)
    assert list(trained(adapted.network)) == wanted


def test_only_adapters_are_trained_and_every_one_gets_a_gradient() -> None:
    adapted = policy()
    parameters = adapted.trainable_parameters()
    layers = [
        f"{block}.0.attn.{layer}"
        for block, ends in [
            ("transformer_blocks", ["to_q", "to_k", "to_v", "to_out.0"]),
            ("single_transformer_blocks", ["to_q", "to_k", "to_v"]),
        ]
        for layer in ends
    ]
    assert list(parameters) == [
        f"{layer}.lora_{x}.default.weight" for layer in layers for x in ("A", "B")
    ]
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert {p.shape[0] for name, p in parameters.items() if "lora_A" in name} == {3}

    before = {name: p.detach().clone() for name, p in adapted.network.named_parameters()}
    optimizer = torch.optim.SGD(parameters.values(), 0.1)
    for _ in range(2):  # A has no gradient while B is 0
        optimizer.zero_grad()
        velocity(adapted).square().mean().backward()
        optimizer.step()
    changed = [n for n, p in adapted.network.named_parameters() if not torch.equal(p, before[n])]
    assert sorted(changed) == sorted(parameters)


def test_gradients_flow_after_the_base_model_was_used() -> None:
    adapted = policy()
    train_a_little(adapted.network)
    ahead = velocity(adapted)
    with torch.no_grad(), without_adapters(adapted.network):
        base = velocity(adapted)
    (ahead - base).square().mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in trained(adapted.network).values())


def test_initial_values_depend_on_the_seed_and_the_layer_alone() -> None:
    def values(made: ScenesPolicy) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in trained(made.network).items()}

    torch.manual_seed(1)
    first = values(policy(7))
    torch.manual_seed(2)
    kept = torch.get_rng_state()
    same, other = values(policy(7)), values(policy(8))
    assert torch.equal(torch.get_rng_state(), kept)
    one = values(policy(7, model=LORA.model_copy(update={"lora_targets": ("attn.to_v",)})))
    lowered = values(policy(7, torch.bfloat16))
    a = [name for name in first if ".lora_A." in name]
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(torch.equal(first[name], lowered[name]) for name in first)
    assert len(one) == 4
    assert all(torch.equal(one[name], first[name]) for name in one)
    assert not any(torch.equal(first[name], other[name]) for name in a)
    assert len({float(first[name].sum()) for name in a}) == len(a)
    drawn = torch.cat([first[name].flatten() for name in a])
    assert float(drawn.std()) == pytest.approx(1 / 3, rel=0.15)  # 336 numbers: 4 standard errors


def test_a_base_in_bfloat16_has_adapters_in_float32() -> None:
    adapted = policy(dtype=torch.bfloat16)
    train_a_little(adapted.network)
    base = [p for p in adapted.network.parameters() if not p.requires_grad]
    assert {p.dtype for p in base} == {torch.bfloat16}
    assert {p.dtype for p in trained(adapted.network).values()} == {torch.float32}
    exact = policy()
    train_a_little(exact.network)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = velocity(adapted)
    prediction.square().mean().backward()
    velocity(exact).square().mean().backward()
    for mine, theirs in zip(
        trained(adapted.network).values(), trained(exact.network).values(), strict=True
    ):
        assert mine.grad.dtype == torch.float32
        assert torch.cosine_similarity(mine.grad.flatten(), theirs.grad.flatten(), 0) > 0.97


def test_a_base_in_float64_keeps_its_precision() -> None:
    adapted = policy(dtype=torch.float64)
    assert {p.dtype for p in adapted.network.parameters()} == {torch.float64}


def test_a_copy_of_an_adapted_network_stands_alone() -> None:
    adapted = policy()
    other = copy.deepcopy(adapted)
    train_a_little(other.network)
    with torch.no_grad():
        assert not torch.equal(velocity(adapted), velocity(other))


@pytest.mark.parametrize("target", ["to_z", "o_q", "attn", "transformer_blocks.0", "lora_A"])
def test_a_target_that_is_no_linear_layer_is_named_with_those_there_are(target: str) -> None:
    network = ScenesPolicy.tiny().network
    model = LORA.model_copy(update={"lora_targets": ("to_q", target)})
    with pytest.raises(ConfigError) as error:
        add_lora(network, model, 0)
    assert str(error.value).startswith("model.lora_targets: ")
    assert f"ends with {target};" in str(error.value)
    assert "attn.to_q" in str(error.value)
    assert len(trained(network)) == len(list(network.named_parameters()))  # left as it was


def test_a_target_among_other_modules_of_its_name_takes_the_linear_layers() -> None:
    """`0` ends to_out.0, which is linear, and net.0 and whole blocks, which are not."""
    made = policy(model=LORA.model_copy(update={"lora_targets": ("0",)}))
    assert {name.partition(".lora_")[0] for name in trained(made.network)} == {
        "transformer_blocks.0.attn.to_out.0"
    }


def test_a_model_without_linear_layers_can_only_be_trained_whole() -> None:
    with pytest.raises(ConfigError, match=r"model\.train to full"):
        add_lora(nn.Sequential(nn.LayerNorm(3)), LORA, 0)
