"""Optimizers by name, their learning rate, and their state through a checkpoint."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import checkpoint
from mixgrpo.settings.config import OptimizerConfig
from mixgrpo.training.optimizer import (
    learning_rate,
    load_state,
    make_optimizer,
    set_learning_rate,
    state_tensors,
)
from tests.mixgrpo import children

Names = dict[str, nn.Parameter]
MODULE = "optimizers_of_the_test"


class Counting(torch.optim.Optimizer):
    """Keeps numbers of every type beside a tensor, and one in its group, and needs them all."""

    def __init__(self, params: Any, lr: float = 1e-3, power: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "power": power, "pace": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["pace"] *= 0.9
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, sum=0.0, odd=False, mean=torch.zeros_like(p))
                state["step"] += 1
                state["sum"] += float(p.grad.abs().sum())
                state["odd"] = not state["odd"]
                state["mean"].lerp_(p.grad, 1 / state["step"])
                rate = group["lr"] * group["pace"] / (1 + state["sum"]) ** group["power"]
                p.sub_(state["mean"], alpha=rate * (2 if state["odd"] else 1))


class Anything(torch.optim.SGD):
    """Names none of its arguments."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)


class Listing(Counting):
    """Keeps what is no tensor and no number."""

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["past"] = [1.0]


class Central(Counting):
    """Keeps state that belongs to no weight."""

    def step(self, closure: Any = None) -> None:
        self.state["everything"] = {"step": 1}


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizers of this file under a name that can be imported."""
    monkeypatch.setitem(sys.modules, MODULE, sys.modules[__name__])


def config(name: str = "adamw", **settings: Any) -> OptimizerConfig:
    return OptimizerConfig(name=name, **{"lr": 1e-2, **settings})


def parameters(*shapes: tuple[int, ...]) -> Names:
    generator = torch.Generator().manual_seed(0)
    shapes = shapes or ((4, 3), (5, 4))
    return {
        f"layer.{i}.weight": nn.Parameter(torch.randn(shape, generator=generator))
        for i, shape in enumerate(shapes)
    }


def advance(optimizer: torch.optim.Optimizer, names: Names, steps: range) -> None:
    """Steps along gradients that depend on the weights and on the step's number."""
    for i in steps:
        for p in names.values():
            p.grad = torch.sin(3 * p.detach() + i)
        optimizer.step()


def equal(a: Names, b: Names) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Optimizers by name


def test_adamw_is_what_the_trainer_always_made() -> None:
    ours, theirs = parameters((4, 3), (7,)), parameters((4, 3), (7,))
    made = make_optimizer(config(betas=(0.8, 0.95), weight_decay=0.1), iter(ours.values()))
    known = torch.optim.AdamW(theirs.values(), 1e-2, (0.8, 0.95), weight_decay=0.1, fused=True)
    assert made.param_groups[0]["fused"]
    advance(made, ours, range(5))
    advance(known, theirs, range(5))
    assert equal(ours, theirs)


def test_options_reach_adamw_and_may_turn_fused_off() -> None:
    made = make_optimizer(config(options={"eps": 1e-3, "fused": None}), parameters().values())
    assert made.defaults["eps"] == 1e-3
    assert made.defaults["fused"] is None


@pytest.mark.parametrize("name", ["torch.optim.Muon", "torch.optim:Muon", "torch.optim._muon.Muon"])
def test_an_import_path_gets_the_settings_that_it_takes(name: str) -> None:
    made = make_optimizer(
        config(name, weight_decay=0.3, options={"momentum": 0.5}), parameters().values()
    )
    assert type(made) is torch.optim.Muon
    assert {k: made.defaults[k] for k in ("lr", "weight_decay", "momentum")} == {
        "lr": 1e-2,
        "weight_decay": 0.3,
        "momentum": 0.5,
    }


def test_an_optimizer_that_names_no_arguments_gets_the_options() -> None:
    made = make_optimizer(
        OptimizerConfig(
            name=f"{MODULE}.Anything", lr=OptimizerConfig().lr, options={"momentum": 0.5}
        ),
        parameters().values(),
    )
    assert made.defaults["momentum"] == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "no_such_package.Muon"}, ["optimizer.name no_such_package.Muon", "imported"]),
        ({"name": "torch.optim.Moun"}, ["optimizer.name torch.optim.Moun", "imported"]),
        ({"name": "torch.nn.Linear"}, ["is no torch.optim.Optimizer", "torch.optim.Adafactor"]),
        ({"name": "math.pi"}, ["optimizer.name math.pi", "is no torch.optim.Optimizer"]),
        ({"name": "torch.optim.LBFGS"}, ["torch.optim.LBFGS", "name another"]),
        ({"name": "torch.optim.SGD", "betas": (0.8, 0.9)}, ["optimizer.betas", "(0.9, 0.999)"]),
        ({"name": f"{MODULE}.Counting", "weight_decay": 0.5}, ["optimizer.weight_decay 0.5"]),
        ({"options": {"momentum": 0.5}}, ["options momentum", "adamw takes no", "amsgrad"]),
        ({"name": f"{MODULE}.Anything", "lr": 1.0}, ["optimizer.lr 1.0", "takes no lr"]),
        (
            {"name": f"{MODULE}.Anything", "lr": 1e-5, "options": {"speed": 1}},
            ["refuses its settings", "speed", "optimizer.options"],
        ),
        ({"options": {"lr": 0.5}}, ["optimizer.options lr", "optimizer.lr"]),
        ({"options": {"params": 1}}, ["options params", "takes no such option"]),
        ({"options": {"foreach": True}}, ["refuses its settings", "foreach"]),
        ({"name": "torch.optim.SGD", "options": {"momentum": -1}}, ["refuses its settings", "-1"]),
        ({"options": {"eps": "small"}}, ["refuses its settings", "optimizer.options"]),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence(
    settings: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer(config(**settings), parameters().values())
    assert "\n" not in str(error.value)
    for text in said:
        assert text in str(error.value)


def test_muon_on_vectors_says_what_to_train_instead() -> None:
    with pytest.raises(ConfigError, match=r"torch\.optim\.Muon: refuses the weights.*2D.*lora"):
        make_optimizer(config("torch.optim.Muon"), parameters((4, 3), (7,)).values())


# The learning rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        # (1 + cos(0, 45, 90, 135 degrees)) / 2
        ("cosine", 2, [1 / 2, 1, 1, 0.8535533905932737, 0.5, 0.14644660940672624]),
    ],
)
def test_learning_rates_worked_out_by_hand(
    schedule: Any, warmup: int, expected: list[float]
) -> None:
    settings = config(lr=0.02, schedule=schedule, warmup=warmup)
    found = [learning_rate(settings, i, 6) for i in range(6)]
    assert found == pytest.approx([0.02 * e for e in expected], rel=1e-14)


@st.composite
def runs(draw: st.DrawFn) -> tuple[OptimizerConfig, int]:
    iterations = draw(st.integers(1, 400))
    return (
        config(
            lr=draw(st.floats(1e-9, 1.0)),
            schedule=draw(st.sampled_from(["constant", "linear", "cosine"])),
            warmup=draw(st.integers(0, iterations - 1)),
        ),
        iterations,
    )


@given(runs())
def test_the_rate_rises_to_lr_then_never_rises_and_is_never_0(
    run: tuple[OptimizerConfig, int],
) -> None:
    settings, iterations = run
    rates = [learning_rate(settings, i, iterations) for i in range(iterations)]
    peak = max(settings.warmup - 1, 0)
    assert rates[peak] == max(rates) == settings.lr
    assert min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if settings.schedule != "constant":
        assert learning_rate(settings, iterations, iterations) == 0


def test_a_long_cosine_does_not_end_early() -> None:
    settings, many = config(schedule="cosine"), 10**9
    expected = 1e-2 * (math.pi / 2 / many) ** 2  # the parabola at its foot
    assert learning_rate(settings, many - 1, many) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_next_step_is_taken_with_the_rate_that_was_set() -> None:
    names = parameters()
    optimizer = make_optimizer(config("torch.optim.SGD", weight_decay=0.0), names.values())
    before = {name: p.detach().clone() for name, p in names.items()}
    set_learning_rate(optimizer, 0.25)
    advance(optimizer, names, range(1))
    for name, p in names.items():
        assert torch.allclose(p, before[name] - 0.25 * torch.sin(3 * before[name]))


# State

RESUMABLE: list[tuple[str, dict[str, Any]]] = [
    ("adamw", {}),
    ("adamw", {"options": {"amsgrad": True, "fused": False}}),
    ("torch.optim.Muon", {}),
    ("torch.optim.SGD", {"options": {"momentum": 0.9}}),
    ("torch.optim.NAdam", {}),
    ("torch.optim.ASGD", {}),
    ("torch.optim.Rprop", {"weight_decay": 1e-4}),
    ("torch.optim.Adafactor", {}),
    ("torch.optim.Adagrad", {}),
    (f"{MODULE}.Counting", {"options": {"power": 0.25}}),
    (f"{MODULE}:Counting", {}),
]


@pytest.mark.parametrize(("name", "settings"), RESUMABLE)
@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_resumed_optimizer_goes_on_to_the_bit(
    tmp_path: Path, name: str, settings: dict[str, Any], done: int
) -> None:
    def fresh() -> tuple[torch.optim.Optimizer, Names]:
        names = parameters()
        return make_optimizer(config(name, **settings), names.values()), names

    uninterrupted, expected = fresh()
    advance(uninterrupted, expected, range(9))

    first, weights = fresh()
    advance(first, weights, range(done))
    checkpoint.save(tmp_path, done, {"optimizer": state_tensors(first, weights)}, {})
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    second, resumed = fresh()
    with torch.no_grad():
        for key, p in resumed.items():
            p.copy_(weights[key])
    load_state(second, resumed, found.tensors["optimizer"])
    advance(second, resumed, range(done, 9))
    assert equal(resumed, expected)


@pytest.mark.parametrize("fused", [True, False])
def test_what_was_loaded_is_a_copy(fused: bool) -> None:
    names = parameters()
    optimizer = make_optimizer(config(options={"fused": fused}), names.values())
    advance(optimizer, names, range(2))
    kept = {key: value.clone() for key, value in state_tensors(optimizer, names).items()}
    loaded = {key: value.clone() for key, value in kept.items()}
    load_state(optimizer, names, loaded)
    advance(optimizer, names, range(2))
    assert all(torch.equal(loaded[key], kept[key]) for key in kept)


def test_loading_leaves_nothing_of_before() -> None:
    names = parameters()
    optimizer = make_optimizer(config(), names.values())
    nothing = state_tensors(optimizer, names)
    advance(optimizer, names, range(2))
    load_state(optimizer, names, nothing)
    assert state_tensors(optimizer, names) == {}


def test_state_is_named_by_parameter_and_numbers_keep_their_type() -> None:
    names = parameters((2, 3))
    optimizer = make_optimizer(config(f"{MODULE}.Counting"), names.values())
    advance(optimizer, names, range(3))
    found = state_tensors(optimizer, names)
    name = "layer.0.weight"
    assert {key: (value.dtype, tuple(value.shape)) for key, value in found.items()} == {
        f"{name}/step:int": (torch.int64, ()),
        f"{name}/sum:float": (torch.float64, ()),
        f"{name}/odd:bool": (torch.bool, ()),
        f"{name}/mean": (torch.float32, (2, 3)),
        "/pace:float": (torch.float64, ()),
    }
    again = make_optimizer(config(f"{MODULE}.Counting"), names.values())
    load_state(again, names, found)
    for key in ("step", "sum", "odd"):
        theirs, ours = (o.state[names[name]][key] for o in (optimizer, again))
        assert type(theirs) is type(ours)
        assert theirs == ours
    assert again.param_groups[0]["pace"] == optimizer.param_groups[0]["pace"] == 0.9 * 0.9 * 0.9


def test_adamw_keeps_the_names_of_earlier_checkpoints() -> None:
    names = parameters((2, 3))
    optimizer = make_optimizer(config(), names.values())
    set_learning_rate(optimizer, 0.5)
    advance(optimizer, names, range(1))
    assert sorted(state_tensors(optimizer, names)) == [
        f"layer.0.weight/{key}" for key in ("exp_avg", "exp_avg_sq", "step")
    ]


@pytest.mark.parametrize(
    ("name", "said"), [("Listing", "past as a list"), ("Central", "belongs to no weight")]
)
def test_state_that_a_checkpoint_cannot_hold_is_named(name: str, said: str) -> None:
    names = parameters()
    optimizer = make_optimizer(config(f"{MODULE}.{name}"), names.values())
    advance(optimizer, names, range(1))
    with pytest.raises(ConfigError, match=f"optimizer.name: {name} keeps .*{said}.*another"):
        state_tensors(optimizer, names)


def test_state_of_another_model_is_refused() -> None:
    names = parameters()
    optimizer = make_optimizer(config(), names.values())
    with pytest.raises(RunError, match=r"no layer\.9\.weight"):
        load_state(optimizer, names, {"layer.9.weight/exp_avg": torch.zeros(2, 2)})


# Sharded parameters


def _sharded(names: Names, size: int) -> Names:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    return {
        name: nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)]))
        for name, p in names.items()
    }


def _resume_sharded(rank: int, size: int, store: Path, case: tuple[str, dict[str, Any]]) -> None:
    """A process's part of: train sharded, save whole state, go on sharded and not sharded."""
    from torch.distributed.tensor import DTensor

    sys.modules[MODULE] = sys.modules[__name__]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    name, settings = case

    def made(names: Names) -> torch.optim.Optimizer:
        return make_optimizer(config(name, **settings), names.values())

    names = _sharded(parameters(), size)
    optimizer = made(names)
    advance(optimizer, names, range(3))
    state = {key: value.clone() for key, value in state_tensors(optimizer, names).items()}
    assert not any(isinstance(value, DTensor) for value in state.values())
    assert all(
        value.shape == names[key.rpartition("/")[0]].shape
        for key, value in state.items()
        if key.endswith(("exp_avg", "exp_avg_sq", "momentum_buffer", "mean"))
    )

    def resumed(weights: Names) -> Names:
        again = made(weights)
        load_state(again, weights, state)
        for key, p in weights.items():
            for moment, value in again.state[p].items():
                before = optimizer.state[names[key]][moment]
                if isinstance(p, DTensor):
                    assert type(value) is type(before)
                if isinstance(value, DTensor):
                    assert value.placements == before.placements
                    assert torch.equal(value.to_local(), before.to_local())
        advance(again, weights, range(3, 6))
        return weights

    def whole(weights: Names) -> Names:
        return {k: p.full_tensor() for k, p in weights.items()}  # type: ignore[attr-defined]

    middle = whole(names)
    shards = resumed(_sharded({k: nn.Parameter(v) for k, v in middle.items()}, size))
    plain = resumed({k: nn.Parameter(v.detach().clone()) for k, v in middle.items()})
    advance(optimizer, names, range(3, 6))
    expected = whole(names)
    assert equal(whole(shards), expected)
    for key in plain:  # sums over shards may be rounded otherwise
        assert torch.allclose(plain[key], expected[key], rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.parametrize("case", [RESUMABLE[0], RESUMABLE[3]])
def test_sharded_state_is_saved_whole_and_sharded_again(
    tmp_path: Path, case: tuple[str, dict[str, Any]]
) -> None:
    """Two real processes; the 5 rows of one parameter do not divide evenly."""
    processes = [
        children.context().Process(target=_resume_sharded, args=(rank, 2, tmp_path / "store", case))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
