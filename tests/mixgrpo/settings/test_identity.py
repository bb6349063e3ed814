"""What identifies weights and rewards: what a hash must see, and what it must not."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixgrpo.catalogue import registry, rewards, scenes
from mixgrpo.catalogue.models import model_weights
from mixgrpo.errors import ConfigError
from mixgrpo.files import contents as module
from mixgrpo.files.contents import contents, pipeline_contents
from mixgrpo.files.prompts import prompts_digest, read_prompts
from mixgrpo.models.embeddings import embeddings_folder
from mixgrpo.models.flux import GUIDANCE
from mixgrpo.models.parts import Pipeline
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash

PROMPTS = Path(__file__).parents[3] / "examples" / "prompts"
FLUX_PARTS = ("text_encoder", "transformer", "vae")


def tensors(layers: int = 60, width: int = 192) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {f"layer.{i}": torch.randn(width, width, generator=drawn) for i in range(layers)}


def write(folder: Path, weights: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / name, {"format": "pt"})
    return folder


def pipeline(folder: Path) -> Path:
    """A pipeline's folder with the files that are loaded, and no others."""
    index: dict[str, Any] = {"_class_name": "FluxPipeline", "image_encoder": [None, None]}
    for part in FLUX_PARTS:
        index[part] = ["diffusers", "Some"]
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write(folder / part, tensors(3, 8), f"{name}.safetensors")
        (folder / part / "config.json").write_text(json.dumps({"part": part}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# ---- Contents


def test_one_other_tensor_among_many_is_another_model(tmp_path: Path) -> None:
    """Adapters that were merged into some layers leave all others as they were."""
    weights = tensors()
    first = contents(write(tmp_path / "first", weights))
    assert contents(write(tmp_path / "same", weights)) == first
    seen = {first}
    for name, weight in weights.items():
        changed = {**weights, name: weight + 1e-3}
        seen.add(contents(write(tmp_path / name, changed)))
    assert len(seen) == 1 + len(weights)


def test_the_names_and_the_dtypes_of_tensors_are_seen(tmp_path: Path) -> None:
    a, b = torch.zeros(4, 64), torch.zeros(16, 16)
    digests = [
        contents(write(tmp_path / str(i), weights))
        for i, weights in enumerate(
            [{"a": a}, {"b": a}, {"a": b}, {"a": a.view(torch.int32)}, {"a": torch.ones(4, 64)}]
        )
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", ["model.safetensors", "table.csv"])
def test_every_byte_of_a_folders_files_counts(tmp_path: Path, name: str) -> None:
    """Of small tensors and of tables, too, that are larger than what a sample would have."""
    if name == "table.csv":
        (tmp_path / name).write_text("+1.0\n" * 400_000)
    else:
        write(tmp_path, {"w": torch.ones(64, 64)})
    content = bytearray((tmp_path / name).read_bytes())
    begin = len(content) - 4 * 64 * 64 if name == "model.safetensors" else 0
    seen = {contents(tmp_path)}
    places = (begin, begin + 5000, len(content) // 3, len(content) - 1)
    for place in places:
        content[place] ^= 1
        (tmp_path / name).write_bytes(content)
        seen.add(contents(tmp_path))
    assert len(seen) == 1 + len(places)


@pytest.mark.parametrize("read_whole", [module.READ_WHOLE, -1])
def test_a_file_that_only_ends_like_weights_is_told_apart_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_whole: int
) -> None:
    monkeypatch.setattr(module, "READ_WHOLE", read_whole)
    headers = [b"[1]", b"nothing", b'{"a": 1}', b'{"a": {}}']
    headers += [
        b'{"a": {"data_offsets": %s}}' % offsets.encode()
        for offsets in ("[-90, 2]", "[9, 1]", '[0, "x"]', "[0]", "[8000, 9000]")
    ]
    texts = [b"", b"\x10", b"no header at all", (2**62).to_bytes(8, "little") + b"{}"]
    for header in headers:
        length = len(header).to_bytes(8, "little")
        texts += [length + header + b"one", length + header + b"two"]
    digests = set()
    for text in texts:
        (tmp_path / "model.safetensors").write_bytes(text)
        digests.add(contents(tmp_path))
    assert len(digests) == len(texts)


def test_large_weights_are_not_read_whole(tmp_path: Path) -> None:
    """Of 4 GiB, sparse, 1,000 tensors: seconds, where reading all takes longer than that."""
    size, count = 1 << 22, 1000
    header = {
        f"layer.{i}": {
            "dtype": "F32",
            "shape": [size // 4],
            "data_offsets": [i * size, i * size + size],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + count * size)
        begin = time.process_time()
        before = contents(tmp_path)
        assert time.process_time() - begin < 1.0
        file.seek(8 + len(text) + 500 * size + size // 2)
        file.write(b"\1")
    assert contents(tmp_path) != before


def test_a_folder_is_read_once_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, tensors(3))
    before = contents(folder)
    opened: list[Path] = []
    original = module.open_regular

    def noted(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(module, "open_regular", noted)
    assert contents(folder) == before
    assert opened == []
    write(folder, tensors(4))
    assert contents(folder) != before
    assert opened != []


def test_linked_folders_count_by_what_they_lead_to(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole" / "part", tensors(3)).parent
    linked = tmp_path / "linked"
    linked.mkdir()
    write(tmp_path / "elsewhere", tensors(3))
    (linked / "part").symlink_to(tmp_path / "elsewhere")
    assert contents(linked) == contents(whole)
    write(tmp_path / "elsewhere", tensors(4))
    assert contents(linked) != contents(whole)


def test_links_in_a_circle_have_an_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", tensors(3))
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    (tmp_path / "beside").write_text("no part of it")
    before = contents(folder)
    (folder / "itself").symlink_to(".")
    (folder / "above").symlink_to("..")
    (folder / "one" / "to").symlink_to(folder / "two")
    (folder / "two" / "to").symlink_to(folder / "one")
    (folder / "nothing").symlink_to("nowhere")
    assert contents(folder) == before


def test_a_link_that_leads_elsewhere_now_is_read_anew(tmp_path: Path) -> None:
    for name in "ab":  # of one size and age
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    link.symlink_to("a")
    first = contents(link)
    link.unlink()
    link.symlink_to("b")
    assert contents(link) != first


def test_what_a_download_leaves_hidden_is_no_part_of_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / ".cache" / "folder", tensors(3))
    before = contents(folder)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "model.safetensors.metadata").write_text("1")
    (folder / ".gitattributes").write_text("*.bin")
    assert contents(folder) == before
    (folder / "config.json").write_text("{}")
    assert contents(folder) != before


BESIDE = (
    ".cache/huggingface/download/transformer/x.metadata",
    ".gitattributes",
    "README.md",
    "LICENSE.md",
    "dev_grid.jpg",
    "flux1-dev.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "text_encoders/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/README.md",
    "transformer/.cache/config.json",
    "transformer/.config.json",
    "transformer/old/config.json",
    "image_encoder/config.json",
)


@pytest.mark.parametrize("beside", BESIDE)
def test_what_lies_beside_a_pipelines_files_changes_nothing(tmp_path: Path, beside: str) -> None:
    folder = pipeline(tmp_path / "folder")
    opened = Pipeline.find(str(folder), None, "FluxPipeline", FLUX_PARTS)
    before = model_weights("flux", str(folder)), opened.digest(FLUX_PARTS)
    (folder / beside).parent.mkdir(parents=True, exist_ok=True)
    (folder / beside).write_bytes(b"something")
    assert (model_weights("flux", str(folder)), opened.digest(FLUX_PARTS)) == before


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors",
        "vae/vocab.txt",
        "vae/spiece.model",
    ],
)
def test_what_a_pipeline_loads_changes_what_it_is(tmp_path: Path, file: str) -> None:
    folder = pipeline(tmp_path / "folder")
    before = model_weights("flux", str(folder))
    path = folder / file
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    else:
        write(path.parent, tensors(4), path.name)
    assert model_weights("flux", str(folder)) != before


def test_a_copy_of_a_pipeline_is_the_same_and_a_linked_part_is_part_of_it(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "folder")
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert model_weights("flux", str(copy)) == model_weights("flux", str(folder)) != ""
    (copy / "vae").rename(tmp_path / "vae")
    (copy / "vae").symlink_to(tmp_path / "vae")
    assert model_weights("flux", str(copy)) == model_weights("flux", str(folder))
    write(tmp_path / "vae", tensors(4), "diffusion_pytorch_model.safetensors")
    assert model_weights("flux", str(copy)) != model_weights("flux", str(folder))


def test_of_ones_own_model_every_file_counts(tmp_path: Path) -> None:
    """Nobody knows what it reads, though it may lie in a folder like a pipeline's."""
    folder = pipeline(tmp_path / "folder")
    before = model_weights("own", str(folder))
    (folder / "table.bin").write_bytes(b"something")
    assert model_weights("own", str(folder)) != before


def test_an_index_that_is_none_makes_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"one")
    for text in ("no JSON", "[]", "{}"):
        (tmp_path / "model_index.json").write_text(text)
        assert pipeline_contents(tmp_path) != ""


def test_the_home_folder_is_the_same_written_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pipeline(tmp_path / "weights")
    assert model_weights("flux", "~/weights") == model_weights("flux", str(tmp_path / "weights"))
    assert contents(Path("~/weights")) == contents(tmp_path / "weights") != ""
    assert embeddings_folder("~/embeddings") == tmp_path / "embeddings"
    monkeypatch.setenv("MIXGRPO_EMBEDDINGS", "~/other")
    assert embeddings_folder() == tmp_path / "other"
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    assert read_prompts(Path("~/prompts.txt")) == ["one", "two"]
    assert prompts_digest(Path("~/prompts.txt")) == prompts_digest(tmp_path / "prompts.txt")


def test_the_home_of_nobody_is_nowhere() -> None:
    nobody = "~no-such-user-anywhere/file"
    assert contents(Path(nobody)) == ""
    assert model_weights("flux", nobody) == nobody
    with pytest.raises(ConfigError, match="no such file of prompts"):
        read_prompts(Path(nobody))
    with pytest.raises(ConfigError, match="no-such-user-anywhere"):
        embeddings_folder(nobody)


def test_identifying_a_run_needs_no_torch() -> None:
    code = (
        "import sys, mixgrpo.settings.config, mixgrpo.settings.identity\n"
        "mixgrpo.settings.identity.config_hash(mixgrpo.settings.config.RunConfig())\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Rewards and settings


def hashed(name: str = "hps", **options: Any) -> str:
    settings = {"train": {name: 1.0}, "held_out": (), "options": {name: options}}
    return config_hash(RunConfig.model_validate({"rewards": settings}))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, "checkpoint") for name in ("hps", "imagereward", "aesthetic", "ones-own")),
        *((name, "tokenizer") for name in ("hps", "pickscore", "clipscore", "imagereward")),
        ("aesthetic", "clip"),
    ],
)
def test_what_a_reward_loads_counts_by_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / "vocab.txt").write_bytes(content)
    a, b, c = (hashed(name, **{option: str(tmp_path / place)}) for place in "abc")
    assert a == b != c
    assert hashed(name, **{option: "~/a"}) == a
    hub = [hashed(name, **{option: text}) for text in ("owner/one", "owner/two")]
    assert len({a, c, hashed(name), *hub}) == 5
    (tmp_path / "a" / "vocab.txt").write_bytes(b"three")
    assert hashed(name, **{option: str(tmp_path / "a")}) not in (a, c)


def test_files_of_two_options_are_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert hashed(checkpoint=a, tokenizer=b) != hashed(checkpoint=b, tokenizer=a)


def test_where_a_reward_is_computed_counts_for_ones_own_alone() -> None:
    assert hashed("hps", batch=3) == hashed("hps")
    assert hashed("ocr", threads=3) == hashed("ocr")
    servers = {
        "urls": ("http://a",),
        "at_once": 2,
        "timeout": 3.0,
        "retries": 3,
        "api_key_env": "K",
    }
    assert hashed("unifiedreward", **servers) == hashed("unifiedreward")
    assert hashed("unifiedreward", score="pointwise") != hashed("unifiedreward")
    # Of a class of the user's nobody knows what an option of that name does.
    for name, value in {"batch": 3, "threads": 3, "timeout": 3.0, "urls": ("http://a",)}.items():
        assert hashed("ones-own", **{name: value}) != hashed("ones-own")


NETWORKS = [name for name in rewards.BUILT_IN if name not in scenes.REWARDS]


@pytest.mark.parametrize("name", NETWORKS)
def test_naming_a_rewards_default_is_the_same_run(name: str) -> None:
    maker: Callable[..., Any] = registry.load(rewards.GROUP, rewards.BUILT_IN, name)
    parameters = inspect.signature(maker).parameters
    for option, parameter in parameters.items():
        assert hashed(name, **{option: parameter.default}) == hashed(name), option
        if option not in rewards.SERVICE_OPTIONS:
            assert hashed(name, **{option: "another"}) != hashed(name), option


def diffusion(name: str, **model: Any) -> str:
    return config_hash(
        RunConfig.model_validate(
            {
                "model": {"name": name, **model},
                "prompts": {k: str(PROMPTS / f"{k}.txt") for k in ("train", "held_out")},
                "rewards": {"train": {"hps": 1.0}, "held_out": ()},
            }
        )
    )


def test_naming_a_models_default_scale_is_the_same_run() -> None:
    assert diffusion("flux", guidance=GUIDANCE) == diffusion("flux")
    assert diffusion("flux", guidance=1.0) != diffusion("flux")
    for name in ("sd3", "qwen-image"):
        assert diffusion(name, cfg=1.0) == diffusion(name)
        assert diffusion(name, cfg=GUIDANCE) != diffusion(name)
