"""Ranks: alone in this process, and as two real processes on the CPU (gloo)."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixgrpo.compute.ranks import Ranks, join
from mixgrpo.errors import ConfigError
from tests.mixgrpo.rank_children import COPIES, ROWS, SHARDS, launch, problem
from tests.mixgrpo.toy import ROOT

Found = list[dict[str, Any]]


def _launched(flags: tuple[str, ...], folder: Path) -> Found:
    code, said = launch(flags, "tests.mixgrpo.rank_children", "everything", str(folder))
    assert code == 0, said
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return _launched(COPIES, tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return _launched(SHARDS, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module", params=["copies", "shards"])
def either(request: pytest.FixtureRequest) -> Found:
    found: Found = request.getfixturevalue(request.param)
    return found


@given(count=st.integers(0, 40), size=st.integers(1, 9))
def test_shares_cover_all_items_once_and_evenly(count: int, size: int) -> None:
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [i for indices, _ in shares for i in indices] == list(range(count))
    assert all(real == len(indices) for indices, real in shares)
    assert max(real for _, real in shares) - min(real for _, real in shares) <= 1


@given(count=st.integers(0, 40), size=st.integers(1, 9))
def test_sharded_ranks_have_equally_many_items(count: int, size: int) -> None:
    shares = [Ranks(rank, size, sharded=True).share(count) for rank in range(size)]
    assert len({len(indices) for indices, _ in shares}) == 1
    assert [i for indices, real in shares for i in indices[:real]] == list(range(count))
    assert all(i == count - 1 for indices, real in shares for i in indices[real:])
    # No rank computes more than the busiest must.
    assert len(shares[0][0]) == max(real for _, real in shares)


def test_one_process_works_without_a_group() -> None:
    ranks, values = Ranks(), torch.ones(3)
    ranks.wait()
    ranks.sum_gradients([values])
    assert ranks.gather(values) is values
    assert ranks.gather_objects("a") == ["a"]
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    assert ranks.share(3) == ([0, 1, 2], 3)
    assert ranks.first
    parameter = torch.nn.Parameter(torch.zeros(3))
    ranks.put(values, parameter)
    assert ranks.whole(parameter).tolist() == [1, 1, 1]
    assert not ranks.whole(parameter).requires_grad


def test_without_a_launcher_nothing_is_imported_or_set_up() -> None:
    script = (
        "import sys; from mixgrpo.compute.ranks import join, leave; ranks = join(); leave();"
        "import torch.distributed as dist;"
        "print(ranks.size, ranks.device, ranks.sharded, dist.is_initialized(),"
        "'accelerate' in sys.modules, 'torch.distributed.fsdp' in sys.modules)"
    )
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**plain, "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2"},  # alone: no rank is given
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "cpu", "False", "False", "False", "False"]


STRAY = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


def test_a_rank_alone_says_what_it_takes_itself_for_and_does_not_wait_for_ever() -> None:
    """By hand, in a shell where variables of a launcher were left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-c", "import mixgrpo.compute.ranks as r; r._SILENCE_S = 0.1; r.join()"],
        cwd=ROOT,
        env={**os.environ, **STRAY, "MASTER_PORT": port, "MIXGRPO_MEETING_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    for said in ("process 0 of 2", "WORLD_SIZE=2", "did not come within 1 s", "unset RANK, LOCAL"):
        assert said in last
    assert "RunError" in last
    assert "waits for the others for up to 1 s" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_waits_for_the_others_can_be_ended(rank: str, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = (
        "import mixgrpo.compute.ranks as r\n"
        "from mixgrpo.compute.signals import *\n"
        "r._SILENCE_S = 0.5\n"
        "with handling(interrupt): r.join()"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **STRAY, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    assert "waits for the others" in waiting.stderr.readline()
    waiting.send_signal(number)
    assert waiting.wait(10) == -number
    waiting.communicate()


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "2"},
        {"RANK": "-1"},
        {"RANK": "first"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": ""},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": ""},
        {"MASTER_PORT": "99999"},
    ],
    ids=str,
)
def test_variables_that_no_launcher_sets_are_refused(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (STRAY | {"MASTER_PORT": "29500"} | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="not what accelerate launch or torchrun sets; to run it"):
        join()


@pytest.mark.parametrize(
    ("local", "said"), [("first", "LOCAL_RANK=first"), ("3", "4 of this machine has no GPU")]
)
def test_a_process_without_a_gpu_does_not_wait(
    local: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (STRAY | {"MASTER_PORT": "29500", "LOCAL_RANK": local}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ConfigError, match=said):
        join()


def test_version_1_of_fsdp_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="--fsdp_version 2"):
        join()


@pytest.mark.parametrize("asked", ["ACCELERATE_USE_DEEPSPEED", "FSDP_OFFLOAD_PARAMS"])
def test_what_is_not_supported_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(asked, "true")
    with pytest.raises(ConfigError, match="neither DeepSpeed nor offloading"):
        join()


def test_processes_asked_for_but_not_started_are_noticed(tmp_path: Path) -> None:
    code, said = launch(("--cpu",), "tests.mixgrpo.rank_children", "everything", str(tmp_path))
    assert code != 0
    assert "ConfigError" in said
    assert "add --multi_gpu" in said


def test_ranks_know_their_place(copies: Found, shards: Found) -> None:
    assert [f["ranks"] for f in copies] == [(0, 2, "cpu", False, True), (1, 2, "cpu", False, False)]
    assert [f["ranks"] for f in shards] == [(0, 2, "cpu", True, True), (1, 2, "cpu", True, False)]
    assert all(f["joined_again"] for f in [*copies, *shards])


def test_gathered_rows_are_in_the_order_of_ranks(either: Found) -> None:
    expected = {
        "uneven": torch.tensor([[0.0, 1], [2, 3], [4, 5], [9, 9]]),
        "first_empty": torch.tensor([[0.0, 1], [2, 3]]),
        "all_empty": torch.ones(0, 2),
        "halves": torch.tensor([0.5, 1.5], dtype=torch.bfloat16),
        "flags": torch.tensor([True, True, False]),
        "numbers": torch.tensor([2**40, 2**40 + 1]),
    }
    for found in either:
        assert found["gathered"].keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found["gathered"][name], values, rtol=0, atol=0)
        assert found["objects"] == [{"rank": 0, "groups": []}, {"rank": 1, "groups": ["x"]}]


def test_any_rank_speaks_for_all(either: Found) -> None:
    assert [f["any"] for f in either] == 2 * [[False, True, True]]


def test_shares_of_launched_ranks(copies: Found, shards: Found) -> None:
    assert [f["share"] for f in copies] == [([0, 1, 2], 3), ([3, 4], 2)]
    assert [f["share"] for f in shards] == [([0, 1, 2], 3), ([3, 4, 4], 2)]


def test_gradients_are_summed_in_place_in_buckets(copies: Found) -> None:
    expected = [
        torch.arange(6.0).view(2, 3) * 11,
        torch.tensor(77.0),
        torch.arange(4.0, dtype=torch.float64) * 11,
        torch.arange(30.0).view(5, 6).T * 11,
        torch.full((3,), 11.0),
    ]
    for found in copies:
        gradients, sent = found["summed"]
        torch.testing.assert_close(gradients, expected, rtol=0, atol=0)
        assert sent == [7, 4, 30, 3]


def test_gradients_of_sharded_networks_are_left_alone(shards: Found) -> None:
    for rank, found in enumerate(shards):
        gradients, sent = found["summed"]
        assert gradients[1] == 7 * 10**rank
        assert sent == []


def test_uneven_shares_train_as_one_process_does(either: Found) -> None:
    net, inputs, targets = problem()
    optimizer = torch.optim.AdamW(net.parameters(), 0.05, foreach=False)
    norms = []
    for _ in range(4):
        optimizer.zero_grad()
        ((net(inputs) - targets).square().sum() / ROWS).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)))
        optimizer.step()
    assert min(norms) > 0.5  # clipping took part
    for found in either:
        trained = found["trained"]
        _close(trained["weights"], dict(net.named_parameters()), 1e-6)
        moments = {k: optimizer.state[p]["exp_avg"] for k, p in net.named_parameters()}
        _close(trained["moments"], moments, 1e-6)
        assert trained["norms"] == pytest.approx(norms, rel=1e-6)


def test_a_network_is_sharded_by_blocks_and_held_in_parts(shards: Found) -> None:
    net, _, _ = problem()
    total = sum(p.numel() for p in net.parameters())
    for found in shards:
        held = found["round_trip"]["held"]
        assert found["round_trip"]["units"] == ["", "blocks.0", "blocks.2"]
        assert sum(held) == total
        assert max(held) < 0.7 * total


def test_weights_put_into_a_sharded_network_are_used_at_once(shards: Found) -> None:
    net, inputs, _ = problem()
    for found in shards:
        _close(found["round_trip"]["whole"], dict(net.named_parameters()), 0)
        assert found["round_trip"]["plain"].tolist() == [[1, 1], [1, 1]]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
        doubled = net(inputs)
    for found in shards:
        torch.testing.assert_close(found["round_trip"]["doubled"], doubled, rtol=1e-5, atol=1e-5)


def test_two_forwards_of_a_sharded_network_in_one_backward(shards: Found) -> None:
    net, inputs, _ = problem()
    (net(inputs[:2]).square().sum() + 2 * net(inputs[2:3]).sum()).backward()
    for found in shards:
        expected = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
        _close(found["two_forwards"], expected, 1e-5)


def test_sharded_in_bfloat16_inputs_and_trained_weights_stay_in_float32(shards: Found) -> None:
    net, inputs, _ = problem()
    (2 * net(inputs[:1]).sum()).backward()
    expected = {k: p.grad for k, p in net.named_parameters() if k.endswith("bias")}
    for found in shards:
        lowered = found["lowered"]
        assert lowered["seen"] == ["torch.float32", "torch.bfloat16"]
        assert lowered["kept"] == ["torch.float32"]
        assert lowered["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert lowered["gradients"][name].dtype == torch.float32
            torch.testing.assert_close(lowered["gradients"][name], gradient, rtol=0.05, atol=0.05)


def test_the_death_of_one_rank_ends_the_others(tmp_path: Path) -> None:
    code, said = launch(COPIES, "tests.mixgrpo.rank_children", "death", str(tmp_path), seconds=40)
    assert code != 0
    assert "SIGKILL" in said


def _close(found: dict[str, Tensor], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], values.detach(), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
