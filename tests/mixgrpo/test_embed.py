"""The command that encodes prompts: its result equals the pipeline's, however often it stops."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mixgrpo import cli, embed
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.models import embeddings
from mixgrpo.models.embeddings import EmbeddingStore
from mixgrpo.models.parts import Pipeline
from mixgrpo.models.sd3 import SD3Policy
from mixgrpo.settings.config import ComputeConfig, ModelConfig

from .models.tiny import write_flux, write_sd3

TOKENS = 16
PROMPTS = [f"{colour} {thing} {i}" for i in range(50) for colour in "ab" for thing in ("x", "yy")]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def settings(flux: Path) -> list[str]:
    return [f"model.checkpoint={flux}", f"model.text_tokens={TOKENS}"]


def store_in(out: Path) -> EmbeddingStore:
    """The one store in a folder of embeddings, found by what its label says."""
    (label,) = out.glob("*/identity.json")
    store = EmbeddingStore(out, yaml.safe_load(label.read_text())["embeddings_of"])
    assert store.folder == label.parent
    return store


def pipelines(flux: Path, prompts: list[str]) -> dict[str, torch.Tensor]:
    """What diffusers' own pipeline encodes them to, all in one batch."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(flux, dtype=torch.bfloat16)
    with torch.no_grad():
        text, pooled, _ = pipeline.encode_prompt(
            prompt=prompts, prompt_2=None, max_sequence_length=TOKENS
        )
    return {"text": text, "pooled": pooled}


def test_what_is_kept_is_what_the_pipeline_encodes(flux: Path, file: Path, tmp_path: Path) -> None:
    assert embed.main([file], set_=settings(flux), out=tmp_path / "e") == 0
    got, want = store_in(tmp_path / "e").get(PROMPTS), pipelines(flux, PROMPTS)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert value.shape == got[name].shape
        # bfloat16 has 8 bits, and a batch of another size sums in another order.
        torch.testing.assert_close(got[name], value, rtol=2**-6, atol=2**-6)
    assert not torch.allclose(got["text"][0], got["text"][1], atol=0.05)


def test_it_tells_where_the_embeddings_are_and_what_they_take(
    flux: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(embed, "READ_EVERY_S", 0.0)
    out = tmp_path / "e"
    embed.main([file], set_=settings(flux), out=out)
    output = capsys.readouterr()
    assert output.out == f"{store_in(out).folder}\n"
    lines = output.err.splitlines()
    assert lines[0] == f"0 of 200 prompts are in {store_in(out).folder}"
    each = 2 * (TOKENS * 32 + 32)  # bytes of bfloat16, encoders 32 wide
    begin = f"{each / 1024:.4g} KiB a prompt, {each * 200 / 1024:.4g} KiB in all; "
    assert any(line.startswith(begin) for line in lines)
    progress = [line for line in lines if line.endswith("of 200 prompts")]
    assert progress[0] == "64 of 200 prompts"
    assert progress[-1] == "200 of 200 prompts"
    assert lines[-1].startswith("200 prompts encoded in ")


def test_a_terminal_shows_a_bar(
    flux: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert embed.main([file], set_=settings(flux), out=tmp_path / "e") == 0
    output = capsys.readouterr()
    assert "200/200" in output.err
    assert "KiB a prompt" in output.err
    assert "200/200" not in output.out


def test_nothing_is_loaded_where_nothing_is_missing(
    flux: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "e"
    embed.main([file], set_=settings(flux), out=out)
    before = {f.name: f.stat().st_mtime_ns for f in store_in(out).folder.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("loaded"))
    assert embed.main([file], set_=settings(flux), out=out) == 0
    assert capsys.readouterr().err.startswith("200 of 200 prompts are in ")
    assert {f.name: f.stat().st_mtime_ns for f in store_in(out).folder.iterdir()} == before


def test_without_a_configuration_a_run_with_guidance_finds_all_that_it_needs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sd3 = tmp_path / "e", write_sd3(tmp_path / "sd3")
    compute = ComputeConfig(precision="bf16")
    model = ModelConfig(name="sd3", checkpoint=str(sd3), text_tokens=TOKENS)
    sets = ["model.name=sd3", *settings(sd3)]
    # A run without guidance has left everything but the negative prompt.
    SD3Policy.load(model, compute, "cpu", out).prepare(PROMPTS, lambda _: None)
    guided = model.model_copy(update={"cfg": 4.5})
    trained = SD3Policy.load(guided, compute, "cpu", out)
    assert trained.unprepared(PROMPTS) == [""]
    assert embed.main([file], set_=sets, out=out) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 prompts encoded in ")
    assert trained.unprepared(PROMPTS) == []


def test_shards_split_the_prompts_and_make_the_whole(
    flux: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second share is the same after the first one is done as before it."""
    monkeypatch.chdir(tmp_path)
    out = Path("7")  # which YAML would read as a number
    embed.main([file], set_=settings(flux), out=out, shard="0/3")
    assert store_in(out).missing(PROMPTS) == [p for i, p in enumerate(PROMPTS) if i % 3]
    embed.main([file], set_=settings(flux), out=out, shard="1/3")
    assert store_in(out).missing(PROMPTS) == PROMPTS[2::3]
    embed.main([file], set_=settings(flux), out=out, shard="2/3")
    assert store_in(out).missing(PROMPTS) == []
    entries = [e for f in store_in(out).folder.glob("*.safetensors") for e in load_file(f)]
    assert len(entries) == 2 * len(PROMPTS)  # none of them twice


def test_a_configuration_brings_its_model_its_prompts_and_its_folder(
    flux: Path, file: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held.json"
    held_out.write_text('["held out"]')
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model": {"name": "flux", "checkpoint": str(flux), "text_tokens": TOKENS},
                "prompts": {
                    "train": str(file),
                    "held_out": str(held_out),
                    "embeddings": str(tmp_path / "own"),
                },
                "rewards": {"train": {"pickscore": 1.0}, "held_out": []},
            }
        )
    )
    assert embed.main(config=config) == 0
    store = store_in(tmp_path / "own")
    assert store.missing([*PROMPTS, "held out"]) == []
    assert "float32" in store.identity  # the precision of this run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "PROMPTS: name a file"),
        ({"shard": "2/2"}, "--shard 2/2: expected I/N"),
        ({"shard": "1"}, "--shard 1: expected I/N"),
        ({"prompts": [Path("no-such-file.txt")]}, "no-such-file.txt: no such file"),
        ({"set_": ["model.name=scenes"]}, "model.name scenes: stores no embeddings"),
        ({"set_": ["model.nme=flux"]}, "model.nme: unknown key"),
        ({"set_": ["model.checkpoint=/nowhere/flux"]}, "/nowhere/flux"),
    ],
)
def test_what_cannot_be_done_is_an_error_before_any_work(
    arguments: dict[str, object], says: str, file: Path, tmp_path: Path
) -> None:
    if set(arguments) != {"shard"} and arguments:
        arguments = {"prompts": [file], **arguments}
    with pytest.raises(ConfigError) as error:
        embed.main(out=tmp_path / "e", **arguments)  # type: ignore[arg-type]
    assert says in str(error.value)
    assert not (tmp_path / "e").exists()


def test_a_full_disk_is_told_and_what_was_kept_stays(
    flux: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    real = embeddings.write_bytes

    def filling(path: Path, content: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    out = tmp_path / "e"
    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "write_bytes", filling)
        with pytest.raises(RunError, match=r"safetensors: No space left on device; what was enc"):
            embed.main([file], set_=settings(flux), out=out)
    assert store_in(out).missing(PROMPTS) == PROMPTS[128:]
    assert embed.main([file], set_=settings(flux), out=out) == 0
    assert store_in(out).missing(PROMPTS) == []


def test_a_disk_that_will_not_do_is_told_at_the_first_prompts(
    flux: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2000))
    embed.main([file], set_=settings(flux), out=tmp_path / "e")
    assert "the disk has no room for the 144.5 KiB to come" in capsys.readouterr().err


_PRELOADED = [
    "mixgrpo.embed",
    "mixgrpo.models.flux",
    "diffusers.pipelines.flux.pipeline_flux",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
]


class Command:
    """`python -m mixgrpo.embed` in a process of its own, forked from one with the imports done."""

    def __init__(self, flux: Path, file: Path, out: Path, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        sets = [argument for setting in settings(flux) for argument in ("--set", setting)]
        self.out, self.log = out, log
        self.process = context.Process(
            target=_run, args=([str(file), "--out", str(out), *sets], log)
        )
        self.process.start()

    def after_shards(self, count: int, number: signal.Signals) -> None:
        """Send the signal once there are more than `count` shards."""
        until = time.monotonic() + 60
        while len(list(self.out.glob("*/[!.]*.safetensors"))) <= count:
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.005)
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode


def _run(arguments: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    sys.argv = ["mixgrpo.embed", *arguments]
    with log.open("w") as sys.stderr, Path(os.devnull).open("w") as sys.stdout:
        cli.run(embed.main)


def test_stopped_and_killed_it_ends_as_if_undisturbed(flux: Path, tmp_path: Path) -> None:
    """SIGINT, then SIGKILL, then two processes at once to the end."""
    many = [f"{p} {i}" for i in range(4) for p in PROMPTS]
    file, out, log = tmp_path / "many.txt", tmp_path / "e", tmp_path / "log"
    file.write_text("\n".join(many))

    command = Command(flux, file, out, log)
    command.after_shards(0, signal.SIGINT)
    assert command.end() == 130, log.read_text()
    left = store_in(out).missing(many)
    assert 0 < len(left) < len(many)
    kept = len(many) - len(left)
    assert f"stopped: {kept} of {len(many)} prompts are kept in {out}" in log.read_text()
    assert "Traceback" not in log.read_text()

    command = Command(flux, file, out, log)
    command.after_shards(kept // 64, signal.SIGKILL)
    assert command.end() == -signal.SIGKILL
    assert 0 < len(store_in(out).missing(many)) < len(left)

    commands = [Command(flux, file, out, tmp_path / name) for name in ("log1", "log2")]
    assert [command.end() for command in commands] == [0, 0]
    undisturbed = tmp_path / "undisturbed"
    embed.main([file], set_=settings(flux), out=undisturbed)
    got, want = store_in(out).get(many), store_in(undisturbed).get(many)
    assert all(torch.equal(got[name], want[name]) for name in want)
