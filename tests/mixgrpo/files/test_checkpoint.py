"""Checkpoints are whole or absent; a corrupt one is named and passed over."""

import errno
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from mixgrpo.errors import RunError
from mixgrpo.files import checkpoint, manifest

Tensors = dict[str, dict[str, Tensor]]

MADE_ON = {"device": "cpu", "threads": 1}


def state(seed: int) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {
        "weights": {"a": torch.randn(3, 4, generator=draw), "b/c": torch.randn(2, generator=draw)},
        "average": {"a": torch.randn(3, 4, generator=draw)},
        "optimizer": {"a/step": torch.tensor(float(seed))},
    }


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(
        a[g].keys() == b[g].keys() and all(torch.equal(a[g][k], b[g][k]) for k in a[g]) for g in a
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoints"
    for iteration in (2, 4, 10):
        checkpoint.save(root, iteration, state(iteration), MADE_ON)
    return root


def loaded(root: Path) -> tuple[int, Tensors]:
    found = checkpoint.load_newest(root)
    assert found is not None
    return found.iteration, found.tensors


def test_what_is_saved_comes_back_bit_by_bit(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iteration, tensors = loaded(root)
    assert iteration == 10
    assert same(tensors, state(10))
    found = checkpoint.load_newest(root)
    assert found is not None
    assert found.made_on == MADE_ON


def test_an_optimizer_that_has_not_stepped_is_saved_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {"weights": {"a": torch.ones(2)}, "optimizer": {}}, MADE_ON)
    assert loaded(tmp_path)[1]["optimizer"] == {}


def test_dtypes_views_and_gradients(tmp_path: Path) -> None:
    tensors = {
        "weights": {
            "half": torch.randn(4, 4).bfloat16(),
            "view": torch.randn(4, 4).T,
            "parameter": torch.nn.Parameter(torch.randn(2)),
            "nan": torch.tensor([float("nan"), float("inf")]),
        }
    }
    checkpoint.save(tmp_path, 1, tensors, MADE_ON)  # type: ignore[arg-type]
    for name, value in loaded(tmp_path)[1]["weights"].items():
        assert value.dtype == tensors["weights"][name].dtype
        assert torch.equal(value.nan_to_num(), tensors["weights"][name].detach().nan_to_num())


def test_none_without_one(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "absent") is None


def test_the_same_iteration_is_replaced(root: Path) -> None:
    checkpoint.save(root, 10, state(77), MADE_ON)
    assert same(loaded(root)[1], state(77))


def _truncate(place: Path) -> None:
    file = place / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _flip(place: Path) -> None:
    file = place / "average.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)


def _garbage(place: Path) -> None:
    (place / "optimizer.safetensors").write_bytes(b"")


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "a truncated file": _truncate,
    "a flipped bit": _flip,
    "an empty file": _garbage,
    "a missing file": lambda p: (p / "average.safetensors").unlink(),
    "an empty folder": lambda p: [f.unlink() for f in p.iterdir()],
    "a file of zeros": lambda p: (p / "weights.safetensors").write_bytes(
        bytes((p / "weights.safetensors").stat().st_size)
    ),
    "a truncated manifest": lambda p: (p / "manifest.json").write_bytes(
        (p / "manifest.json").read_bytes()[:-9]
    ),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "an empty manifest": lambda p: (p / "manifest.json").write_text(""),
    "a manifest that is a list": lambda p: (p / "manifest.json").write_text("[]"),
    "a manifest of nothing": lambda p: (p / "manifest.json").write_text("{}"),
    "a binary manifest": lambda p: (p / "manifest.json").write_bytes(b"\xff\x00"),
    "a manifest that is a folder": lambda p: (
        (p / "manifest.json").unlink(),
        (p / "manifest.json").mkdir(),
    ),
    "a manifest of another iteration": lambda p: (p / "manifest.json").write_text(
        (p / "manifest.json").read_text().replace(": 10", ": 11")
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_taken(root: Path, name: str) -> None:
    CORRUPTIONS[name](root / "000010")
    with pytest.warns(UserWarning, match=r"000010: corrupt checkpoint") as seen:
        iteration, tensors = loaded(root)
    assert len(seen) == 1
    assert iteration == 4
    assert same(tensors, state(4))


def test_one_of_more_iterations_than_asked_for_is_no_candidate(root: Path) -> None:
    for at_most, iteration in ((11, 10), (10, 10), (9, 4), (2, 2)):
        found = checkpoint.load_newest(root, at_most)
        assert found is not None
        assert (found.iteration, same(found.tensors, state(iteration))) == (iteration, True)
    assert checkpoint.load_newest(root, 1) is None


def test_every_byte_of_the_manifest_matters_or_changes_nothing(root: Path) -> None:
    file = root / "000010" / "manifest.json"
    whole = file.read_bytes()
    for position in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[position] ^= 1
        file.write_bytes(spoiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if position == whole.index(b": 1") + 2:  # the number of the format itself
                with pytest.raises(RunError, match="format 0"):
                    checkpoint.load_newest(root)
                continue
            iteration, tensors = loaded(root)
        assert same(tensors, state(iteration)), whole[max(0, position - 9) : position + 9]


def test_all_corrupt_is_none_and_each_is_named(root: Path) -> None:
    for place in manifest.checkpoints(root):
        _truncate(place)
    with pytest.warns(UserWarning, match="corrupt") as seen:
        assert checkpoint.load_newest(root) is None
    assert sorted(str(w.message).split(":")[0][-6:] for w in seen) == ["000002", "000004", "000010"]


def test_another_format_is_an_error_not_a_corruption(root: Path) -> None:
    file = root / "000010" / "manifest.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "format": manifest.FORMAT + 1}))
    with pytest.raises(RunError, match=rf"000010: a checkpoint of format {manifest.FORMAT + 1}"):
        checkpoint.load_newest(root)


def test_half_written_ones_are_not_checkpoints(root: Path) -> None:
    (root / "000012.partial").mkdir()
    (root / "000012.partial" / "weights.safetensors").write_bytes(b"half")
    (root / "notes").mkdir()
    (root / "000013").write_text("a file")
    with pytest.warns(UserWarning, match="000013: corrupt checkpoint"):
        assert loaded(root)[0] == 10
    checkpoint.prune(root, 5, 10)
    assert not (root / "000012.partial").exists()
    assert (root / "notes").exists()


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_prune_keeps_the_newest(root: Path, keep: int) -> None:
    checkpoint.prune(root, keep, 10)
    kept = [int(p.name) for p in manifest.checkpoints(root)]
    assert kept == [2, 4, 10][-keep:]


def test_the_newest_of_very_many_iterations_is_the_one_that_stays(root: Path) -> None:
    for iteration in (999_999, 1_000_000):
        checkpoint.save(root, iteration, state(iteration % 7), MADE_ON)
    assert loaded(root)[0] == 1_000_000
    checkpoint.prune(root, 1, 1_000_000)
    assert [p.name for p in manifest.checkpoints(root)] == ["1000000"]


def test_prune_leaves_what_is_always_kept_beside_the_newest(root: Path) -> None:
    checkpoint.save(root, 7, state(7), MADE_ON)
    checkpoint.prune(root, 1, 10, always=(2,))
    assert [int(p.name) for p in manifest.checkpoints(root)] == [2, 10]
    for iteration in (11, 12):
        checkpoint.save(root, iteration, state(iteration), MADE_ON)
    checkpoint.prune(root, 2, 12, always=(2, 11), uncounted=(11,))
    assert [int(p.name) for p in manifest.checkpoints(root)] == [2, 10, 11, 12]


def test_prune_never_takes_the_one_just_written_for_a_corrupt_later_one(root: Path) -> None:
    _truncate(root / "000010")
    checkpoint.save(root, 5, state(5), MADE_ON)
    checkpoint.prune(root, 1, 5)
    assert loaded(root)[0] == 5


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_leaves_the_earlier_ones(
    root: Path, failing: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def save_file(tensors: dict[str, Tensor], file: Path) -> None:
        file.write_bytes(b"half of it")
        if len(written) == failing:
            message = "No space left on device"
            if kind is OSError:
                raise OSError(errno.ENOSPC, message)
            raise SafetensorError(f"I/O error: {message} (os error 28)")
        written.append(file)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.save(root, 10, state(99), MADE_ON)
    assert error.value.errno == errno.ENOSPC
    assert same(loaded(root)[1], state(10))
    assert not list(root.glob("*.partial"))
