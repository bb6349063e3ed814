"""The store of embeddings: what goes in comes out, whoever writes beside it and whatever dies."""

import errno
import json
import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.models import embeddings
from mixgrpo.models.embeddings import EmbeddingStore, embeddings_folder


def encoded(prompts: list[str]) -> dict[str, Tensor]:
    """An encoder of its own: bytes as numbers that bfloat16 has exactly, and a mask."""
    rows = [[float(b) for b in p.encode()[:6].ljust(6, b"\0")] for p in prompts]
    text = torch.tensor(rows).view(len(prompts), 3, 2)
    return {"text": text, "pooled": text.mean((1, 2)).round(), "mask": text[:, :, 0] > 0}


def shards(store: EmbeddingStore) -> list[Path]:
    return sorted(store.folder.glob("[!.]*.safetensors"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=5), min_size=1, max_size=4),
    st.data(),
)
def test_rows_come_back_by_prompt_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]], data: st.DataObject
) -> None:
    batches = [
        ["".join(c for c in p if not "\ud800" <= c <= "\udfff") for p in batch] for batch in batches
    ]
    folder = tmp_path_factory.mktemp("store")
    for batch in batches:
        EmbeddingStore(folder, "tiny").add(batch, encoded(batch))
    known = sorted({p for batch in batches for p in batch})
    asked = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=8))
    got = EmbeddingStore(folder, "tiny").get(asked)
    want = encoded(asked)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name].to(value.dtype), value), name
    assert EmbeddingStore(folder, "tiny").missing([*known, "not there", *known]) == ["not there"]


def test_floats_are_kept_as_bfloat16_and_others_as_they_are(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    values = torch.tensor([[1.0 + 2**-12, -3.1]])
    store.add(["a"], {"x": values, "half": values.half(), "ids": torch.tensor([[7, 2**40]])})
    got = store.get(["a"])
    assert got["x"].dtype == got["half"].dtype == torch.bfloat16
    assert torch.equal(got["x"], values.bfloat16())
    assert torch.equal(got["ids"], torch.tensor([[7, 2**40]]))
    assert shards(store)[0].stat().st_size < 1000


def test_expanded_and_transposed_rows_are_kept_as_they_read(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    row = torch.arange(6.0).view(2, 3).T
    store.add(["a", "b"], {"x": row.expand(2, 3, 2)})
    assert torch.equal(store.get(["b", "a"])["x"].float(), row.expand(2, 3, 2))


def test_another_identity_is_another_store(tmp_path: Path) -> None:
    one, other = EmbeddingStore(tmp_path, "flux, main"), EmbeddingStore(tmp_path, "flux, v2")
    one.add(["a"], encoded(["a"]))
    assert other.missing(["a"]) == ["a"]
    assert one.folder != other.folder
    label = json.loads((one.folder / "identity.json").read_text())
    assert label["embeddings_of"] == "flux, main"


def test_a_prompt_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    with pytest.raises(RunError, match="no embedding of the prompt 'not there'"):
        store.get(["a", "not there"])


def test_what_another_process_added_later_is_found(tmp_path: Path) -> None:
    reader, writer = EmbeddingStore(tmp_path, "tiny"), EmbeddingStore(tmp_path, "tiny")
    assert reader.missing(["a", "b"]) == ["a", "b"]
    writer.add(["b"], encoded(["b"]))
    assert torch.equal(reader.get(["b"])["text"].float(), encoded(["b"])["text"])
    assert reader.missing(["a", "b"]) == ["a"]


def test_of_two_shards_with_a_prompt_the_older_one_is_used_by_everyone(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], {"x": torch.tensor([1.0])})
    EmbeddingStore(tmp_path, "tiny").add(["b", "a"], {"x": torch.tensor([2.0, 3.0])})
    for reader in (store, EmbeddingStore(tmp_path, "tiny")):
        assert reader.get(["a", "b", "a"])["x"].tolist() == [1.0, 2.0, 1.0]


def test_only_new_shards_are_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    opened: list[str] = []
    real = safetensors.safe_open

    def counted(file: Path, **options: Any) -> Any:
        opened.append(file.name)
        return real(file, **options)

    monkeypatch.setattr(safetensors, "safe_open", counted)
    store = EmbeddingStore(tmp_path, "tiny")
    for prompt in "abc":
        store.add([prompt], encoded([prompt]))
    store.missing(["a"])
    assert len(opened) == 3
    store.missing(["a"])
    assert len(opened) == 3
    store.get(["a", "b", "a"])
    assert len(opened) == 5  # two shards, each once


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "foreign", "header alone"])
def test_a_damaged_or_foreign_file_is_passed_over_with_one_warning(
    how: str, tmp_path: Path
) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    bad = shards(store)[0]
    store.add(["b"], encoded(["b"]))
    whole = bad.read_bytes()
    if how == "foreign":
        save_file({"a/text": torch.zeros(2)}, bad)
    else:
        cut = {"truncated": whole[:-1], "empty": b"", "text": b"x" * 99, "header alone": whole[:64]}
        bad.write_bytes(cut[how])
    fresh = EmbeddingStore(tmp_path, "tiny")
    with pytest.warns(UserWarning, match=bad.name):
        assert fresh.missing(["a", "b"]) == ["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert fresh.missing(["a", "b"]) == ["a"]
    fresh.add(["a"], encoded(["a"]))
    got = fresh.get(["a", "b"])
    assert torch.equal(got["text"].float(), encoded(["a", "b"])["text"])


def test_a_shard_damaged_after_it_was_indexed_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    store.missing(["a"])
    shards(store)[0].write_bytes(b"")
    with pytest.raises(RunError, match=r"\.safetensors: cannot be read any more"):
        store.get(["a"])


def test_a_removed_shard_is_forgotten_when_it_is_needed(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    assert store.missing(["a"]) == []
    shards(store)[0].unlink()
    with pytest.raises(RunError, match="has no embedding of the prompt 'a'"):
        store.get(["a"])
    assert store.missing(["a"]) == ["a"]


def test_what_a_removed_shard_had_is_read_from_another_one(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    assert store.missing(["a"]) == []
    EmbeddingStore(tmp_path, "tiny").add(["b", "a"], encoded(["b", "a"]))
    shards(store)[0].unlink()
    assert torch.equal(store.get(["a"])["text"].float(), encoded(["a"])["text"])


def test_the_disk_is_looked_at_only_for_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a", "b"], encoded(["a", "b"]))
    assert store.missing(["a", "c"]) == ["c"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", lambda *_: pytest.fail("looked at the disk"))
        assert store.missing(["b", "a", "b"]) == []
        assert store.missing([]) == []
        assert store.get(["b"]).keys() == encoded(["b"]).keys()
    EmbeddingStore(tmp_path, "tiny").add(["c"], encoded(["c"]))
    assert store.missing(["a", "c"]) == []


def test_a_value_that_is_not_finite_is_refused_with_its_prompt(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    with pytest.raises(RepeatableError, match="embedding x of the prompt 'b' is not finite"):
        store.add(["a", "b"], {"x": torch.tensor([1.0, float("inf")])})
    assert not store.folder.exists()


def test_rows_and_prompts_must_agree(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    with pytest.raises(ValueError, match="x has 1 rows for 2 prompts"):
        store.add(["a", "b"], {"x": torch.ones(1)})


def test_shards_that_differ_in_shape_are_an_error_not_a_wrong_tensor(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], {"x": torch.ones(1, 2)})
    store.add(["b"], {"x": torch.ones(1, 3)})
    with pytest.raises(RunError, match="embedding x of the prompt 'b' does not have the shape"):
        store.get(["a", "b"])


def test_a_full_disk_names_the_file_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as error:
            store.add(["b"], encoded(["b"]))
    assert error.value.errno == errno.ENOSPC
    assert Path(error.value.filename).parent == store.folder
    assert {p.name for p in store.folder.iterdir()} == {"identity.json", shards(store)[0].name}
    assert store.missing(["a", "b"]) == ["b"]
    store.add(["b"], encoded(["b"]))
    assert store.missing(["a", "b"]) == []


def test_a_file_in_the_folders_place_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is no folder; name another"):
        EmbeddingStore(tmp_path / "file" / "below", "tiny")


def test_looking_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    assert EmbeddingStore(folder, "tiny").missing(["a"]) == ["a"]
    assert not folder.exists()


def test_half_written_shards_go_once_their_writer_must_be_gone(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "tiny")
    store.add(["a"], encoded(["a"]))
    old, new = (store.folder / f".{n}.safetensors.7.tmp" for n in ("old", "new"))
    for file, age in ((old, 2 * embeddings._ABANDONED_S), (new, 60)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    store.add(["b"], encoded(["b"]))
    assert (old.exists(), new.exists()) == (False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EmbeddingStore(tmp_path, "tiny").missing(["a", "b"]) == []


def test_the_folder_is_the_named_one_then_the_environments_then_the_homes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MIXGRPO_EMBEDDINGS", raising=False)
    assert embeddings_folder() == Path("/home/me/.cache/mixgrpo/embeddings")
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", "/big/disk")
    assert embeddings_folder() == Path("/big/disk")
    assert embeddings_folder("mine") == Path("mine").absolute()


def children() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "safetensors.torch", "mixgrpo.models.embeddings"])
    return context


def _write_many(folder: Path, start: int, count: int) -> None:
    torch.set_num_threads(1)
    store = EmbeddingStore(folder, "tiny")
    for i in range(start, start + count):
        prompts = store.missing([f"{i}", f"{i} too"])
        store.add(prompts, encoded(prompts))


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Four processes, whose prompts overlap by half, into a folder that is not there yet."""
    context = children()
    folder = tmp_path / "new" / "folder"
    writers = [context.Process(target=_write_many, args=(folder, s, 20)) for s in (0, 10, 20, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    asked = [f"{i}{too}" for i in range(50) for too in ("", " too")]
    store = EmbeddingStore(folder, "tiny")
    assert store.missing(asked) == []
    assert torch.equal(store.get(asked)["text"].float(), encoded(asked)["text"])
    assert not list(store.folder.glob(".*"))


def test_a_killed_writer_leaves_whole_shards_and_the_rest_is_encoded_again(tmp_path: Path) -> None:
    context = children()
    asked = [f"{i}{too}" for i in range(2000) for too in ("", " too")]
    store = EmbeddingStore(tmp_path, "tiny")
    left = len(asked)
    for _ in range(4):
        writer = context.Process(target=_write_many, args=(tmp_path, 0, 2000))
        writer.start()
        until = time.monotonic() + 30
        while len(store.missing(asked)) > left - 10 and time.monotonic() < until:
            time.sleep(0.01)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        assert writer.exitcode == -signal.SIGKILL
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-written bears a shard's name
            now = len(EmbeddingStore(tmp_path, "tiny").missing(asked))
        assert 0 < now < left
        left = now
    rest = store.missing(asked)
    store.add(rest, encoded(rest))
    assert torch.equal(store.get(asked)["text"].float(), encoded(asked)["text"])
